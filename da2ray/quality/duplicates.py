"""Find near-duplicates by 64-bit hash, so that the best row of each group of look-alikes stays.

A row is removed if a row that stays and has a higher priority lies within a Hamming distance d. So rows that stay are
pairwise further apart than d, and every removed row is within d of a row that stays. There are no chains: in A ~ B ~ C,
if B is removed for A, then C stays unless it is near A itself. The result depends on the hashes and their order alone.

Pairs are found without looking at all of them (Manku, Jain, Das Sarma: Detecting near-duplicates for web crawling,
2007). The 64 bits are cut into d + k blocks; two hashes within d agree exactly in at least k of them. So for every choice
of k blocks the hashes are sorted with those blocks first, and only rows that agree there are compared. Reordering bits
does not change the Hamming distance, so the sort is of the hashes themselves with their blocks reordered: a sort of plain
integers, with nothing to carry along or gather. k is chosen by the number of hashes.

Look-alikes by the million (empty pages, the same title card) would make that quadratic. First, equal hashes are merged.
If a bucket still holds too many pairs, the hashes are halved by priority: decide the first half, remove from the second
half what is near its survivors, and decide the rest. A dense cloud has few survivors, so each halving leaves little of it.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from da2ray.parallel import look_ahead, usable_cores

HASH_BITS: Final = 64

DEFAULT_DISTANCE: Final = 4
"""Among 62 million unrelated images with random 64-bit hashes, 71 pairs are this close. At a distance of 6 some 8,600 pairs
are, at 9 ("below 10", often used with dHash on small sets) 3.4 million: C(62M, 2) pairs times the share of 64-bit numbers with
so few set bits. Real duplicates lie within 4: photographs saved again at quality 50, half the size and 10 % brighter
(`da2ray.quality.phash`)."""

MAX_DISTANCE: Final = 10
"""Above this distance unrelated images are removed by the million, and there are too many choices of blocks."""

SORT_COST: Final = 100.0
COMPARE_COST: Final = 14.0
"""Nanoseconds to sort one hash into one table, and to compare one pair, on one core with numpy 2.4. Only their ratio matters,
for the choice of k."""

FEW: Final = 1 << 18
"""Pairs that are always compared without halving: as many as 724 hashes have, so that halving ends."""

COMPARED_A_HASH: Final = 16
"""Pairs for each hash that one table may compare without halving. For random hashes `tables` needs at most 5 up to a distance
of 7. Beyond, it needs more, and the limit is four times the number that it needs."""

FOUND_A_HASH: Final = 1 / 2
"""Pairs for each hash that may lie within the distance without halving. This bounds the memory for pairs: some 40 bytes each
while they are decided on."""

MOST_THREADS: Final = 4
"""Each thread works on a table, which takes 8 bytes a hash. More threads would only wait for memory."""

CHUNK: Final = 1 << 18
"""Hashes worked on at a time: the temporary arrays are 2 MB each and stay in the cache."""

MOST: Final = 2**31 - 1
"""The most hashes that can be compared: their places are 32-bit integers."""

Hashes = NDArray[np.uint64]
Places = NDArray[np.signedinteger]


@dataclass(frozen=True, slots=True)
class Table:
    """One choice of blocks to sort by.

    Attributes:
        blocks: (first bit, width) of each block of the hash, the chosen blocks last.
        bits: total number of bits in the chosen blocks.
        before: masks, for arranged hashes, of blocks that come before the last chosen block and are not chosen. A pair that
            agrees in one of them is in a bucket of an earlier table too; so each pair is reported once.
    """

    blocks: tuple[tuple[int, int], ...]
    bits: int
    before: tuple[int, ...] = ()

    def arrange(self, hashes: Hashes) -> Hashes:
        """Reorder the bits of hashes so that the chosen blocks are the highest."""
        arranged = np.zeros_like(hashes)
        for begin in range(0, len(hashes), CHUNK):
            given, out = hashes[begin : begin + CHUNK], arranged[begin : begin + CHUNK]
            place = 0
            for first, width in self.blocks:
                mask = np.uint64((1 << width) - 1)
                out |= ((given >> np.uint64(first)) & mask) << np.uint64(place)
                place += width
        return arranged

    def restore(self, arranged: Hashes) -> Hashes:
        """Undo `arrange`."""
        hashes = np.zeros_like(arranged)
        place = 0
        for first, width in self.blocks:
            mask = np.uint64((1 << width) - 1)
            hashes |= ((arranged >> np.uint64(place)) & mask) << np.uint64(first)
            place += width
        return hashes

    def buckets(self, arranged: Hashes) -> Hashes:
        return arranged >> np.uint64(HASH_BITS - self.bits)

    @property
    def within(self) -> np.uint64:
        """The bits in which members of one bucket may differ."""
        return np.uint64((1 << (HASH_BITS - self.bits)) - 1)

    def in_earlier_table(self, left: Hashes, right: Hashes) -> NDArray[np.bool_]:
        """Tell which pairs of arranged hashes of one bucket an earlier table has too."""
        differing, known = left ^ right, np.zeros(len(left), bool)
        for mask in self.before:
            known |= (differing & np.uint64(mask)) == 0
        return known


def threads_to_use() -> int:
    """Threads for `find_duplicates`: the cores of this machine, up to `MOST_THREADS`."""
    return min(MOST_THREADS, usable_cores())


def find_duplicates(hashes: Hashes, distance: int, threads: int = 1) -> Places:
    """Find for each row the row that it duplicates; -1 means that the row stays.

    Args:
        hashes: uint64 (n), in order of priority: the first of two look-alikes stays.
        distance: bits that may differ, 0 to MAX_DISTANCE.
        threads: tables worked on at once; each takes 8 bytes a hash, and everything else takes some 30.

    Returns:
        int32 (n): places in `hashes` of rows that stay, or -1.

    Raises:
        ValueError: the distance is out of range, or there are more than `MOST` hashes.
    """
    if not 0 <= distance <= MAX_DISTANCE:
        raise ValueError(f"distance must be 0 to {MAX_DISTANCE}; got {distance}")
    if len(hashes) > MOST:
        raise ValueError(f"at most {MOST:,} hashes can be compared; got {len(hashes):,}")
    # Merge equal hashes at the place of the first: a million empty pages cost one sort.
    equal, first = _equal(hashes)
    different = np.ones(len(hashes), bool)
    different[equal] = False
    places = np.flatnonzero(different).astype(np.int32)
    among = _decide(hashes[different], distance, threads)
    found = np.full(len(hashes), -1, np.int32)
    found[places] = np.where(among >= 0, places[among], -1)
    found[equal] = np.where(found[first] >= 0, found[first], first)
    return found


def _equal(hashes: Hashes) -> tuple[Places, Places]:
    """Places of hashes that occurred before, and for each the place of its first occurrence."""
    order = np.argsort(hashes, kind="stable").astype(np.int32)
    ordered = hashes[order]
    new = np.append(True, ordered[1:] != ordered[:-1])[: len(hashes)]
    group = np.cumsum(new, dtype=np.int32)[~new] - 1
    return order[~new], order[new][group]


def tables(count: int, distance: int) -> list[Table]:
    """Choose the cheapest set of tables in which any two of `count` random hashes within `distance` share a bucket."""

    def cost(agreeing: int) -> float:
        bits = HASH_BITS * agreeing / (distance + agreeing)
        return math.comb(distance + agreeing, agreeing) * (SORT_COST + COMPARE_COST * count / 2 ** (bits + 1))

    if distance == 0:
        return [Table(((0, HASH_BITS),), HASH_BITS)]
    agreeing = min(range(1, 5), key=cost)
    count_blocks = distance + agreeing
    edges = [HASH_BITS * number // count_blocks for number in range(count_blocks + 1)]
    blocks = [(start, stop - start) for start, stop in itertools.pairwise(edges)]
    made = []
    for chosen in itertools.combinations(range(count_blocks), agreeing):
        rest = [number for number in range(count_blocks) if number not in chosen]
        laid = [blocks[number] for number in (*rest, *chosen)]
        places = itertools.accumulate((width for _, width in laid), initial=0)
        before = tuple(
            ((1 << blocks[number][1]) - 1) << place
            for number, place in zip(rest, places, strict=False)
            if number < chosen[-1]
        )
        made.append(Table(tuple(laid), sum(blocks[number][1] for number in chosen), before))
    return made


def _decide(hashes: Hashes, distance: int, threads: int) -> Places:
    """Do the work of `find_duplicates` for hashes that are all different."""
    if not distance or len(hashes) < 2:
        return np.full(len(hashes), -1, np.int32)
    pairs = _pairs(hashes, distance, threads)
    if pairs is not None:
        return _greedy(pairs, len(hashes))
    half = len(hashes) // 2
    found = np.empty(len(hashes), np.int32)
    found[:half] = _decide(hashes[:half], distance, threads)
    kept = np.flatnonzero(found[:half] < 0)
    near = _nearest(hashes[half:], hashes[kept], distance)
    found[half:] = np.where(near >= 0, kept[near], -1)
    left = half + np.flatnonzero(near < 0)
    among = _decide(hashes[left], distance, threads)
    found[left] = np.where(among >= 0, left[among], -1)
    return found


def _pairs(hashes: Hashes, distance: int, threads: int) -> tuple[Places, Places] | None:
    """Places (earlier, later) of all pairs within `distance`; None if there are too many pairs."""
    most_compared, most_found = max(FEW, COMPARED_A_HASH * len(hashes)), max(FEW, int(FOUND_A_HASH * len(hashes)))

    def of_table(table: Table) -> tuple[Hashes, Hashes] | None:
        arranged = table.arrange(hashes)
        arranged.sort()
        found, compared, count = [_NO_PAIR], 0, 0
        most = max(most_compared, 4 * len(hashes) ** 2 >> (table.bits + 1))
        for part in _whole_buckets(arranged, table):
            stops = _ends(table.buckets(part))
            compared += int(stops.sum()) - len(stops) * (len(stops) + 1) // 2
            if compared > most:
                return None
            for left, right in _compare(part, np.arange(1, len(part) + 1), stops, part, distance):
                new = ~table.in_earlier_table(left, right)
                found.append((left[new], right[new]))
                count += len(found[-1][0])
                if count > most_found:
                    return None
        left, right = (np.concatenate([pair[side] for pair in found]) for side in (0, 1))
        return table.restore(left), table.restore(right)

    sides: tuple[list[Hashes], list[Hashes]] = ([], [])
    for found in look_ahead(of_table, tables(len(hashes), distance), threads, "duplicates"):
        if found is None or sum(map(len, sides[0])) + len(found[0]) > most_found:
            return None
        for side, part in zip(sides, found, strict=True):
            side.append(part)
    order = np.argsort(hashes).astype(np.int32)
    ordered = hashes[order]
    left, right = (order[np.searchsorted(ordered, np.concatenate(side))] for side in sides)
    return np.minimum(left, right), np.maximum(left, right)


def _whole_buckets(arranged: Hashes, table: Table) -> Iterator[Hashes]:
    """Cut sorted hashes into parts of `CHUNK`, each with the rest of its last bucket."""
    begin = 0
    while begin < len(arranged):
        last = arranged[min(begin + CHUNK, len(arranged)) - 1]
        end = int(np.searchsorted(arranged, last | table.within, side="right"))
        yield arranged[begin:end]
        begin = end


def _ends(buckets: Hashes) -> Places:
    """For each member of sorted buckets, the place after the last member of its bucket."""
    ends = np.append(np.flatnonzero(buckets[1:] != buckets[:-1]) + 1, len(buckets))
    return np.repeat(ends, np.diff(ends, prepend=0))


def _greedy(pairs: tuple[Places, Places], count: int) -> Places:
    """Decide which rows are removed, given all near pairs. In order of priority, so that a row is decided before it decides."""
    earlier, later = pairs
    order = np.lexsort((earlier, later))
    duplicate_of = np.full(count, -1, np.int32)
    decided = duplicate_of.data  # reads single elements in a third of NumPy's time
    for begin in range(0, len(order), CHUNK):
        part = order[begin : begin + CHUNK]
        for one, other in zip(earlier[part].tolist(), later[part].tolist(), strict=True):
            if decided[one] < 0 and decided[other] < 0:
                decided[other] = one
    return duplicate_of


def _nearest(hashes: Hashes, kept: Hashes, distance: int) -> Places:
    """For each hash the place of one in `kept` within `distance`, or -1."""
    near = np.full(len(hashes), -1, np.int32)
    order = np.argsort(kept).astype(np.int32)
    ordered = kept[order]
    left = np.arange(len(hashes), dtype=np.int32)
    for table in tables(len(hashes), distance):
        arranged = np.sort(table.arrange(kept))
        asking = np.sort(table.arrange(hashes[left]))
        found = [_NO_PAIR]
        for begin in range(0, len(asking), CHUNK):
            part = asking[begin : begin + CHUNK]
            starts = np.searchsorted(arranged, part & ~table.within, side="left")
            stops = np.searchsorted(arranged, part | table.within, side="right")
            found.extend(_compare(part, starts, stops, arranged, distance, once=True))
        ours, theirs = (table.restore(np.concatenate([pair[side] for pair in found])) for side in (0, 1))
        # Find the asking places by their hashes, which are all different.
        by_hash = left[np.argsort(hashes[left])]
        near[by_hash[np.searchsorted(hashes[by_hash], ours)]] = order[np.searchsorted(ordered, theirs)]
        left = np.flatnonzero(near < 0).astype(np.int32)
    return near


_NO_PAIR: Final = (np.empty(0, np.uint64), np.empty(0, np.uint64))


def _compare(
    asking: Hashes, starts: Places, stops: Places, answering: Hashes, distance: int, *, once: bool = False
) -> Iterator[tuple[Hashes, Hashes]]:
    """Compare each of `asking` with `answering[start:stop]`, and yield pairs within `distance`.

    With `once`, one pair for each of `asking` is enough.
    """
    one, at, stop = asking, starts, stops
    open_ = at < stop
    while open_.any():
        if not open_.all():
            one, at, stop = one[open_], at[open_], stop[open_]
        other = answering[at]
        near = np.bitwise_count(one ^ other) <= distance
        if near.any():
            yield one[near], other[near]
        at = at + 1
        open_ = (at < stop) & ~near if once else at < stop
