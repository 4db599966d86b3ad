"""Snapshots are numbered and immutable, share unchanged parts, and show each key once: that of the latest plan."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from da2ray.errors import UserError
from da2ray.labels import fold
from da2ray.labels.commits import commit_key, commit_shard
from da2ray.labels.parts import read_part
from da2ray.labels.shards.formats import build_shard
from da2ray.labels.snapshots import Snapshot, create_snapshot, list_snapshots, open_snapshot
from da2ray.storage import Store, open_store
from tests.labels.samples import FINGERPRINT, LostAnswers, commit, content, mixed


class Counting(LostAnswers):
    """Counts reads and writes by folder."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.gets: Counter[str] = Counter()
        self.created: Counter[str] = Counter()

    def get(self, key: str) -> bytes:
        self.gets[key.partition("/")[0]] += 1
        return self._store.get(key)

    def create(self, key: str, data: bytes) -> bool:
        done = self._store.create(key, data)
        self.created[key.partition("/")[0]] += done
        return done


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(fold, "SHARDS_PER_PART", 4)
    return open_store(str(tmp_path / "dataset"))


def live(store: Store, snapshot: Snapshot) -> dict[str, str]:
    """Key -> plan of all live rows."""
    rows = [row for part in snapshot.parts for row in read_part(store, part).select(["key", "plan"]).to_pylist()]
    assert len({row["key"] for row in rows}) == len(rows) == snapshot.rows
    return {row["key"]: row["plan"] for row in rows}


def test_a_snapshot_holds_and_counts_what_is_committed(store: Store) -> None:
    with pytest.raises(UserError, match=r"da2ray snapshots .* --create"):
        open_snapshot(store)
    rows, qs, _ = mixed()
    commit_shard(store, "p", 0, build_shard(rows, qs, "parquet"), FINGERPRINT)
    commit(store, ["x", "y"], shard=5)
    seen: list[tuple[int, int]] = []
    snapshot = create_snapshot(store, ["p"], FINGERPRINT, lambda done, total: seen.append((done, total)))
    assert (snapshot.number, snapshot.parent, snapshot.rows) == (1, None, 9)
    assert snapshot.by_status == {"failed": 1, "labelled": 7, "rejected": 1}
    assert snapshot.by_reason == {"too_small": 1, "truncated": 1}
    assert snapshot.fingerprints == (FINGERPRINT,)
    assert [(part.first_shard, part.last_shard) for part in snapshot.parts] == [(0, 0), (5, 5)]
    assert seen == [(1, 2), (2, 2)]
    assert open_snapshot(store) == snapshot == open_snapshot(store, 1)
    with pytest.raises(UserError, match="no snapshot 2"):
        open_snapshot(store, 2)


def test_nothing_new_makes_no_new_snapshot_and_reads_no_commit(store: Store) -> None:
    commit(store, ["a"])
    first = create_snapshot(store, ["p"], FINGERPRINT)
    counting = Counting(store)
    assert create_snapshot(counting, ["p"], FINGERPRINT) == first
    assert list_snapshots(store) == [1]
    assert counting.gets == {"snapshots": 1}
    assert not counting.created.total()


def test_parts_that_did_not_change_are_shared_and_not_read_again(store: Store) -> None:
    for shard in range(6):  # one part has shards 0 to 3, the other 4 to 7
        commit(store, [f"{shard}"], shard=shard)
    first = create_snapshot(store, ["p"], FINGERPRINT)
    commit(store, ["6"], shard=6)
    counting = Counting(store)
    second = create_snapshot(counting, ["p"], FINGERPRINT)
    assert (second.number, second.parent, second.rows) == (2, 1, 7)
    assert second.parts[0] == first.parts[0]
    assert counting.gets["commits"] == 3
    assert counting.created == {"index": 1, "snapshots": 1}
    assert live(store, first).keys() == {str(shard) for shard in range(6)}


def test_the_order_of_commits_does_not_show_in_the_index(tmp_path: Path, store: Store) -> None:
    names = []
    for order in ((0, 1, 2), (2, 0, 1)):
        other = open_store(str(tmp_path / str(order)))
        for shard in order:
            commit(store, [f"{shard}"], shard=shard)  # once, because a second commit would keep the first attempt
            other.put(commit_key("p", shard), store.get(commit_key("p", shard)))
        names.append([part.name for part in create_snapshot(other, ["p"], FINGERPRINT).parts])
    assert names[0] == names[1]


