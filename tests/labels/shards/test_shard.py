"""Both formats hold the same labels, each in one range, readable without da2ray. Writing repeats the same bytes."""

import asyncio
import hashlib
import io
import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
import zstandard
from zarr.buffer import default_buffer_prototype
from zarr.codecs import BloscCodec, BytesCodec
from zarr.storage import MemoryStore

from da2ray.errors import Reason
from da2ray.labels.codec import dequantise
from da2ray.labels.schema import INDEX
from da2ray.labels.shards.formats import build_shard, read_value
from da2ray.labels.shards.parquet import locate
from da2ray.labels.shards.zarr import array_metadata, group_metadata
from tests.labels.samples import built, content, mixed

FORMATS = ["parquet", "zarr"]


@pytest.mark.parametrize("shard_format", FORMATS)
def test_each_range_in_the_index_decodes_alone(shard_format: str) -> None:
    rows, qs, originals = mixed()
    shard = build_shard(rows, qs, shard_format)
    assert shard.rows.schema.equals(INDEX)
    for row, q, original in zip(shard.rows.to_pylist(), qs, originals, strict=True):
        if q is None:
            assert [row[name] for name in ("byte_offset", "byte_length", "byte_crc32")] == [None] * 3
            continue
        value = shard.data[row["byte_offset"] : row["byte_offset"] + row["byte_length"]]
        assert zlib.crc32(value) == row["byte_crc32"]
        found = read_value(value, row["network_height"], row["network_width"], shard_format)
        np.testing.assert_array_equal(found, q)
        depth = dequantise(found, row["scale"], row["offset"])
        assert np.abs(depth - original).max() <= row["scale"] / 2 + 1e-6


