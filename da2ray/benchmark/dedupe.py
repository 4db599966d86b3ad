"""How long near-duplicates take to find among made-up hashes, and whether all that were planted are found."""

import resource
import time
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from da2ray.quality.duplicates import DEFAULT_DISTANCE, find_duplicates, threads_to_use

EQUAL_SHARE: Final = 0.05
"""Of the rows: one and the same hash, as of empty pages."""

CLOUD_SHARE: Final = 0.02
"""Of the rows: all different, all within the distance of one hash or little more, as of one title card saved often."""

COPIES_SHARE: Final = 0.10
"""Of the rows: each up to the distance away from another row, which is like no third."""


def measure_dedupe(count: int, console: Console, *, distance: int = DEFAULT_DISTANCE) -> int:
    """Find the near-duplicates among `count` random hashes with planted ones: 1 where one was missed."""
    rng = np.random.default_rng(0)
    hashes, originals = _plant(count, distance, rng)
    threads = threads_to_use()
    began, cpu_began = time.perf_counter(), time.process_time()
    duplicate_of = find_duplicates(hashes, distance, threads)
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    removed = duplicate_of >= 0
    # Of each planted pair one must go; who is near whom beside that is chance.
    missed = int(np.count_nonzero(~removed[originals[:, 0]] & ~removed[originals[:, 1]]))
    wrong = int(np.count_nonzero(np.bitwise_count(hashes[removed] ^ hashes[duplicate_of[removed]]) > distance))
    wrong += int(np.count_nonzero(removed[duplicate_of[removed]]))
    console.print(
        f"{count:,} hashes at distance {distance}: {removed.sum():,} are near-duplicates; of {len(originals):,} planted pairs "
        f"{missed:,} were missed, {wrong:,} answers are wrong\n"
        f"{wall:.0f} s on {threads} threads, {cpu:.0f} s of CPU; peak memory {peak:.1f} GiB, the hashes included"
    )
    return int(missed + wrong > 0)


def _plant(count: int, distance: int, rng: np.random.Generator) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes in random order, and places (pairs, 2) that are within the distance of each other."""
    equal, cloud, copies = (int(count * share) for share in (EQUAL_SHARE, CLOUD_SHARE, COPIES_SHARE))
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    hashes[:equal] = hashes[0]
    start = equal + cloud
    hashes[equal:start] = _flip(np.repeat(hashes[-1], cloud), max(distance, 1), rng)
    hashes[start : start + copies] = _flip(hashes[start + copies : start + 2 * copies], distance, rng)
    order = rng.permutation(count)
    place = np.argsort(order)
    pairs = np.stack((np.arange(start, start + copies), np.arange(start + copies, start + 2 * copies)), axis=1)
    pairs = np.concatenate((pairs, np.stack((np.zeros(equal, np.int64), np.arange(equal)), axis=1)[1:]))
    return hashes[order], place[pairs]


def _flip(hashes: NDArray[np.uint64], most: int, rng: np.random.Generator) -> NDArray[np.uint64]:
    """The hashes with 0 to `most` of their bits changed."""
    flipped = hashes.copy()
    times = rng.integers(0, most + 1, len(hashes))
    for number in range(most):
        bit = np.uint64(1) << rng.integers(0, 64, len(hashes), dtype=np.uint64)
        flipped ^= np.where(times > number, bit, np.uint64(0))
    return flipped
