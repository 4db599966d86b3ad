"""An index is read part by part. All ways to read rows give the same, and iterating keeps no part in memory."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import da2ray
from da2ray.commands.curate import CurateConfig, curate
from da2ray.commands.options import load
from da2ray.errors import UserError
from da2ray.labels import fold, parts
from da2ray.labels.index_rows import IndexRows
from da2ray.labels.schema import INDEX
from da2ray.labels.snapshots import Snapshot, open_snapshot, snapshot_key
from da2ray.labels.upkeep.verify import verify
from da2ray.storage import Store
from tests.labels.samples import dataset

SHARDS = 5
ROWS = 7 * SHARDS


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A dataset whose index has three parts, of two shards each and one."""
    monkeypatch.setattr(fold, "SHARDS_PER_PART", 2)
    return dataset(tmp_path, "parquet", shards=SHARDS)


@pytest.mark.parametrize("kept", [None, [0, 13, 14, 27, 34], [14, 15, 16], [34], []])
def test_any_way_to_the_rows_gives_the_rows_of_the_snapshot(store: Store, kept: list[int] | None) -> None:
    snapshot = open_snapshot(store)
    assert len(snapshot.parts) == 3
    everything = pa.concat_tables(IndexRows(store, snapshot).tables()).to_pylist()
    wanted = everything if kept is None else [everything[place] for place in kept]
    rows = IndexRows(store, snapshot, None if kept is None else np.array(kept, np.int64))
    assert len(rows) == len(wanted)
    assert list(rows.rows(range(len(rows)))) == wanted
    assert list(rows.rows(range(len(rows) - 1, -1, -1))) == wanted[::-1]
    assert not rows._held
    assert [rows.row(place) for place in range(len(rows))] == wanted
    assert [row for table in rows.tables(["key"]) for row in table["key"].to_pylist()] == [row["key"] for row in wanted]
    assert list(rows.rows(range(len(rows)))) == wanted  # from parts that are in memory now


def test_iterating_and_slices_hold_nothing_and_a_label_its_part(store: Store) -> None:
    labels = da2ray.open_labels(store.url)
    assert len(list(labels)) == ROWS
    assert [label.key for label in labels[13:15]] == ["1/6.jpg", "2/0.jpg"]
    assert [label.key for label in labels[::-7]] == [f"{shard}/6.jpg" for shard in (4, 3, 2, 1, 0)]
    rows = labels._index_rows()
    assert not rows._held
    assert labels[20].key == "2/6.jpg"
    assert list(rows._held) == [1]


def test_parts_of_an_older_release_lack_columns_and_are_read(store: Store) -> None:
    """A dataset that was labelled before hashes, far classes and half of the scores existed."""
    expected = [label.depth for label in da2ray.open_labels(store.url)]
    snapshot = open_snapshot(store)
    new = ["phash", "far_offset", "far_length", "far_crc32", "far_share", "blur", "flip_mean"]
    made = []
    for part in snapshot.parts:
        sink = pa.BufferOutputStream()
        pq.write_table(parts.read_part(store, part).drop_columns(new), sink)
        data = sink.getvalue().to_pybytes()
        made.append(part.model_copy(update={"name": parts.content_name(data)}))
        store.put(made[-1].key, data)
    older: Snapshot = snapshot.model_copy(update={"parts": tuple(made)})
    store.put(snapshot_key(1), older.model_dump_json().encode())

    labels = da2ray.open_labels(store.url)
    assert labels.index.schema.equals(INDEX)
    assert labels.index["phash"].null_count == ROWS
    for label, depth in zip(labels, expected, strict=True):
        np.testing.assert_array_equal(label.depth, depth)
    assert verify(store, "parquet").findings == []
    console = Console(record=True, width=200)
    asked = load(CurateConfig, ["--dataset", store.url, "--dry-run", "--preset", "none", "--dedupe", "4"])
    with pytest.raises(UserError, match="no row has a perceptual hash"):
        curate(asked, console)
