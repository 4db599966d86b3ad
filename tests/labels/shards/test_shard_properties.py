"""Shards read back as written: any mix of sizes and outcomes in both formats, and any values in an index row."""

import itertools
import tempfile
import zlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from da2ray.errors import Reason, Status
from da2ray.labels.commits import commit_shard, read_commit
from da2ray.labels.parts import read_part
from da2ray.labels.schema import INDEX, SCORE_COLUMNS
from da2ray.labels.shards.formats import build_shard, read_mask, read_value
from da2ray.labels.shards.whole import read_shard
from da2ray.labels.snapshots import create_snapshot, open_snapshot
from da2ray.storage import open_store
from da2ray.teachers.base import Kind
from tests.labels.samples import FINGERPRINT

SETTINGS = settings(derandomize=True, max_examples=60)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)  # all of Unicode, NUL and line ends among it
ODD_KEYS = st.sampled_from(
    ["", " ", "a/b.jpg", "../x", "ü é.png", "100%25.jpg", "q?x#y=1", "\u202ergb.jpg", "猫/😀.webp", "'\"\\"]
)
COUNTS = st.integers(0, 2**31 - 1)
Maps = list[np.ndarray | None]


def some(values: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | values


@st.composite
def samples(draw: st.DrawFn) -> tuple[dict, np.ndarray | None, np.ndarray | None]:
    """An index row without its place, its map and its far class."""
    reason = draw(some(st.sampled_from(Reason)))
    row = {
        "key": draw(ODD_KEYS | TEXT), "uri": draw(ODD_KEYS | TEXT), "etag": draw(some(TEXT)),
        "sha256": draw(some(st.binary(min_size=32, max_size=32))),
        "status": (reason.status if reason else Status.LABELLED).value, "reason": reason and reason.value,
        "message": draw(some(TEXT)), "width": draw(some(COUNTS)), "height": draw(some(COUNTS)),
        "orientation": draw(some(st.integers(1, 8))), "fingerprint": FINGERPRINT,
    }  # fmt: skip
    if reason:
        return dict.fromkeys(INDEX.names) | row, None, None
    # Few sizes, so that a Zarr group has several maps of one size. One map is a single pixel.
    shape = draw(st.sampled_from([(1, 1), (1, 9), (7, 1), (5, 6), (6, 5)]) | hnp.array_shapes(min_dims=2, max_dims=2))
    row |= {"network_height": shape[0], "network_width": shape[1], "kind": draw(st.sampled_from(Kind)).value}
    row |= {name: draw(FLOATS) for name in ("scale", "offset")}
    # Odd maps may have any score.
    row |= {name: draw(some(st.floats(width=32))) for name in SCORE_COLUMNS.names}
    values = st.integers(0, 2**16 - 1) | st.sampled_from([0, 4095, 2**16 - 1])
    far = draw(some(hnp.arrays(np.bool_, shape)))
    return dict.fromkeys(INDEX.names) | row, draw(hnp.arrays(np.uint16, shape, elements=values)), far


@st.composite
def shards(draw: st.DrawFn, plan: str = "p", shard: int = 3) -> tuple[pa.Table, Maps, Maps]:
    drawn = draw(st.lists(samples(), min_size=1, max_size=12, unique_by=lambda sample: sample[0]["key"]))
    rows = [row | {"plan": plan, "shard": shard, "row": number} for number, (row, *_) in enumerate(drawn)]
    return pa.Table.from_pylist(rows, schema=INDEX), [q for _, q, _ in drawn], [far for *_, far in drawn]


def same(found: pa.Table, wanted: pa.Table) -> bool:
    """Whether two values are equal. A NaN equals a NaN here."""
    return str(found.to_pylist()) == str(wanted.to_pylist()) and found.schema.equals(wanted.schema)


@pytest.mark.parametrize("shard_format", ["parquet", "zarr"])
@given(content=shards())
@SETTINGS
def test_every_range_of_any_shard_reads_back_the_map_that_was_written(
    shard_format: str, content: tuple[pa.Table, Maps, Maps]
) -> None:
    rows, qs, far = content
    shard = build_shard(rows, qs, shard_format, far=far)
    assert shard.data == build_shard(rows, qs, shard_format, far=far).data
    ranges = [f"{prefix}_{name}" for prefix in ("byte", "far") for name in ("offset", "length", "crc32")]
    assert same(shard.rows.drop_columns(ranges), rows.drop_columns(ranges))
    taken: list[tuple[int, int]] = []

    def value(row: dict, prefix: str) -> bytes:
        begin, length = row[f"{prefix}_offset"], row[f"{prefix}_length"]
        taken.append((begin, begin + length))
        found = shard.data[begin : begin + length]
        assert zlib.crc32(found) == row[f"{prefix}_crc32"]
        return found

    own = {row["row"]: row for row in read_shard(shard.data, shard_format).to_pylist()}
    for number, (row, q, flags) in enumerate(zip(shard.rows.to_pylist(), qs, far, strict=True)):
        if q is None:
            assert [row[name] for name in ranges] == [None] * 6
            continue
        depth = value(row, "byte")
        np.testing.assert_array_equal(read_value(depth, *q.shape, shard_format), q)
        assert own[number]["value"] == depth
        if flags is None or not flags.any():
            assert [row[name] for name in ranges[3:]] == [None] * 3
            assert own[number]["far"] is None
            continue
        beside = value(row, "far")
        np.testing.assert_array_equal(read_mask(beside, *q.shape, 1, shard_format), flags)
        assert own[number]["far"] == beside
    taken.sort()
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(taken)), "two values share bytes"


@given(shards())
@SETTINGS
def test_the_index_gives_every_row_as_it_was_committed(content: tuple[pa.Table, Maps, Maps]) -> None:
    rows, qs, far = content
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        shard = build_shard(rows, qs, "parquet", far=far)
        outcome = commit_shard(store, "p", 3, shard, FINGERPRINT)
        commit = read_commit(store, "p", 3)
        labelled = [None if q is None else outcome.object for q in qs]
        place = INDEX.get_field_index("object")
        assert same(commit.rows, shard.rows.set_column(place, INDEX.field("object"), pa.array(labelled, pa.string())))
        snapshot = create_snapshot(store, ["p"], FINGERPRINT)
        assert open_snapshot(store) == snapshot
        assert same(pa.concat_tables(read_part(store, part) for part in snapshot.parts), commit.rows)
        assert snapshot.rows == sum(snapshot.by_status.values()) == len(qs)
        assert sum(snapshot.by_reason.values()) == sum(q is None for q in qs)
