"""Near-duplicates: rows that stay are apart, removed rows are near a row that stays, and the better of two rows stays."""

import time

import numpy as np
import pytest
from rich.console import Console

from da2ray.benchmark.dedupe import measure_dedupe
from da2ray.quality import duplicates
from da2ray.quality.duplicates import HASH_BITS, MAX_DISTANCE, find_duplicates, tables


def one_by_one(hashes: np.ndarray, distance: int) -> np.ndarray:
    """The definition, one row after the other: True if the row is removed."""
    goes = np.zeros(len(hashes), bool)
    for place in range(1, len(hashes)):
        kept = hashes[:place][~goes[:place]]
        goes[place] = (np.bitwise_count(kept ^ hashes[place]) <= distance).any()
    return goes


def look_alikes(count: int, originals: int, flips: int, seed: int = 0) -> np.ndarray:
    """Hashes made from a few originals, each with up to `flips` bits changed."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, originals, dtype=np.uint64)[rng.integers(0, originals, count)]
    for _ in range(flips):
        bit = np.uint64(1) << rng.integers(0, 64, count, dtype=np.uint64)
        hashes ^= np.where(rng.random(count) < 0.5, bit, np.uint64(0))
    return hashes


@pytest.fixture(params=["at once", "halved"])
def halving(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take both paths: all pairs at once, and halving down to a handful of hashes."""
    if request.param == "halved":
        monkeypatch.setattr(duplicates, "FEW", 50)
        monkeypatch.setattr(duplicates, "COMPARED_A_HASH", 1)
        monkeypatch.setattr(duplicates, "FOUND_A_HASH", 0.01)


@pytest.mark.usefixtures("halving")
@pytest.mark.parametrize("distance", [0, 1, 2, 4, 5, 8, MAX_DISTANCE])
@pytest.mark.parametrize("threads", [1, 2])
def test_removed_rows_are_those_that_comparing_one_by_one_removes(distance: int, threads: int) -> None:
    hashes = look_alikes(1500, 200, 6, seed=distance)
    found = find_duplicates(hashes, distance, threads)
    gone = np.flatnonzero(found >= 0)
    np.testing.assert_array_equal(found >= 0, one_by_one(hashes, distance))
    assert 0 < len(gone) < len(hashes)
    assert (found[gone] < gone).all()
    assert (found[found[gone]] < 0).all()
    assert (np.bitwise_count(hashes[gone] ^ hashes[found[gone]]) <= distance).all()


def test_a_chain_removes_only_rows_near_a_row_that_stays() -> None:
    chain = np.array([0b0, 0b1, 0b11, 0b111, 0b1111], np.uint64)  # each one bit from the next
    assert find_duplicates(chain, 1).tolist() == [-1, 0, -1, 2, -1]
    assert find_duplicates(chain[::-1].copy(), 1).tolist() == [-1, 0, -1, 2, -1]
    assert find_duplicates(chain, 4).tolist() == [-1, 0, 0, 0, 0]


def test_no_hash_one_hash_and_distance_zero() -> None:
    assert find_duplicates(np.empty(0, np.uint64), 4).tolist() == []
    assert find_duplicates(np.array([2**64 - 1], np.uint64), 4).tolist() == [-1]
    assert find_duplicates(np.array([5, 4, 5, 5], np.uint64), 0).tolist() == [-1, -1, 0, 0]
    with pytest.raises(ValueError, match="0 to 10"):
        find_duplicates(np.array([1], np.uint64), 11)


@pytest.mark.parametrize("distance", range(1, MAX_DISTANCE + 1))
def test_exactly_one_table_reports_a_pair_within_the_distance_and_reordering_bits_can_be_undone(
    distance: int,
) -> None:
    rng = np.random.default_rng(distance)
    one = rng.integers(0, 2**64, 500, dtype=np.uint64)
    other = one.copy()
    for place in range(len(other)):
        for bit in rng.choice(HASH_BITS, distance, replace=False):
            other[place] ^= np.uint64(1 << int(bit))
    for count in (100, 10**6, 10**8):
        found = np.zeros(len(one), int)
        for table in tables(count, distance):
            left, right = table.arrange(one), table.arrange(other)
            np.testing.assert_array_equal(table.restore(left), one)
            np.testing.assert_array_equal(np.bitwise_count(left ^ right), distance)
            found += (table.buckets(left) == table.buckets(right)) & ~table.in_earlier_table(left, right)
        assert (found == 1).all()


def test_equal_and_dense_hashes_are_not_compared_pair_by_pair() -> None:
    """All pairs would be 3e10 for the equal and 5e9 for the dense hashes, in each of ten or more tables."""
    cloud = np.unique(look_alikes(500_000, 1, 8))[:100_000]
    hashes = np.concatenate((np.full(250_000, 7, np.uint64), np.random.default_rng(0).permutation(cloud)))
    began = time.process_time()
    found = find_duplicates(hashes, 8)
    assert time.process_time() - began < 60
    assert (found[1:250_000] == 0).all()
    assert (found < 0).sum() < len(hashes) / 100


def test_the_benchmark_finds_every_pair_that_it_planted(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(record=True, width=200)
    assert measure_dedupe(20_000, console) == 0
    assert " of 2,999 planted pairs 0 were missed, 0 answers are wrong" in console.export_text()
    monkeypatch.setattr("da2ray.benchmark.dedupe.find_duplicates", lambda hashes, *_: np.full(len(hashes), -1))
    assert measure_dedupe(20_000, console) == 1