def test_both_formats_yield_the_same_values() -> None:
    values = {}
    for shard_format in FORMATS:
        shard = built(shard_format)
        values[shard_format] = [
            read_value(
                shard.data[row["byte_offset"] :][: row["byte_length"]],
                row["network_height"],
                row["network_width"],
                shard_format,
            )
            for row in shard.rows.to_pylist()
            if row["byte_offset"] is not None
        ]
    for one, other in zip(*values.values(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("shard_format", FORMATS)
def test_two_builds_are_equal_byte_for_byte_also_in_another_process(shard_format: str) -> None:
    # Fixed: the releases of pyarrow, zarr and zstd. The labels are integers.
    first = built(shard_format)
    assert first.data == built(shard_format).data
    code = (
        "import hashlib; from tests.labels.samples import built;"
        f"print(hashlib.sha256(built({shard_format!r}).data).hexdigest())"
    )
    root = Path(__file__).parents[3]
    other = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert hashlib.sha256(first.data).hexdigest() == other.strip()


def test_plain_pyarrow_and_zstandard_read_a_parquet_shard() -> None:
    rows, qs, _ = mixed()
    table = pq.read_table(io.BytesIO(build_shard(rows, qs, "parquet").data))
    about = json.loads(table.schema.metadata[b"da2ray"])
    assert about["codec"] == "difference2d+zstd"
    assert "cumulative sum" in about["how_to_read"]
    assert table["key"].to_pylist() == rows["key"].to_pylist()
    assert table["mask"].null_count == len(rows)
    for row, q in zip(table.to_pylist(), qs, strict=True):
        if q is None:
            assert row["depth"] is None
            assert row["status"] in {"rejected", "failed"}
            continue
        differences = np.frombuffer(zstandard.decompress(row["depth"]), "<u2").reshape(row["height"], row["width"])
        np.testing.assert_array_equal(differences.cumsum(0, np.uint16).cumsum(1, np.uint16), q)


def test_plain_zarr_reads_a_zarr_shard(tmp_path: Path) -> None:
    rows, qs, _ = mixed()
    path = tmp_path / "shard.zarr.zip"
    path.write_bytes(build_shard(rows, qs, "zarr").data)
    with zarr.storage.ZipStore(path, mode="r") as store:
        root = zarr.open_group(store, mode="r")
        assert sorted(root.group_keys()) == ["28x42", "42x28"]
        seen = 0
        for name, group in root.groups():
            height, width = map(int, name.split("x"))
            assert group["q"].chunks == (1, height, width)
            assert group["q"].metadata.zarr_format == 3
            arrays = (group[part][:] for part in ("row", "scale", "offset", "q"))
            for key, row, scale, offset, q in zip(group.attrs["keys"], *arrays, strict=True):
                index = rows.slice(int(row), 1).to_pylist()[0]
                assert (key, scale, offset) == (index["key"], index["scale"], index["offset"])
                np.testing.assert_array_equal(q, qs[row])
                seen += 1
    assert seen == sum(q is not None for q in qs)


def test_zarr_metadata_are_those_that_zarr_itself_writes() -> None:
    written = MemoryStore()
    root = zarr.create_group(written, zarr_format=3, attributes={"da2ray": {"kinds": ["é"]}})
    rest = {"fill_value": 0, "serializer": BytesCodec(), "filters": None}
    for dtype, shuffle in (("uint16", "shuffle"), ("uint8", "bitshuffle")):
        codec = BloscCodec(typesize=np.dtype(dtype).itemsize, cname="zstd", clevel=4, shuffle=shuffle, blocksize=0)
        names = ("image", "y", "x")
        root.create_array(
            f"images {dtype}", shape=(3, 98, 70), chunks=(1, 98, 70), dtype=dtype, compressors=[codec],
            dimension_names=names, **rest,
        )  # fmt: skip
    for dtype in ("int32", "float32", "uint8"):
        root.create_array(
            f"numbers {dtype}",
            shape=(3,),
            chunks=(3,),
            dtype=dtype,
            compressors=None,
            dimension_names=("image",),
            **rest,
        )
    documents = {"zarr.json": group_metadata({"da2ray": {"kinds": ["é"]}})}
    documents |= {f"images {dtype}/zarr.json": array_metadata((3, 98, 70), dtype) for dtype in ("uint16", "uint8")}
    documents |= {f"numbers {dtype}/zarr.json": array_metadata((3,), dtype) for dtype in ("int32", "float32", "uint8")}
    found = {key: json.loads(asyncio.run(read(written, key))) for key in documents}
    assert found == json.loads(json.dumps(documents))


async def read(store: MemoryStore, key: str) -> bytes:
    buffer = await store.get(key, default_buffer_prototype())
    assert buffer is not None, key
    return buffer.to_bytes()


@pytest.mark.parametrize("shard_format", FORMATS)
def test_a_shard_without_labels_is_still_a_shard(shard_format: str) -> None:
    rows, qs, _ = content(["a", "b"], unlabelled={0: Reason.EMPTY, 1: Reason.CORRUPT})
    shard = build_shard(rows, qs, shard_format)
    assert shard.data
    assert shard.rows["byte_offset"].null_count == 2


def test_values_are_found_across_several_data_pages() -> None:
    keys = [f"{number}" for number in range(600)]  # more than the 256 rows of a page
    rows, qs, _ = content(keys, unlabelled={0: Reason.EMPTY, 256: Reason.EMPTY, 599: Reason.EMPTY})
    shard = build_shard(rows, qs, "parquet")
    for row, q in zip(shard.rows.to_pylist(), qs, strict=True):
        if q is not None:
            value = shard.data[row["byte_offset"] :][: row["byte_length"]]
            np.testing.assert_array_equal(read_value(value, *q.shape, "parquet"), q)


def test_a_layout_that_is_not_understood_is_refused() -> None:
    shard = built()
    with pytest.raises(RuntimeError, match="PLAIN"):
        locate(pa.py_buffer(shard.data), [b"not in there"], "depth")


def test_rows_and_maps_that_contradict_each_other_are_refused() -> None:
    rows, qs, _ = mixed()
    with pytest.raises(ValueError, match="6 maps"):
        build_shard(rows, qs[:-1], "parquet")
    with pytest.raises(ValueError, match="must have a map"):
        build_shard(rows, [None, None, *qs[2:]], "parquet")
    with pytest.raises(ValueError, match="the map is"):
        build_shard(rows, [*qs[:-1], qs[-1].T], "parquet")
    scales = [float("nan") if value is not None else None for value in rows["scale"].to_pylist()]
    broken = rows.set_column(rows.schema.get_field_index("scale"), INDEX.field("scale"), pa.array(scales, pa.float32()))
    with pytest.raises(ValueError, match="scale is missing or not finite"):
        build_shard(broken, qs, "zarr")


@pytest.mark.parametrize("shard_format", FORMATS)
def test_broken_values_raise_value_error(shard_format: str) -> None:
    row = built(shard_format).rows.to_pylist()[1]
    value = built(shard_format).data[row["byte_offset"] :][: row["byte_length"]]
    size = (row["network_height"], row["network_width"])
    for bad in (value[:-1], b"", value[:20], value + b"x"):
        with pytest.raises(ValueError, match="label"):
            read_value(bad, *size, shard_format)
    with pytest.raises(ValueError, match="label"):
        read_value(value, size[0] + 1, size[1], shard_format)
