"""`gc` removes exactly the objects that neither a commit nor a snapshot names, once they are old enough."""

import os
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from da2ray.errors import CorruptError, UserError
from da2ray.labels.commits import commit_key, commit_shard, object_key, read_commit
from da2ray.labels.kept_rows import KEPT
from da2ray.labels.leases import Holder, Lease
from da2ray.labels.parts import read_part
from da2ray.labels.reader import open_labels
from da2ray.labels.snapshots import create_snapshot, open_snapshot, snapshot_key
from da2ray.labels.upkeep.garbage import TEMPORARY, Collected, collect
from da2ray.labels.views import View, write_view
from da2ray.storage import Store, open_store
from da2ray.storage.local import TEMPORARY as TEMPORARY_NAME
from tests.labels.samples import FINGERPRINT, LostAnswers, built, commit, info
from tests.s3_server import S3Server

DAY = timedelta(hours=24)
NOW = timedelta(0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store(str(tmp_path / "dataset"))
    fill(store)
    return store


def fill(store: Store) -> None:
    """A dataset of three shards and a snapshot, with a foreign file in each folder."""
    store.put("dataset.json", info().model_dump_json().encode())
    for shard in range(3):
        commit(store, [f"{shard}"], shard=shard)
    create_snapshot(store, ["p"], FINGERPRINT)
    for key in (
        "plans/p.parquet",
        "runs/r/progress.json",
        "shards/p/notes.txt",
        "index/notes.parquet",
        "leases/README",
    ):
        store.put(key, b"someone's")


def keys(store: Store) -> set[str]:
    return {key for batch in store.list() for key in batch["key"].to_pylist()}


def orphan(store: Store, shard: int = 1) -> str:
    """Write the objects of an attempt that lost or was killed before its commit."""
    key = object_key("p", shard, os.urandom(8).hex(), "parquet")
    store.put(key, built().data)
    return key


def lease(store: Store, span: int, expires: timedelta) -> str:
    key = f"leases/p/{span:06d}-000001.json"
    held = Lease(holder=Holder.this_process("r"), expires=datetime.now(UTC) + expires)
    store.put(key, held.model_dump_json().encode())
    return key


def age(store: Store, found: set[str], days: float = 2) -> None:
    written = time.time() - days * 86400
    for key in found:
        os.utime(Path(store.url) / key, (written, written))


def removed(collected: Collected) -> dict[str, int]:
    return {folder: tally.objects for folder, tally in collected.removed.items() if tally.objects}


def test_what_is_named_or_not_ours_stays(store: Store) -> None:
    before = keys(store)
    age(store, before)
    collected = collect(store, NOW, dry_run=False)
    assert removed(collected) == {}
    assert (collected.young.objects, collected.unreadable) == (0, [])
    assert keys(store) == before


def test_orphans_go_and_nothing_else(store: Store) -> None:
    before = keys(store)
    # Two attempts at a committed shard, one at a shard without a commit, and one of a plan without commits.
    orphans = {orphan(store), orphan(store), orphan(store, 9), object_key("q", 0, "0" * 16, "zarr")}
    store.put(object_key("q", 0, "0" * 16, "zarr"), b"x")
    part = f"index/{'0' * 32}.parquet"
    store.put(part, b"of a snapshot that was never made")
    over, held = lease(store, 0, -timedelta(hours=1)), lease(store, 1, timedelta(hours=1))
    store.put("leases/p/000002-000001.json", b"broken")
    everything = keys(store)
    size = sum(len(store.get(key)) for key in orphans)

    dry = collect(store, NOW, dry_run=True)
    assert removed(dry) == {"shards": 4, "index": 1, "leases": 2}
    assert dry.removed["shards"].bytes == size
    assert keys(store) == everything

    collected = collect(store, NOW, dry_run=False)
    assert collected == dry
    assert keys(store) == before | {held}
    assert over not in keys(store)
    assert removed(collect(store, NOW, dry_run=False)) == {}
    assert [label.key for label in open_labels(store.url)] == ["0", "1", "2"]


def test_the_grace_is_respected(store: Store) -> None:
    old, young = orphan(store), orphan(store)
    part = f"index/{'0' * 32}.parquet"
    store.put(part, b"x")
    leases = {hours: lease(store, hours, -timedelta(hours=hours)) for hours in (23, 25)}
    age(store, {old})
    collected = collect(store, DAY, dry_run=False)
    assert removed(collected) == {"shards": 1, "leases": 1}
    assert (collected.young.objects, collected.young.bytes) == (2, len(store.get(young)) + 1)
    assert {young, part, leases[23]} < keys(store)
    assert {old, leases[25]}.isdisjoint(keys(store))


def test_lists_of_views_go_when_no_view_names_them_any_more(store: Store) -> None:
    def make(*rows: int) -> View:
        kept = pa.table([list(rows), [str(row) for row in rows], ["train"] * len(rows)], schema=KEPT)
        view = View(name="v", created="", snapshot=1, rows=3, rules=(), val_share=0)
        return write_view(store, view, kept, replace=True)

    replaced, current = make(0, 1), make(1, 2)
    unnamed, young = (f"views/w-{digit * 32}.parquet" for digit in "01")
    for key in (unnamed, young, "views/notes.parquet", "views/notes.txt"):
        store.put(key, b"of a writer that was killed, or someone's")
    age(store, keys(store) - {young})
    before = keys(store)
    assert removed(collect(store, DAY, dry_run=False)) == {"views": 2}
    assert keys(store) == before - {replaced.object, unnamed}
    assert [label.key for label in open_labels(store.url, view="v")] == ["1", "2"]

    store.put("views/broken.json", b"{}")
    store.delete(["views/v.json"])
    with pytest.raises(CorruptError, match=r"broken\.json"):
        collect(store, NOW, dry_run=False)
    assert current.object in keys(store), "what a broken view names is not known"
    store.delete(["views/broken.json"])
    assert removed(collect(store, NOW, dry_run=False)) == {"views": 2}


def test_temporary_files_of_killed_writers_go(store: Store) -> None:
    root = Path(store.url)
    folders = [root, root / "shards" / "p", root / "commits" / "p", root / "runs" / "r"]
    old, young = ([folder / f"{TEMPORARY_NAME}{name}" for folder in folders] for name in ("old", "young"))
    for path in old + young:
        path.write_bytes(b"half")
    before = keys(store)
    age(store, {str(path.relative_to(root)) for path in old})
    assert removed(collect(store, DAY, dry_run=True)) == {TEMPORARY: 4}
    assert all(path.exists() for path in old)
    collected = collect(store, DAY, dry_run=False)
    assert (removed(collected), collected.removed[TEMPORARY].bytes) == ({TEMPORARY: 4}, 16)
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in young)
    assert keys(store) == before


