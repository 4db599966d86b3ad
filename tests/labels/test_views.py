"""A view is exactly the kept rows of one snapshot. It is complete or absent, and a name never means another view."""

import hashlib
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

import da2ray
from da2ray.errors import CorruptError, StoreError, UserError
from da2ray.labels import kept_rows
from da2ray.labels.dataset import create_or_open
from da2ray.labels.kept_rows import KEPT, write_kept
from da2ray.labels.snapshots import create_snapshot, open_snapshot, snapshot_key
from da2ray.labels.upkeep.check import Wrong
from da2ray.labels.upkeep.repair import repair
from da2ray.labels.upkeep.verify import verify
from da2ray.labels.views import Dedupe, Rule, View, list_views, open_view, read_positions, view_key, write_view
from da2ray.storage import Store, open_store
from tests.labels.samples import FINGERPRINT, LostAnswers, commit, info
from tests.s3_server import S3Server

KEYS = [f"{plan}{number}" for plan in "abc" for number in range(4)]
"""The rows of the snapshot. It has three plans, so three parts."""
KEPT_ROWS = {1: "train", 3: "val", 8: "train", 9: "val", 11: "train"}
"""The kept rows, none of which is of plan b."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return filled(open_store(str(tmp_path / "dataset")))


def filled(store: Store) -> Store:
    create_or_open(store, info())
    for plan in "abc":
        commit(store, [key for key in KEYS if key.startswith(plan)], plan=plan)
    create_snapshot(store, list("abc"), FINGERPRINT)
    assert len(open_snapshot(store).parts) == 3
    return store


def view(name: str = "v", **changes: object) -> View:
    rule = Rule(name="blur", where="blur above p5", resolved="blur > 20.5", removes=6, alone=5)
    made = View(
        name=name, created="2026-01-01T00:00:00+00:00", snapshot=1, rows=12, rules=(rule,), val_share=0.4,
        skipped=(("flip", "no row has flip_p90"),), dedupe=Dedupe(distance=4, clusters=1, removed=1),
    )  # fmt: skip
    return made.model_copy(update=changes)


def kept(rows: dict[int, str] = KEPT_ROWS) -> pa.Table:
    columns = [list(rows), [KEYS[row] for row in rows], list(rows.values())]
    return pa.table([pa.array(*each) for each in zip(columns, KEPT.types, strict=True)], schema=KEPT)


def keys(store: Store) -> set[str]:
    return {key for batch in store.list() for key in batch["key"].to_pylist()}


# ------------------------------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize("split", [None, "train", "val"])
def test_every_way_to_the_labels_sees_the_kept_rows_only(store: Store, split: str | None) -> None:
    write_view(store, view(), kept())
    expected = [KEYS[row] for row, each in KEPT_ROWS.items() if split in (None, each)]
    everything = da2ray.open_labels(store.url)
    labels = da2ray.open_labels(store.url, view="v", split=split)
    assert len(labels) == len(expected)
    assert labels.index["key"].to_pylist() == expected
    assert labels.index.equals(everything.index.filter(pa.compute.is_in(everything.index["key"], pa.array(expected))))
    assert [label.key for label in labels] == expected
    assert [labels[position].key for position in range(len(labels))] == expected
    assert [label.key for label in labels[1:]] == expected[1:]
    assert labels[-1].key == expected[-1]
    with pytest.raises(IndexError, match=f"of {len(expected)}"):
        labels[len(expected)]
    for key in KEYS:
        if key in expected:
            assert (labels.by_key(key).depth == everything.by_key(key).depth).all()
        else:
            with pytest.raises(KeyError):
                labels.by_key(key)
    assert f"{len(expected)} labels" in repr(labels)
    assert "view v" in repr(labels)


def test_it_can_be_pickled_without_its_rows(store: Store) -> None:
    write_view(store, view(), kept())
    labels = da2ray.open_labels(store.url, view="v", split="val")
    before = len(pickle.dumps(labels))
    expected = [label.key for label in labels]
    assert len(pickle.dumps(labels)) == before < 5_000
    copy = pickle.loads(pickle.dumps(labels))  # noqa: S301 - our own bytes
    assert [label.key for label in copy] == expected == ["a3", "c1"]


def test_a_view_stays_with_its_snapshot(store: Store) -> None:
    write_view(store, view(), kept())
    commit(store, ["b1", "b2"], plan="d", seed=1)  # replaces two rows, and moves all rows after them
    create_snapshot(store, list("abcd"), FINGERPRINT)
    assert da2ray.open_labels(store.url).snapshot.number == 2
    labels = da2ray.open_labels(store.url, view="v")
    assert (labels.snapshot.number, [label.key for label in labels]) == (1, [KEYS[row] for row in KEPT_ROWS])
    assert len(da2ray.open_labels(store.url, snapshot=1, view="v")) == 5
    with pytest.raises(UserError, match="view v is of snapshot 1, not 2"):
        da2ray.open_labels(store.url, snapshot=2, view="v")


def test_an_error_about_a_missing_name_lists_the_existing_ones(store: Store) -> None:
    with pytest.raises(UserError, match=r"no view 'v'; its views: none yet; jobs/curate.py"):
        da2ray.open_labels(store.url, view="v")
    write_view(store, view("strict"), kept())
    write_view(store, view("lenient"), kept())
    with pytest.raises(UserError, match="no view 'v'; its views: lenient, strict"):
        da2ray.open_labels(store.url, view="v")
    with pytest.raises(UserError, match="no split 'test'; its splits: train, val"):
        da2ray.open_labels(store.url, view="strict", split="test")
    with pytest.raises(UserError, match="view=NAME"):
        da2ray.open_labels(store.url, split="train")


def test_a_view_may_keep_nothing_and_a_split_may_be_empty(store: Store) -> None:
    write_view(store, view("nothing", by_split={"train": 0, "val": 0}), kept({}))
    write_view(store, view("unsplit", by_split={"train": 2, "val": 0}, kept=2), kept({0: "train", 5: "train"}))
    for name, split in (("nothing", None), ("nothing", "val"), ("unsplit", "val")):
        labels = da2ray.open_labels(store.url, view=name, split=split)
        assert (len(labels), list(labels), labels.index.num_rows) == (0, [], 0)
    assert [label.key for label in da2ray.open_labels(store.url, view="unsplit", split="train")] == ["a0", "b1"]


# ------------------------------------------------------------------------------------------------------------ writing


def test_what_is_read_is_what_was_written(store: Store) -> None:
    written = write_view(store, view(), kept().to_batches(max_chunksize=2))
    assert open_view(store, "v") == written
    assert (written.kept, written.by_split) == (5, {"train": 3, "val": 2})
    assert written.model_dump(exclude={"kept", "by_split", "object", "parts"}) == view().model_dump(
        exclude={"kept", "by_split", "object", "parts"}
    )
    data = store.get(written.object)
    assert written.object == f"views/v-{hashlib.sha256(data).hexdigest()[:32]}.parquet"
    assert pa.parquet.read_table(pa.BufferReader(data)).equals(kept())
    assert read_positions(store, written).tolist() == list(KEPT_ROWS)
    assert list_views(store) == ["v"]


def test_a_view_whose_writer_dies_before_the_last_step_is_not_there(store: Store) -> None:
    class Dying(LostAnswers):
        def create(self, key: str, data: bytes) -> bool:  # noqa: ARG002 - the interface's
            raise StoreError(f"power went at {key}")

    with pytest.raises(StoreError, match=r"power went at views/v\.json"):
        write_view(Dying(store), view(), kept())
    assert list_views(store) == []
    assert len([key for key in keys(store) if key.startswith("views/")]) == 1
    write_view(store, view(), kept())
    assert len(da2ray.open_labels(store.url, view="v")) == 5


def test_the_same_again_is_fine_and_another_under_its_name_is_refused(store: Store) -> None:
    first = write_view(store, view(), kept())
    before = keys(store)
    assert write_view(store, view(created="2027-01-01T00:00:00+00:00"), kept()) == first
    fewer = {row: KEPT_ROWS[row] for row in (1, 3)}
    for other, rows in ((view(), kept(fewer)), (view(val_share=0.5), kept()), (view(rules=()), kept())):
        with pytest.raises(UserError, match="another view v: choose another --view name, or --replace"):
            write_view(store, other, rows)
    assert open_view(store, "v") == first
    assert keys(store) == before, "what is refused leaves nothing behind"
    replaced = write_view(store, view(), kept(fewer), replace=True)
    assert open_view(store, "v") == replaced != first
    assert [label.key for label in da2ray.open_labels(store.url, view="v")] == ["a1", "a3"]


def test_if_two_writers_create_a_view_at_once_the_first_wins_and_the_second_gets_an_error(store: Store) -> None:
    class Late(LostAnswers):
        """A store on which a writer finds no view before it creates one."""

        def list(self, prefix: str = "") -> Iterator[pa.RecordBatch]:
            return iter(()) if prefix == "views" else self._store.list(prefix)

        def create(self, key: str, data: bytes) -> bool:
            return self._store.create(key, data)

    first = write_view(store, view(), kept())
    assert write_view(Late(store), view(created="later"), kept()) == first
    with pytest.raises(UserError, match="another --view"):
        write_view(Late(store), view(rules=()), kept())
    assert open_view(store, "v") == first


def test_a_lost_answer_is_no_other_writer(store: Store) -> None:
    assert write_view(LostAnswers(store), view(), kept()) == open_view(store, "v")


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "../v", "a b", "ü", "a\n", "x" * 101])
def test_names_that_are_not_allowed_are_refused(store: Store, name: str) -> None:
    before = keys(store)
    for use in (lambda: write_view(store, view(name), kept()), lambda: da2ray.open_labels(store.url, view=name)):
        with pytest.raises(UserError, match="a view's name has up to 100 characters"):
            use()
    assert keys(store) == before


@pytest.mark.parametrize("name", ["v", "A-1_b.c", "-", "x" * 100, "v.json", "v-0"])
def test_any_name_of_the_allowed_letters_works(store: Store, name: str) -> None:
    write_view(store, view(name), kept())
    write_view(store, view("other"), kept({0: "train"}))
    assert list_views(store) == sorted([name, "other"])
    assert len(da2ray.open_labels(store.url, view=name)) == 5


def swapped(rows: pa.Table) -> pa.Table:
    return rows.take([1, 0, 2, 3, 4])


def without_split(rows: pa.Table) -> pa.Table:
    return rows.set_column(2, "split", pa.array(["train", None, "val", "val", "val"]))


@pytest.mark.parametrize(
    ("rows", "changes", "match"),
    [
        (swapped(kept()), {}, "ascending"),
        (pa.concat_tables([kept(), kept()]), {}, "ascending"),
        (kept().take([0, 0]), {}, "ascending"),
        (kept().set_column(0, KEPT.field("row"), pa.array([1, 3, 8, 9, 12])), {}, "below 12"),
        (kept().set_column(0, KEPT.field("row"), pa.array([-1, 3, 8, 9, 11])), {}, "ascending"),
        (without_split(kept()), {}, "split"),
        (kept(), {"kept": 4}, "says 4 kept rows"),
        (kept(), {"by_split": {"train": 5}}, "got 5"),
        (kept(), {"rows": 13}, "snapshot 1 has 12"),
    ],
)
def test_rows_that_contradict_the_snapshot_or_the_view_are_refused(
    store: Store, rows: pa.Table, changes: dict[str, object], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        write_view(store, view(**changes), rows)
    assert list_views(store) == []


def long_list(rows: int, batch: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, rows, batch):
        numbers = range(start, min(start + batch, rows))
        columns = [pa.array(numbers, pa.int64()), pa.array([f"images/{n}.jpg" for n in numbers])]
        yield pa.record_batch([*columns, pa.array(["val" if n % 7 == 0 else "train" for n in numbers])], schema=KEPT)


def test_batches_do_not_show_in_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_rows, "ROWS_PER_GROUP", 100)
    written = []
    for number, batch in enumerate((7, 100, 130, 1000)):
        assert write_kept(tmp_path / f"{number}", long_list(1000, batch), 1000) == {"train": 857, "val": 143}
        written.append((tmp_path / f"{number}").read_bytes())
    assert len(set(written)) == 1
    assert pa.parquet.read_metadata(tmp_path / "0").num_row_groups == 10


def test_a_long_list_is_never_in_memory_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_rows, "ROWS_PER_GROUP", 10_000)
    before, peak = pa.total_allocated_bytes(), 0

    def watched() -> Iterator[pa.RecordBatch]:
        nonlocal peak
        for batch in long_list(400_000, 4_000):
            peak = max(peak, pa.total_allocated_bytes() - before)
            yield batch

    write_kept(tmp_path / "kept", watched(), 400_000)
    whole = pa.parquet.read_table(tmp_path / "kept").nbytes
    assert peak < whole / 4, (peak, whole)


# ------------------------------------------------------------------------------------------------------------- damage


def test_no_damage_to_the_list_gives_other_rows(store: Store) -> None:
    found = write_view(store, view(), kept())
    data = store.get(found.object)
    noticed = 0
    for position in range(0, len(data), 7):
        broken = bytearray(data)
        broken[position] ^= 1
        store.put(found.object, bytes(broken))
        try:
            assert read_positions(store, found).tolist() == list(KEPT_ROWS), position
            assert read_positions(store, found, "val").tolist() == [3, 9], position
        except CorruptError:
            noticed += 1
    assert noticed > 10
    for broken in (data[:-1], b"", data[:100], store.get(snapshot_key(1))):
        store.put(found.object, broken)
        with pytest.raises(CorruptError, match=rf"{found.object}.*--replace"):
            da2ray.open_labels(store.url, view="v")[0]
    store.delete([found.object])
    with pytest.raises(CorruptError, match=r"is missing.*open the view again"):
        da2ray.open_labels(store.url, view="v")[0]
    write_view(store, view(), kept())  # repairs it
    assert len(list(da2ray.open_labels(store.url, view="v"))) == 5


def test_a_list_of_another_view_is_noticed(store: Store) -> None:
    found = write_view(store, view(), kept())
    more = dict(sorted({**KEPT_ROWS, 10: "val"}.items()))
    for rows, split in (({1: "train"}, None), (dict.fromkeys(KEPT_ROWS, "train"), "train"), (more, "val")):
        other = write_view(store, view("other"), kept(rows), replace=True)
        store.put(found.object, store.get(other.object))
        labels = da2ray.open_labels(store.url, view="v", split=split)
        with pytest.raises(CorruptError, match="it has"):
            labels[0]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda stored: stored | {"name": "w"}, CorruptError, "contradicts"),
        (lambda stored: stored | {"kept": 4}, CorruptError, "contradicts"),
        (lambda stored: stored | {"object": "views/../dataset.json"}, CorruptError, "contradicts"),
        (lambda stored: stored | {"rules": 3}, CorruptError, "not a view"),
        (lambda _: [], CorruptError, "not a view"),
        (lambda stored: stored | {"format_version": 2}, UserError, "update da2ray"),
    ],
)
def test_json_that_is_not_a_view_is_refused(
    store: Store, change: Callable[[dict], object], error: type[Exception], match: str
) -> None:
    write_view(store, view(), kept())
    stored = json.loads(store.get(view_key("v")))
    store.put(view_key("v"), json.dumps(stored | {"of a later release": 1}).encode())
    assert len(da2ray.open_labels(store.url, view="v")) == 5
    store.put(view_key("v"), json.dumps(change(stored)).encode())
    with pytest.raises(error, match=match):
        da2ray.open_labels(store.url, view="v")
    write_view(store, view(), kept(), replace=True)
    assert len(da2ray.open_labels(store.url, view="v")) == 5


def test_another_snapshot_under_the_number_of_the_views_is_noticed(store: Store) -> None:
    write_view(store, view(), kept())
    store.delete([snapshot_key(1)])
    with pytest.raises(UserError, match="no snapshot 1"):
        da2ray.open_labels(store.url, view="v")
    create_snapshot(store, list("cba"), FINGERPRINT)  # the same number of rows in another order
    assert open_snapshot(store).rows == 12
    with pytest.raises(CorruptError, match="another snapshot 1 than the present one"):
        da2ray.open_labels(store.url, view="v")


# ----------------------------------------------------------------------------------------------------------------- S3


@pytest.mark.parametrize("client", ["obstore", "fsspec"])
def test_on_s3(s3: S3Server, client: str) -> None:
    store = filled(open_store(f"{s3.create_bucket()}/labels", client))
    first = write_view(store, view(), kept())
    assert write_view(store, view(created="later"), kept()) == first
    with pytest.raises(UserError, match="--replace"):
        write_view(store, view(rules=()), kept())
    labels = da2ray.open_labels(store.url, view="v", split="train", client=client)
    assert [label.key for label in labels] == ["a1", "c0", "c3"]
    write_view(store, view(), kept({0: "val"}), replace=True)
    assert [label.key for label in da2ray.open_labels(store.url, view="v", client=client)] == ["a0"]
    store.delete([view_key("v")])
    assert list_views(store) == []


# ------------------------------------------------------------------------------------------------------------ verifying


def cut_json(store: Store, _: View) -> None:
    store.put(view_key("v"), store.get(view_key("v"))[:-40])


def delete_list(store: Store, made: View) -> None:
    store.delete([made.object])


def flip_in_list(store: Store, made: View) -> None:
    data = bytearray(store.get(made.object))
    data[len(data) // 2] ^= 1
    store.put(made.object, bytes(data))


def count_otherwise(store: Store, made: View) -> None:
    by_split = {"train": made.by_split["train"] + 1, "val": made.by_split["val"] - 1}
    store.put(view_key("v"), made.model_copy(update={"by_split": by_split}).model_dump_json().encode())


def delete_snapshot(store: Store, _: View) -> None:
    store.delete([snapshot_key(1)])


def another_snapshot(store: Store, _: View) -> None:
    """Write another snapshot under the same number, as after someone deleted the newest one and made one again."""
    store.put(snapshot_key(1), open_snapshot(store, 2).model_copy(update={"number": 1}).model_dump_json().encode())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut_json, "is not a view"),
        (delete_list, "is missing"),
        (flip_in_list, "do not hash to its name"),
        (count_otherwise, "its list has other numbers"),
        (delete_snapshot, "has no snapshot 1"),
        (another_snapshot, "was made from another snapshot 1"),
    ],
)
def test_verify_finds_a_view_that_is_not_whole_and_repair_leaves_it_to_its_maker(
    store: Store, damage: Callable[[Store, View], None], words: str
) -> None:
    commit(store, ["d0"], plan="d")
    create_snapshot(store, list("abcd"), FINGERPRINT)  # now the view's snapshot is not the newest
    write_view(store, view("whole", snapshot=2, rows=len(KEYS) + 1), kept())
    made = write_view(store, view(), kept())
    report = verify(store, "parquet", sample=0.1)
    assert (report.views, report.findings) == (2, [])
    damage(store, made)
    report = verify(store, "parquet")
    (finding,) = report.findings
    assert (finding.what, finding.object, finding.plan, finding.shard) == (Wrong.VIEW, view_key("v"), None, None)
    assert words in finding.detail
    before = keys(store)
    assert repair(store, report, dry_run=False).views == ["v"]
    assert keys(store) == before
