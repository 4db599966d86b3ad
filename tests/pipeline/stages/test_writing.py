"""The write stage makes a complete shard in the plan's order, with each sample's own label."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from da2ray.labels.commits import read_commit
from da2ray.labels.schema import FILE_SCORES, INDEX, NUMBERS, SCORE_COLUMNS
from da2ray.labels.shards.formats import build_shard
from da2ray.labels.snapshots import create_snapshot
from da2ray.labels.upkeep.check import check_commit, check_object
from da2ray.pipeline.stages.batches import (
    READ,
    SAMPLE,
    SAMPLE_FIELDS,
    LabelledBatch,
    labelled_row,
    large_binaries,
    lists,
)
from da2ray.pipeline.stages.writing import IncompleteShardError, Writing, assemble, far_of, masks_of
from da2ray.sources.base import Extent
from da2ray.storage import open_store
from tests.labels.samples import FINGERPRINT

SIZE = (28, 42)
OF_LABELS = [name for name in SCORE_COLUMNS.names if name not in {*FILE_SCORES.names, "nonfinite_share"}]
"""Scores that only labelled rows have."""


def sample(row: int, reason: str | None = None, size: tuple[int, int] = SIZE) -> dict:
    """The columns of sample number `row` from the read stage."""
    return dict.fromkeys(SAMPLE_FIELDS) | {
        "key": f"{row}.jpg",
        "uri": f"/images/{row}.jpg",
        "row": row,
        "status": "failed" if reason else "labelled",
        "reason": reason,
        "message": reason and f"message of {row}",
        "network_height": None if reason else size[0],
        "network_width": None if reason else size[1],
        "aspect": 1.5,
        "jpeg_quality": None if row % 2 else 75,
    }


def read_row(samples: list[dict], *, planned: int, shard: int = 3, extent: str | None = None) -> pa.Table:
    """One row of READ. Its images are 1 x 1, because the write stage never sees them."""
    shapes = [1, 1] * len(samples) if samples and not samples[0]["reason"] else []
    columns = {
        "shard": pa.array([shard], pa.int64()),
        "planned": pa.array([planned], pa.int32()),
        "extent": pa.array([extent], pa.string()),
        "samples": lists([pa.array(samples, SAMPLE)]),
        "shapes": lists([pa.array(shapes, pa.int32())]),
        "pixels": large_binaries(np.zeros(3 * len(shapes) // 2, np.uint8), [0, 3 * len(shapes) // 2]),
        "encoded": pa.array([b""], pa.large_binary()),
        "update": pa.array([b""], pa.large_binary()),
    }
    return pa.table(columns, schema=READ)


def labels_of(
    rows: Sequence[int], errors: dict[int, tuple[str, str]] | None = None, size: tuple[int, int] = SIZE
) -> LabelledBatch:
    """Depth, scale, offset and numbers that differ between all samples."""
    numbers = np.array(rows, np.float32)
    depths = (np.arange(size[0] * size[1]).reshape(size) + 100 * numbers[:, None, None]).astype(np.uint16)
    measured = numbers[:, None] + np.arange(len(NUMBERS), dtype=np.float32) / 8
    measured[:, NUMBERS.get_field_index("focal")] = np.nan
    return LabelledBatch(
        depths,
        1 + numbers,
        -numbers,
        measured,
        [(errors or {}).get(row) for row in rows],
        phashes=np.array(rows, np.uint64) + np.uint64(2**63),
    )


def micro_batch(rows: Sequence[int], errors: dict[int, tuple[str, str]] | None = None, **place: int) -> pa.Table:
    return labelled_row(read_row([sample(row) for row in rows], **place), labels_of(rows, errors))


def unlabelled(rows: Sequence[int], **place: int) -> pa.Table:
    return labelled_row(read_row([sample(row, "corrupt") for row in rows], **place), None)


def assembled(*rows: pa.Table) -> tuple[pa.Table, list[np.ndarray | None]]:
    return assemble(pa.concat_tables(rows), plan="p", kind="disparity", fingerprint="f" * 16)


def test_rows_and_maps_are_in_the_plans_order_whatever_the_order_of_micro_batches() -> None:
    batches = [
        micro_batch([1, 6], planned=8),
        micro_batch([7, 0, 4], planned=8),
        micro_batch([3], planned=8),
        unlabelled([5, 2], planned=8),
    ]
    rng = np.random.default_rng(0)
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], *(rng.permutation(4) for _ in range(4))):
        rows, maps = assembled(*(batches[index] for index in order))
        assert rows.schema.equals(INDEX)
        assert rows["row"].to_pylist() == list(range(8))
        assert rows["key"].to_pylist() == [f"{row}.jpg" for row in range(8)]
        assert [row for row, depth in enumerate(maps) if depth is None] == [2, 5]
        for row in (0, 1, 3, 4, 6, 7):
            alone = labels_of([row])
            np.testing.assert_array_equal(maps[row], alone.depths[0])
            found = rows.slice(row, 1).to_pylist()[0]
            assert (found["scale"], found["offset"], found["kind"]) == (1 + row, -row, "disparity")
            names = [name for name in NUMBERS.names if name != "focal"]
            assert [found[name] for name in names] == alone.numbers[0, : len(names)].tolist()
            assert (found["plan"], found["shard"], found["fingerprint"]) == ("p", 3, "f" * 16)
            assert found["phash"] == 2**63 + row
        build_shard(rows, maps, "parquet")  # the maps can be stored


def test_micro_batches_of_several_sizes_keep_their_own_maps() -> None:
    upright = (42, 28)
    other = labelled_row(
        read_row([sample(row, size=upright) for row in (0, 2)], planned=3), labels_of([0, 2], size=upright)
    )
    _, maps = assembled(other, micro_batch([1], planned=3))
    assert [depth.shape for depth in maps if depth is not None] == [upright, SIZE, upright]
    np.testing.assert_array_equal(maps[2], labels_of([2], size=upright).depths[0])


def test_what_the_teacher_fails_on_is_a_failed_row_without_label() -> None:
    rows, maps = assembled(micro_batch([0, 1, 2], {1: ("non_finite", "NaN in it")}, planned=3))
    assert rows["status"].to_pylist() == ["labelled", "failed", "labelled"]
    assert rows["reason"].to_pylist() == [None, "non_finite", None]
    assert rows["message"].to_pylist() == [None, "NaN in it", None]
    for name in ("scale", "offset", "kind", "phash", *OF_LABELS):
        assert [value is None for value in rows[name].to_pylist()] == [False, True, False], name
    # A map that failed because of its values still has the share of bad values.
    place = NUMBERS.get_field_index("nonfinite_share")
    assert rows["nonfinite_share"].to_pylist() == labels_of([0, 1, 2]).numbers[:, place].tolist()
    assert [depth is None for depth in maps] == [False, True, False]
    build_shard(rows, maps, "zarr")


def test_what_could_not_be_read_keeps_its_reason_and_has_no_label() -> None:
    rows, maps = assembled(unlabelled([1, 0], planned=2))
    assert rows["status"].to_pylist() == ["failed", "failed"]
    assert rows["reason"].to_pylist() == ["corrupt", "corrupt"]
    assert rows["message"].to_pylist() == ["message of 0", "message of 1"]
    for name in ("scale", "offset", "kind", "phash", "nonfinite_share", *OF_LABELS):
        assert rows[name].null_count == 2, name
    assert maps == [None, None]
    # The columns from the file's header are still known.
    assert rows["aspect"].to_pylist() == [1.5, 1.5]
    assert rows["jpeg_quality"].to_pylist() == [75, None]


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([micro_batch([0, 2], planned=3)], id="a sample is missing"),
        pytest.param([micro_batch([0, 1], planned=3)], id="the last sample is missing"),
        pytest.param([micro_batch([0, 1], planned=2), micro_batch([1], planned=2)], id="a sample twice"),
        pytest.param([micro_batch([0, 1], planned=2)] * 2, id="a shard twice"),
        pytest.param([micro_batch([0, 1, 3], planned=3)], id="a sample of no plan"),
        pytest.param(
            [micro_batch([0, 1], planned=3, shard=3), micro_batch([2], planned=3, shard=4)], id="of two shards"
        ),
        pytest.param([micro_batch([0], planned=2), micro_batch([1], planned=3)], id="of two plans"),
    ],
)
def test_a_block_that_is_not_exactly_one_shard_is_refused(rows: list[pa.Table]) -> None:
    with pytest.raises(IncompleteShardError, match="plan p, shard"):
        assembled(*rows)


def masked(rows: Sequence[int], errors: dict[int, tuple[str, str]] | None = None, **place: int) -> pa.Table:
    """A micro-batch in which images with an odd number have no mask."""
    masks = np.array(rows, np.uint8)[:, None, None] % 4 * np.ones((1, *SIZE), np.uint8)
    sources = [None if row % 2 else "checker" for row in rows]
    labelled = replace(labels_of(rows, errors), masks=masks, mask_sources=sources)
    return labelled_row(read_row([sample(row) for row in rows], **place), labelled)


def test_masks_are_in_the_plans_order_beside_their_maps() -> None:
    block = pa.concat_tables(
        [
            masked([6, 1], planned=8),
            masked([4, 0], {4: ("non_finite", "NaN in it")}, planned=8),
            micro_batch([3, 7], planned=8),
            unlabelled([5, 2], planned=8),
        ]
    )
    rows, maps = assemble(block, plan="p", kind="disparity", fingerprint="f" * 16)
    masks = masks_of(block, 2)
    assert [row for row, levels in enumerate(masks.levels) if levels is not None] == [0, 6]
    assert {row: int(masks.levels[row].max()) for row in (0, 6)} == {0: 0, 6: 2}
    assert [row for row, source in enumerate(rows["mask_source"].to_pylist()) if source] == [0, 6]
    shard = build_shard(rows, maps, "zarr", masks)
    assert shard.rows["mask_bits"].to_pylist() == [2, None, None, None, None, None, 2, None]


def far_rows(rows: Sequence[int], errors: dict[int, tuple[str, str]] | None = None, **place: int) -> pa.Table:
    """A micro-batch in which pixel number 9 * row of each image with an even number has no distance."""
    far = np.zeros((len(rows), SIZE[0] * SIZE[1]), bool)
    for number, row in enumerate(rows):
        far[number, 9 * row] = row % 2 == 0
    labelled = replace(labels_of(rows, errors), fars=np.packbits(far, axis=1, bitorder="little"))
    return labelled_row(read_row([sample(row) for row in rows], **place), labelled)


def test_far_pixels_are_in_the_plans_order_beside_their_maps() -> None:
    block = pa.concat_tables(
        [
            far_rows([6, 1], planned=8),
            far_rows([4, 0], {4: ("non_finite", "NaN in it")}, planned=8),
            micro_batch([3, 7], planned=8),
            unlabelled([5, 2], planned=8),
        ]
    )
    far = far_of(block)
    assert [row for row, pixels in enumerate(far) if pixels is not None] == [0, 6]
    for row in (0, 6):
        assert (far[row].dtype, far[row].shape) == (bool, SIZE)
        assert np.flatnonzero(far[row]).tolist() == [9 * row]


def test_parts_of_a_micro_batch_join_where_only_some_have_far_pixels() -> None:
    some = replace(labels_of([0]), fars=np.packbits(np.ones((1, SIZE[0] * SIZE[1]), bool), axis=1))
    joined = LabelledBatch.joined([labels_of([7]), some, labels_of([8])])
    assert np.unpackbits(joined.fars, axis=1).sum(1).tolist() == [0, SIZE[0] * SIZE[1], 0]
    assert joined.phashes.tolist() == [2**63 + 7, 2**63, 2**63 + 8]
    assert LabelledBatch.joined([labels_of([7]), labels_of([8])]).fars is None


def test_parts_of_a_micro_batch_join_where_only_some_have_masks() -> None:
    labelled = replace(labels_of([0, 1]), masks=np.ones((2, *SIZE), np.uint8), mask_sources=["teacher", None])
    joined = LabelledBatch.joined([labels_of([7]), labelled])
    assert joined.mask_sources == [None, "teacher", None]
    assert joined.masks.max(axis=(1, 2)).tolist() == [0, 1, 1]
    assert LabelledBatch.joined([labels_of([7]), labels_of([8])]).masks is None


@pytest.mark.parametrize("shard_format", ["parquet", "zarr"])
def test_a_range_without_samples_is_committed_with_its_extent(tmp_path: Path, shard_format: str) -> None:
    extent = Extent("a.tar", "v", 512, 1024, 1024, None, 1024)
    block = labelled_row(read_row([], planned=0, extent=json.dumps(asdict(extent))), None)
    store = open_store(str(tmp_path))
    writing = Writing(store, "p", shard_format, "disparity", FINGERPRINT, 2, None)
    written = writing.write(block)
    assert (written.statuses, written.reasons) == ({}, {})
    commit = read_commit(store, "p", 3)
    assert (len(commit.rows), commit.extent) == (0, extent)
    assert not [*check_commit(commit, shard_format), *check_object(commit, store.get(commit.object), shard_format)]
    assert create_snapshot(store, ["p"], FINGERPRINT).rows == 0
