"""`verify` finds and names every kind of damage. After `repair` a run labels exactly the broken shards again."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from da2ray.errors import StoreError
from da2ray.labels.commits import Commit, commit_key, commit_shard, read_commit, serialise
from da2ray.labels.reader import open_labels
from da2ray.labels.shards.formats import build_shard
from da2ray.labels.snapshots import Snapshot, create_snapshot, open_snapshot, snapshot_key
from da2ray.labels.upkeep.check import Wrong
from da2ray.labels.upkeep.repair import Repaired, repair
from da2ray.labels.upkeep.verify import Report, verify
from da2ray.storage import Store, open_store
from tests.labels.samples import FINGERPRINT, SHARDS, LostAnswers, commit, label, mixed
from tests.s3_server import S3Server

FORMATS = ["parquet", "zarr"]


@pytest.fixture(params=FORMATS)
def format(request: pytest.FixtureRequest) -> str:  # noqa: A001 - the option's name
    return request.param


@pytest.fixture
def store(tmp_path: Path, format: str) -> Store:  # noqa: A002
    store = open_store(str(tmp_path / "dataset"))
    label(store, format)
    return store


def flip(store: Store, key: str, position: int) -> None:
    data = bytearray(store.get(key))
    data[position] ^= 1
    store.put(key, bytes(data))


def rewrite(store: Store, shard: int, **changes: object) -> None:
    """Replace the commit of a shard."""
    old = read_commit(store, "p", shard)
    fields = {name: getattr(old, name) for name in Commit.__dataclass_fields__}
    store.put(commit_key("p", shard), serialise(Commit(**(fields | changes))))


def with_column(rows: pa.Table, name: str, values: list[object]) -> pa.Table:
    field = rows.schema.field(name)
    return rows.set_column(rows.schema.get_field_index(name), field, pa.array(values, field.type))


def words(report: Report) -> dict[int | None, set[str]]:
    found: dict[int | None, set[str]] = {}
    for finding in report.findings:
        found.setdefault(finding.shard, set()).add(finding.what.value)
    return found


def delete(store: Store) -> None:
    store.delete([read_commit(store, "p", 1).object])


def truncate(store: Store) -> None:
    key = read_commit(store, "p", 1).object
    store.put(key, store.get(key)[:-100])


def flip_in_value(store: Store) -> None:
    found = read_commit(store, "p", 1)
    flip(store, found.object, found.rows["byte_offset"][2].as_py() + 20)


def flip_in_footer(store: Store) -> None:
    key = read_commit(store, "p", 1).object
    flip(store, key, len(store.get(key)) - 3)


def swap(store: Store) -> None:
    """The objects have equal size and the same labels in the same places. Checksums and keys tell them apart."""
    first, second = (read_commit(store, "p", shard).object for shard in (1, 2))
    one, other = store.get(first), store.get(second)
    assert len(one) == len(other)
    store.put(first, other)
    store.put(second, one)


def flip_in_commit(store: Store) -> None:
    key = commit_key("p", 1)
    flip(store, key, store.get(key).index(b"PAR1") + 60)


def cut_commit(store: Store) -> None:
    key = commit_key("p", 1)
    store.put(key, store.get(key)[:-1])


def other_scale(store: Store) -> None:
    rows = read_commit(store, "p", 1).rows
    scales = [None if scale is None else 2 * scale for scale in rows["scale"].to_pylist()]
    rewrite(store, 1, rows=with_column(rows, "scale", scales))


def other_range(store: Store) -> None:
    """Two labels of one size trade places. Both decode, but belong to the other image."""
    rows = read_commit(store, "p", 1).rows
    for name in ("byte_offset", "byte_length", "byte_crc32"):
        values = rows[name].to_pylist()
        values[1], values[3] = values[3], values[1]
        rows = with_column(rows, name, values)
    rewrite(store, 1, rows=rows)


def other_uri(store: Store) -> None:
    """Only the snapshot shows the difference."""
    rows = read_commit(store, "p", 1).rows
    rewrite(store, 1, rows=with_column(rows, "uri", ["/elsewhere"] * len(rows)))


def half_a_range_of_an_image(store: Store) -> None:
    rows = read_commit(store, "p", 1).rows
    rewrite(store, 1, rows=with_column(rows, "image_offset", [512] * len(rows)))


def other_fingerprint(store: Store) -> None:
    rewrite(store, 1, fingerprint="0" * 16)


def commit_of_another(store: Store) -> None:
    store.put(commit_key("p", 1), store.get(commit_key("p", 2)))


DAMAGE: dict[str, tuple[Callable[[Store], None], dict[int | None, set[str]]]] = {
    "delete": (delete, {1: {"object_missing"}}),
    "truncate": (truncate, {1: {"size"}}),
    "flip in value": (flip_in_value, {1: {"checksum", "value"}}),
    "flip in footer": (flip_in_footer, {1: {"checksum", "object"}}),
    "swap": (swap, {1: {"checksum", "rows"}, 2: {"checksum", "rows"}}),
    "flip in commit": (flip_in_commit, {1: {"commit"}}),
    "cut commit": (cut_commit, {1: {"commit"}}),
    "commit of another shard": (commit_of_another, {1: {"commit"}}),
    "other fingerprint": (other_fingerprint, {1: {"commit"}}),
    "other scale": (other_scale, {1: {"rows", "index"}}),
    "other range": (other_range, {1: {"value", "index"}}),
    "other uri": (other_uri, {1: {"index"}}),
    "half a range of an image": (half_a_range_of_an_image, {1: {"commit", "index"}}),
}


def test_nothing_is_wrong_with_what_was_written(store: Store, format: str) -> None:  # noqa: A002
    seen: list[tuple[int, int]] = []
    report = verify(store, format, on_progress=lambda done, total: seen.append((done, total)))
    assert report.findings == []
    assert (report.shards, report.shards_checked, report.parts, report.parts_checked) == (SHARDS, SHARDS, 1, 1)
    assert seen == [(done, SHARDS) for done in range(1, SHARDS + 1)]


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_repair_relabels_those_shards_only(store: Store, format: str, name: str) -> None:  # noqa: A002
    damage, expected = DAMAGE[name]
    damage(store)
    report = verify(store, format)
    found = words(report)
    if name == "flip in value" and format == "zarr":
        expected = {1: {"checksum", "object", "value"}}  # each member of the zip has a checksum
    assert found == expected
    assert all(finding.snapshot is None for finding in report.findings)

    repair(store, report, dry_run=True)
    assert words(verify(store, format)) == found, "a dry run changes nothing"
    repaired = repair(store, report, dry_run=False)
    assert repaired.shards == [("p", shard) for shard in expected]
    assert label(store, format) == list(expected)
    assert verify(store, format).findings == []
    labels = open_labels(store.url)
    assert len(labels) == SHARDS * 7
    assert sum(each.depth is not None for each in labels) == SHARDS * 5


def test_no_flipped_bit_of_a_commit_goes_unnoticed(tmp_path: Path, format: str) -> None:  # noqa: A002
    """`verify` finds a flip unless nothing reads the byte (padding, or the name of the writing library)."""
    store = open_store(str(tmp_path / "dataset"))
    label(store, format, range(1))
    key, good = commit_key("p", 0), read_commit(store, "p", 0)
    data = store.get(key)
    unnoticed = 0
    for position in range(0, len(data), 211):
        store.put(key, data)
        flip(store, key, position)
        if not verify(store, format).findings:
            assert read_commit(store, "p", 0) == good, position
            unnoticed += 1
    assert unnoticed < len(data) / 211 / 2


def test_a_broken_part_is_written_again_under_its_name(store: Store, format: str) -> None:  # noqa: A002
    (part,) = open_snapshot(store).parts
    data = store.get(part.key)
    for damage in (lambda: store.delete([part.key]), lambda: flip(store, part.key, 100)):
        damage()
        report = verify(store, format)
        assert [(found.object, found.what, found.shard) for found in report.findings] == [(part.key, Wrong.PART, None)]
        assert repair(store, report, dry_run=False) == Repaired(rewritten=[part.key])
        assert store.get(part.key) == data
        assert verify(store, format).findings == []
    assert create_snapshot(store, ["p"], FINGERPRINT).number == 1


def test_a_part_that_is_lost_has_another_in_the_next_snapshot(store: Store, format: str) -> None:  # noqa: A002
    (part,) = open_snapshot(store).parts
    flip(store, part.key, 100)
    delete(store)
    report = verify(store, format)
    assert words(report) == {None: {"part"}, 1: {"object_missing"}}
    repaired = repair(store, report, dry_run=False)
    assert (repaired.shards, repaired.rewritten, repaired.lost) == ([("p", 1)], [], [part.key])
    assert label(store, format) == [1]
    assert open_snapshot(store).number == 2
    assert verify(store, format).findings == []


def test_the_next_snapshot_does_without_a_part_that_is_gone(store: Store, format: str) -> None:  # noqa: A002
    (part,) = open_snapshot(store).parts
    store.delete([part.key])
    assert create_snapshot(store, ["p"], FINGERPRINT).parts == (part,)
    assert verify(store, format).findings == []


def test_a_broken_snapshot_is_found_and_left(store: Store, format: str) -> None:  # noqa: A002
    key = snapshot_key(1)
    whole = open_snapshot(store)
    store.put(key, whole.model_copy(update={"rows": 99}).model_dump_json().encode())
    assert [found.what for found in verify(store, format).findings] == [Wrong.SNAPSHOT]
    store.put(key, store.get(key)[:-9])
    report = verify(store, format)
    assert [(found.object, found.what) for found in report.findings] == [(key, Wrong.SNAPSHOT)]
    assert list(repair(store, report, dry_run=False).unreadable) == [key]


def test_counts_of_a_part_are_checked(store: Store, format: str) -> None:  # noqa: A002
    snapshot = open_snapshot(store)
    parts = tuple(part.model_copy(update={"rows": part.rows + 1}) for part in snapshot.parts)
    changed = Snapshot(**(dict(snapshot) | {"rows": snapshot.rows + 1, "parts": parts}))
    store.put(snapshot_key(1), changed.model_dump_json().encode())
    assert [found.what for found in verify(store, format).findings] == [Wrong.PART]


def test_objects_that_only_the_snapshot_names_are_checked_and_no_commit_is_to_blame(
    store: Store,
    format: str,  # noqa: A002
) -> None:
    old = {shard: read_commit(store, "p", shard) for shard in (1, 2)}
    store.delete([commit_key("p", 1), commit_key("p", 2)])
    rows, qs, _ = mixed(shard=2)
    commit_shard(store, "p", 2, build_shard(rows, qs, format), FINGERPRINT)
    assert verify(store, format).findings == [], "a shard without commit and one labelled again are nothing wrong"

    flip(store, old[1].object, old[1].rows["byte_offset"][2].as_py() + 20)
    store.delete([old[2].object])
    report = verify(store, format)
    assert [(found.shard, found.object, found.what, found.snapshot) for found in report.findings] == [
        (1, old[1].object, Wrong.VALUE, 1),
        (2, old[2].object, Wrong.OBJECT_MISSING, 1),
    ]
    assert repair(store, report, dry_run=False) == Repaired(snapshots=[1])
    assert label(store, format) == [1]
    assert verify(store, format).findings == []


def test_repair_names_the_old_snapshots_that_stay_broken(store: Store, format: str) -> None:  # noqa: A002
    label(store, format, range(SHARDS + 1))
    delete(store)
    assert repair(store, verify(store, format), dry_run=False).snapshots == [1, 2]
    label(store, format)
    key = read_commit(store, "p", 1).object
    store.delete([key])
    assert repair(store, verify(store, format), dry_run=False).snapshots == [3]


def test_rows_that_a_later_plan_supersedes_are_nothing_wrong(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "dataset"))
    commit(store, ["a", "b"], plan="old")
    commit(store, ["c"], plan="old", shard=1)
    commit(store, ["b", "c"], plan="new", seed=1)
    create_snapshot(store, ["old", "new"], FINGERPRINT)
    assert verify(store, "parquet").findings == []
    old = read_commit(store, "old", 0)
    other = with_column(old.rows, "etag", ["x", None])
    store.put(
        commit_key("old", 0), serialise(Commit(**({n: getattr(old, n) for n in old.__slots__} | {"rows": other})))
    )
    assert [(found.plan, found.shard, found.what) for found in verify(store, "parquet").findings] == [
        ("old", 0, Wrong.INDEX)
    ]


def test_a_sample_is_the_same_each_time_and_part_of_a_larger_one(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "dataset"))
    for shard in range(20):
        commit(store, [f"{shard}"], shard=shard)
    create_snapshot(store, ["p"], FINGERPRINT)
    store.delete([read_commit(store, "p", shard).object for shard in range(20)])
    found = {share: verify(store, "parquet", share) for share in (0.01, 0.25, 0.25001, 0.5, 1.0)}
    assert [report.shards_checked for report in found.values()] == [1, 5, 6, 10, 20]
    assert [len(report.findings) for report in found.values()] == [1, 5, 6, 10, 20]
    broken = [set(report.broken_shards()) for report in found.values()]
    assert all(smaller < larger for smaller, larger in itertools.pairwise(broken))
    assert verify(store, "parquet", 0.25) == found[0.25]
    assert found[0.25].parts_checked == 1


def test_a_store_that_fails_is_an_error_and_no_finding(store: Store, format: str) -> None:  # noqa: A002
    class Down(LostAnswers):
        def get(self, key: str) -> bytes:
            if key.startswith("shards/"):
                raise StoreError("connection refused")
            return self._store.get(key)

    with pytest.raises(StoreError, match="refused"):
        verify(Down(store), format)


@pytest.mark.parametrize("client", ["obstore", "fsspec"])
def test_on_s3(s3: S3Server, format: str, client: str) -> None:  # noqa: A002
    store = open_store(f"{s3.create_bucket()}/labels", client)
    label(store, format)
    assert verify(store, format).findings == []
    for damage in (delete, flip_in_commit):
        damage(store)
        report = verify(store, format)
        assert words(report).keys() == {1}
        repair(store, report, dry_run=False)
        assert label(store, format) == [1]
        assert verify(store, format).findings == []