def test_what_an_old_snapshot_names_stays(store: Store) -> None:
    """Label shard 1 again, so that only snapshot 1 names its first object and part."""
    first = read_commit(store, "p", 1).object
    store.delete([commit_key("p", 1)])  # as `repair` does
    assert removed(collect(store, NOW, dry_run=False)) == {}, "nor is the object of a shard without commit removed"
    commit(store, ["1"], shard=1)
    lost = orphan(store)
    create_snapshot(store, ["p"], FINGERPRINT)
    assert removed(collect(store, NOW, dry_run=False)) == {"shards": 1}
    assert lost not in keys(store)
    assert first in keys(store)
    for number in (1, 2):
        labels = open_labels(store.url, number)
        assert [label.key for label in labels if label.depth is not None] == ["0", "1", "2"]

    store.delete([snapshot_key(1)])  # a user no longer wants it
    assert removed(collect(store, NOW, dry_run=False)) == {"shards": 1, "index": 1}
    assert first not in keys(store)
    assert len(open_labels(store.url)) == 3


def test_commits_are_read_only_where_a_shard_has_several_objects(store: Store) -> None:
    class Counting(LostAnswers):
        def __init__(self, store: Store) -> None:
            super().__init__(store)
            self.gets: Counter[str] = Counter()

        def get(self, key: str) -> bytes:
            self.gets[key.partition("/")[0]] += 1
            return self._store.get(key)

    counting = Counting(store)
    collect(counting, NOW, dry_run=False)
    assert counting.gets == {"snapshots": 1}
    orphan(store, 1)
    counting.gets.clear()
    assert removed(collect(counting, NOW, dry_run=False)) == {"shards": 1}
    assert (counting.gets["commits"], counting.gets["index"]) == (1, 1)


