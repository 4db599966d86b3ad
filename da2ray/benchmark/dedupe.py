"""Measure how long the search for near-duplicates takes on made-up hashes, and whether it finds all planted ones."""

import resource
import time
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from da2ray.quality.duplicates import DEFAULT_DISTANCE, find_duplicates, threads_to_use

EQUAL_SHARE: Final = 0.05
"""Share of the rows that have one hash in common, like empty pages."""

CLOUD_SHARE: Final = 0.02
"""Share of the rows that differ but lie around one hash, at most the distance away, like copies of one title card."""

COPIES_SHARE: Final = 0.10
"""Share of the rows that each lie within the distance of one other row, and near no third."""


def measure_dedupe(count: int, console: Console, *, distance: int = DEFAULT_DISTANCE) -> int:
    """Find the near-duplicates among `count` random hashes with planted ones. Return 1 if it misses one or answers wrong."""
    rng = np.random.default_rng(0)
    hashes, originals = _plant(count, distance, rng)
    threads = threads_to_use()
    began, cpu_began = time.perf_counter(), time.process_time()
    duplicate_of = find_duplicates(hashes, distance, threads)
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    removed = duplicate_of >= 0
    # One of each planted pair must be removed. Other near pairs are chance.
    missed = int(np.count_nonzero(~removed[originals[:, 0]] & ~removed[originals[:, 1]]))
    wrong = int(np.count_nonzero(np.bitwise_count(hashes[removed] ^ hashes[duplicate_of[removed]]) > distance))
    wrong += int(np.count_nonzero(removed[duplicate_of[removed]]))
    console.print(
        f"{count:,} hashes at distance {distance}: {removed.sum():,} are near-duplicates; of {len(originals):,} planted pairs "
        f"{missed:,} were missed, {wrong:,} answers are wrong\n"
        f"{wall:.0f} s on {threads} threads, {cpu:.0f} s of CPU; peak memory {peak:.1f} GiB, including the hashes"
    )
    return int(missed + wrong > 0)


def _plant(count: int, distance: int, rng: np.random.Generator) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Make hashes in random order, and the places (pairs, 2) of planted pairs within the distance of each other."""
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