def test_rows_of_a_later_plan_take_the_place_of_earlier_ones(store: Store) -> None:
    commit(store, ["a", "b"], plan="old", shard=0)
    commit(store, ["c", "d"], plan="old", shard=4)
    first = create_snapshot(store, ["old"], FINGERPRINT)
    commit(store, ["b", "e"], plan="new", shard=0, seed=1)
    second = create_snapshot(store, ["old", "new"], FINGERPRINT)
    assert live(store, second) == {"a": "old", "b": "new", "c": "old", "d": "old", "e": "new"}
    assert [part.superseded for part in second.parts] == [1, 0, 0]
    assert second.parts[1].name == first.parts[1].name  # no row changed, so content and object are the same
    assert live(store, first) == dict.fromkeys("abcd", "old")  # an older snapshot never changes
    assert create_snapshot(store, ["old", "new"], FINGERPRINT) == second

    commit(store, ["a", "c", "d"], plan="newest", shard=0)
    third = create_snapshot(store, ["old", "new", "newest"], FINGERPRINT)
    assert live(store, third) == {"a": "newest", "b": "new", "c": "newest", "d": "newest", "e": "new"}
    assert [part.plan for part in third.parts] == ["new", "newest"]  # no row of `old` is live
    assert [found.superseded for found in (first, second, third)] == [0, 1, 4]
    assert third.rows + third.superseded == 9  # all committed rows


def test_a_row_comes_back_when_what_superseded_it_is_gone(store: Store) -> None:
    commit(store, ["a", "b"], plan="old")
    commit(store, ["b"], plan="new")
    create_snapshot(store, ["old", "new"], FINGERPRINT)
    store.delete([commit_key("new", 0)])  # as `repair` does
    assert live(store, create_snapshot(store, ["old", "new"], FINGERPRINT)) == {"a": "old", "b": "old"}


def test_a_repaired_commit_is_read_again(store: Store) -> None:
    commit(store, ["a"])
    first = create_snapshot(store, ["p"], FINGERPRINT)
    store.delete([commit_key("p", 0)])
    outcome = commit(store, ["a"])
    second = create_snapshot(store, ["p"], FINGERPRINT)
    assert second.parts[0].name != first.parts[0].name
    assert read_part(store, second.parts[0])["object"].to_pylist() == [outcome.object]


def test_two_writers_at_once_make_no_number_twice(store: Store) -> None:
    commit(store, ["a"])

    class Raced(LostAnswers):
        """Another writer, which saw one more commit, takes our number just before us."""

        lost = False

        def create(self, key: str, data: bytes) -> bool:
            if key.startswith("snapshots/") and not self.lost:
                self.lost = True
                commit(store, ["late"], shard=1)
                create_snapshot(store, ["p"], FINGERPRINT)
            return self._store.create(key, data)

    last = create_snapshot(Raced(store), ["p"], FINGERPRINT)
    assert (last.number, last.rows) == (1, 2)  # theirs; ours was folded earlier and lacks that row
    with ThreadPoolExecutor(4) as pool:
        commit(store, ["b"], shard=9)
        made = list(pool.map(lambda _: create_snapshot(store, ["p"], FINGERPRINT), range(4)))
    assert {snapshot.number for snapshot in made} == {2}
    assert list_snapshots(store) == [1, 2]


def test_a_plan_that_another_writer_made_meanwhile_is_not_dropped(store: Store) -> None:
    commit(store, ["a"], plan="p")
    commit(store, ["a", "b"], plan="q", seed=1)
    asked = []

    def plans() -> list[str]:
        asked.append(len(asked))
        if len(asked) > 1:
            return ["p", "q"]
        create_snapshot(store, ["p", "q"], FINGERPRINT)  # by a job that made plan q after this job listed the plans
        return ["p"]

    assert create_snapshot(store, plans, FINGERPRINT).plans == ("p", "q")
    assert list_snapshots(store) == [1]
    assert live(store, open_snapshot(store)) == {"a": "q", "b": "q"}


def test_keys_of_later_plans_may_be_more_than_two_gigabytes(store: Store) -> None:
    """60 million images have 2.3 GB of keys, more than Arrow can hold in one set. Here one chunk of keys is repeated 36 times."""
    chunk = pa.array([f"{number:01000d}" for number in range(64_000)])
    later = pa.chunked_array([*[chunk] * 36, ["b"]])
    assert later.nbytes > 2**31
    rows, _, _ = content(["a", "b", f"{7:01000d}", "c"])
    assert fold.in_any(rows["key"], later).tolist() == [1, 2]


def test_a_lost_answer_makes_one_snapshot(store: Store) -> None:
    commit(store, ["a"])
    assert create_snapshot(LostAnswers(store), ["p"], FINGERPRINT).number == 1
    assert list_snapshots(store) == [1]


def test_an_empty_dataset_has_an_empty_snapshot(store: Store) -> None:
    snapshot = create_snapshot(store, ["p"], FINGERPRINT)
    assert (snapshot.rows, snapshot.parts) == (0, ())


def test_a_corrupt_part_is_refused(store: Store) -> None:
    commit(store, ["a"])
    part = create_snapshot(store, ["p"], FINGERPRINT).parts[0]
    store.put(part.key, store.get(part.key)[:-1] + b"x")
    with pytest.raises(OSError, match="corrupt"):
        read_part(store, part)


def test_a_snapshot_of_a_later_format_or_of_rubbish_is_refused(store: Store) -> None:
    store.put("snapshots/000001.json", b'{"format_version": 2}')
    with pytest.raises(UserError, match="update da2ray"):
        open_snapshot(store)
    store.put("snapshots/000002.json", b'{"format_version": 1}')
    with pytest.raises(OSError, match="not a snapshot"):
        open_snapshot(store)