def test_where_names_cannot_be_read_nothing_of_theirs_goes(store: Store) -> None:
    of_broken_commit, of_other = orphan(store, 1), orphan(store, 5)
    data = store.get(commit_key("p", 1))
    store.put(commit_key("p", 1), b"broken")
    collected = collect(store, NOW, dry_run=False)
    assert (removed(collected), collected.unreadable) == ({"shards": 1}, [commit_key("p", 1)])
    assert of_broken_commit in keys(store)
    assert of_other not in keys(store)

    store.put(commit_key("p", 1), data)
    (part,) = open_snapshot(store).parts
    index = store.get(part.key)
    store.put(part.key, b"broken")
    collected = collect(store, NOW, dry_run=False)
    assert (removed(collected), collected.unreadable) == ({}, [part.key])

    store.put(part.key, index)
    snapshot = store.get(snapshot_key(1))
    for broken, error in ((b"{", CorruptError), (b'{"format_version": 99}', UserError)):
        store.put(snapshot_key(1), broken)
        with pytest.raises(error):
            collect(store, NOW, dry_run=False)
    assert of_broken_commit in keys(store)
    store.put(snapshot_key(1), snapshot)
    assert removed(collect(store, NOW, dry_run=False)) == {"shards": 1}


def test_an_attempt_that_commits_while_gc_runs_keeps_its_object(store: Store) -> None:
    class Racing(LostAnswers):
        """`gc` lists objects before another writer creates a commit, and commits before it creates a snapshot."""

        def list(self, prefix: str = "") -> object:
            if prefix == "commits":
                store.create(commit_key("p", 7), late)
                os.utime(Path(store.url) / won, (0, 0))
            if prefix == "snapshots":
                create_snapshot(store, ["p"], FINGERPRINT)
                store.delete([commit_key("p", 7)])
            return self._store.list(prefix)

    won = commit_shard(store, "p", 7, built(shard=7), FINGERPRINT).object
    late = store.get(commit_key("p", 7))
    store.delete([commit_key("p", 7)])
    assert removed(collect(Racing(store), DAY, dry_run=False)) == {}
    assert won in keys(store)
    assert won in {key for part in open_snapshot(store).parts for key in read_part(store, part)["object"].to_pylist()}


def test_a_leftover_part_that_a_new_snapshot_takes_is_young_again(store: Store) -> None:
    commit(store, ["late"], shard=8)
    made = create_snapshot(store, ["p"], FINGERPRINT)
    (part,) = made.parts
    store.delete([snapshot_key(made.number)])  # as if the writer was killed before its last step
    age(store, {part.key})
    assert removed(collect(store, DAY, dry_run=True)) == {"index": 1}
    create_snapshot(store, ["p"], FINGERPRINT)
    store.delete([snapshot_key(made.number)])
    assert removed(collect(store, DAY, dry_run=True)) == {}


def test_progress_is_reported(store: Store) -> None:
    for _ in range(3):
        orphan(store)
    seen: list[tuple[int, int]] = []
    collect(store, NOW, dry_run=False, on_progress=lambda done, total: seen.append((done, total)))
    assert (3, 3) in seen
    assert all(done <= total for done, total in seen)


@pytest.mark.parametrize("client", ["obstore", "fsspec"])
def test_on_s3(s3: S3Server, client: str) -> None:
    store = open_store(f"{s3.create_bucket()}/labels", client)
    fill(store)
    before = keys(store)
    orphan(store)
    lease(store, 0, -timedelta(hours=1))
    collected = collect(store, DAY, dry_run=False)
    assert (removed(collected), collected.young.objects) == ({}, 1)
    assert removed(collect(store, NOW, dry_run=False)) == {"shards": 1, "leases": 1}
    assert keys(store) == before
