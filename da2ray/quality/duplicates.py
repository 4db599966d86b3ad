"""Near-duplicates by 64-bit hash: which rows go, so that of each group of look-alikes the best one stays.

A row goes where a row that stays, and comes before it in order of priority, lies within a Hamming distance d. So what
stays is pairwise further apart than d, everything that goes is within d of something that stays (no chains: A ~ B ~ C
does not take C away when only B was like it, and B went), and the result depends on the hashes and their order alone.

Pairs are found without looking at all of them (Manku, Jain, Das Sarma: Detecting near-duplicates for web crawling,
2007). The 64 bits are cut into d + k blocks; two hashes within d agree exactly in at least k of them. So for every choice
of k blocks the hashes are sorted with those blocks first, and only rows that agree there are compared. The Hamming
distance does not change when bits change places, so what is sorted is the hash itself, its blocks reordered: a sort of
plain integers, nothing to carry along, nothing to gather. k is chosen by the number of hashes.

Look-alikes by the million (empty pages, the same title card) would make that quadratic where they agree. Equal hashes
are one before anything else. Where a bucket still holds too many pairs, the hashes are halved by priority: the first
half is decided, what is near its survivors leaves the second half, the rest is decided. A dense cloud has few
survivors, so every halving leaves little of it.
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
"""Of 62 million unrelated images, hashes of 64 random bits bring 71 pairs this close, at 6 some 8,600, at 9 (the "below 10"
of shared/facts/depth-anything-v2.md, for dHash on small sets) 3.4 million: C(62M, 2) pairs times the share of 64-bit numbers with
so few set bits. What it is to find lies within 4: photographs saved again at quality 50, half the size and 10 % brighter
(`da2ray.quality.phash`)."""

MAX_DISTANCE: Final = 10
"""Above, unrelated images go by the million, and the tables for every choice of blocks are too many."""

SORT_COST: Final = 100.0
COMPARE_COST: Final = 14.0
"""Nanoseconds to bring one hash into one table's order, and to compare one pair, on one core with numpy 2.4; only their
ratio matters, for the choice of k."""

FEW: Final = 1 << 18
"""Pairs that are looked at in any case: all that 724 hashes have, so that halving ends."""

COMPARED_A_HASH: Final = 16
"""Pairs of one table that are compared without halving first, for each hash; where hashes are random `tables` makes it 5 at most
up to a distance of 7, and beyond, where it makes more of them, four times what it makes."""

FOUND_A_HASH: Final = 1 / 2
"""Pairs within the distance that may be found without halving: what bounds the memory for pairs, some 40 bytes each while
they are decided on."""

MOST_THREADS: Final = 4
"""Each works on a table, which takes 8 bytes a hash, and more of them wait for memory."""

CHUNK: Final = 1 << 18
"""Hashes worked on in one go: the temporary arrays are 2 MB each and stay in the cache."""

MOST: Final = 2**31 - 1
"""Hashes that can be compared: their places are kept in 32 bits."""

Hashes = NDArray[np.uint64]
Places = NDArray[np.signedinteger]


@dataclass(frozen=True, slots=True)
class Table:
    """One choice of blocks: bits (first, width) of the hash, the chosen blocks at its end; `bits` they have in all.

    `before`: masks, of arranged hashes, of blocks that come before the last chosen one and are not chosen. A pair that agrees in
    one of them is in the bucket of a former table too, so that each pair is told once.
    """

    blocks: tuple[tuple[int, int], ...]
    bits: int
    before: tuple[int, ...] = ()

    def arrange(self, hashes: Hashes) -> Hashes:
        """The hashes with the chosen blocks as their highest bits."""
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
        """What `arrange` was given."""
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
        """The bits by which members of one bucket may differ."""
        return np.uint64((1 << (HASH_BITS - self.bits)) - 1)

    def told_before(self, left: Hashes, right: Hashes) -> NDArray[np.bool_]:
        """Which pairs of arranged hashes, that agree in the chosen blocks, a former table has too."""
        differing, told = left ^ right, np.zeros(len(left), bool)
        for mask in self.before:
            told |= (differing & np.uint64(mask)) == 0
        return told


def threads_to_use() -> int:
    """For `find_duplicates`: what this machine has, up to `MOST_THREADS`."""
    return min(MOST_THREADS, usable_cores())


def find_duplicates(hashes: Hashes, distance: int, threads: int = 1) -> Places:
    """For each row the row that it duplicates, -1 where it stays.

    Args:
        hashes: uint64 (n), in order of priority: of two that are alike the first stays.
        distance: bits that may differ, 0 to MAX_DISTANCE.
        threads: tables worked on at once; each takes 8 bytes a hash, and all the rest some 30.

    Returns:
        int32 (n): places in `hashes`, of rows that stay.

    Raises:
        ValueError: another distance, or more than `MOST` hashes.
    """
    if not 0 <= distance <= MAX_DISTANCE:
        raise ValueError(f"a distance is 0 to {MAX_DISTANCE}, not {distance}")
    if len(hashes) > MOST:
        raise ValueError(f"{len(hashes):,} hashes are more than {MOST:,}")
    # Equal hashes are one, at the place of the first: a million empty pages cost a sort.
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
    """Places of hashes that came before, and for each where it first did."""
    order = np.argsort(hashes, kind="stable").astype(np.int32)
    ordered = hashes[order]
    new = np.append(True, ordered[1:] != ordered[:-1])[: len(hashes)]
    group = np.cumsum(new, dtype=np.int32)[~new] - 1
    return order[~new], order[new][group]


def tables(count: int, distance: int) -> list[Table]:
    """The cheapest set of tables in which any two of `count` random hashes within `distance` share a bucket."""

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
    """`find_duplicates` of hashes that are all different."""
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
    """Places (earlier, later) of all pairs within `distance`; None where there are too many."""
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
                new = ~table.told_before(left, right)
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
    """The sorted hashes in parts of `CHUNK` and what is left of a part's last bucket."""
    begin = 0
    while begin < len(arranged):
        last = arranged[min(begin + CHUNK, len(arranged)) - 1]
        end = int(np.searchsorted(arranged, last | table.within, side="right"))
        yield arranged[begin:end]
        begin = end


