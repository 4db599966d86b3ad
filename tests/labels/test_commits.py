"""Data comes first and the commit last; exactly one of any number of attempts is committed (invariant 2)."""

import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from da2ray.labels.commits import commit_key, commit_shard, list_commits, read_commit, serialise
from da2ray.labels.schema import INDEX
from da2ray.storage import Store, open_store
from tests.labels.samples import FINGERPRINT, LostAnswers, built


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "dataset"))


def keys(store: Store, prefix: str) -> list[str]:
    return [key for batch in store.list(prefix) for key in batch["key"].to_pylist()]


def test_a_commit_holds_everything_that_verifies_its_shard(store: Store) -> None:
    shard = built()
    outcome = commit_shard(store, "p", 3, shard, FINGERPRINT)
    assert outcome.committed
    commit = read_commit(store, "p", 3)
    assert (commit.attempt, commit.object, commit.fingerprint) == (outcome.attempt, outcome.object, FINGERPRINT)
    data = store.get(commit.object)
    assert data == shard.data
    assert (commit.size, commit.checksum.value) == (len(data), f"{zlib.crc32(data):08x}")
    assert commit.rows.schema.equals(INDEX)
    objects = dict(zip(commit.rows["status"].to_pylist(), commit.rows["object"].to_pylist(), strict=True))
    assert objects == {"labelled": outcome.object, "rejected": None, "failed": None}
    unchanged = [name for name in INDEX.names if name != "object"]
    assert commit.rows.select(unchanged).equals(shard.rows.select(unchanged))


def test_a_second_attempt_leaves_the_first_in_place(store: Store) -> None:
    first = commit_shard(store, "p", 0, built(), FINGERPRINT)
    second = commit_shard(store, "p", 0, built(), FINGERPRINT)
    assert (first.committed, second.committed) == (True, False)
    assert (second.attempt, second.object) == (first.attempt, first.object)
    assert read_commit(store, "p", 0).attempt == first.attempt
    assert len(keys(store, "shards")) == 2  # the loser's data stays for gc


def test_of_many_attempts_at_once_exactly_one_is_committed(store: Store) -> None:
    start = threading.Barrier(8)

    def attempt(_: int) -> bool:
        shard = built()
        start.wait()
        return commit_shard(store, "p", 0, shard, FINGERPRINT).committed

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1


def test_a_lost_answer_is_recognised_as_our_own_commit(store: Store) -> None:
    outcome = commit_shard(LostAnswers(store), "p", 0, built(), FINGERPRINT)
    assert outcome.committed
    assert read_commit(store, "p", 0).attempt == outcome.attempt


def test_data_is_there_before_the_commit(store: Store) -> None:
    class Dies(LostAnswers):
        def create(self, *_: object) -> bool:
            raise OSError("killed between data and commit")

    with pytest.raises(OSError, match="killed"):
        commit_shard(Dies(store), "p", 0, built(), FINGERPRINT)
    assert len(keys(store, "shards")) == 1
    assert list(list_commits(store, "p")) == []
    assert commit_shard(store, "p", 0, built(), FINGERPRINT).committed


def test_listing_finds_committed_shards_without_reading_them(store: Store) -> None:
    for shard in (7, 0, 123456789):
        store.create(commit_key("p", shard), b"not read")
    store.put("commits/p/notes.txt", b"someone's")
    assert sorted(entry.shard for entry in list_commits(store, "p")) == [0, 7, 123456789]


def test_equal_commits_are_equal_bytes(store: Store) -> None:
    commit_shard(store, "p", 0, built(), FINGERPRINT)
    commit = read_commit(store, "p", 0)
    assert serialise(commit) == store.get(commit_key("p", 0))


def test_what_is_no_commit_of_the_shard_is_refused(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        read_commit(store, "p", 0)
    store.put(commit_key("p", 0), b"PAR1 rubbish PAR1")
    with pytest.raises(OSError, match="da2ray repair"):
        read_commit(store, "p", 0)
    commit_shard(store, "p", 1, built(), FINGERPRINT)
    store.put(commit_key("p", 2), store.get(commit_key("p", 1)))
    with pytest.raises(OSError, match="shard 1"):
        read_commit(store, "p", 2)