def _ends(buckets: Hashes) -> Places:
    """For each of the sorted buckets' members where its bucket ends: the place of the first that is no member."""
    ends = np.append(np.flatnonzero(buckets[1:] != buckets[:-1]) + 1, len(buckets))
    return np.repeat(ends, np.diff(ends, prepend=0))


def _greedy(pairs: tuple[Places, Places], count: int) -> Places:
    """Who goes, by all pairs that are near each other: in order of priority, so that who decides is decided before."""
    earlier, later = pairs
    order = np.lexsort((earlier, later))
    duplicate_of = np.full(count, -1, np.int32)
    decided = duplicate_of.data  # one element of it is read in a third of the time that NumPy takes
    for begin in range(0, len(order), CHUNK):
        part = order[begin : begin + CHUNK]
        for one, other in zip(earlier[part].tolist(), later[part].tolist(), strict=True):
            if decided[one] < 0 and decided[other] < 0:
                decided[other] = one
    return duplicate_of


def _nearest(hashes: Hashes, kept: Hashes, distance: int) -> Places:
    """For each hash one of `kept` within `distance`, as a place in it; -1 where there is none."""
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
        # Who asked, by its hash: they are all different.
        by_hash = left[np.argsort(hashes[left])]
        near[by_hash[np.searchsorted(hashes[by_hash], ours)]] = order[np.searchsorted(ordered, theirs)]
        left = np.flatnonzero(near < 0).astype(np.int32)
    return near


_NO_PAIR: Final = (np.empty(0, np.uint64), np.empty(0, np.uint64))


def _compare(
    asking: Hashes, starts: Places, stops: Places, answering: Hashes, distance: int, *, once: bool = False
) -> Iterator[tuple[Hashes, Hashes]]:
    """Pairs within `distance`: each of `asking` against `answering[start:stop]`; `once`: one pair for each is enough."""
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
