"""Masks come back with the same levels from both formats. Each is one range of the shard, and is checked like a label."""

import io
import re
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
import zstandard

import da2ray
from da2ray.labels.codec import decode_mask, encode_mask
from da2ray.labels.commits import read_commit, serialise
from da2ray.labels.schema import INDEX, conform
from da2ray.labels.shards.base import MAPS, Masks
from da2ray.labels.shards.formats import build_shard, read_mask
from da2ray.labels.upkeep.verify import verify
from da2ray.storage import Store
from tests.labels.samples import built, dataset, masks, mixed

FORMATS = ["parquet", "zarr"]
OF_MASKS = ["mask_offset", "mask_length", "mask_crc32", "mask_bits"]


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (9, 5), (28, 42)])
def test_levels_come_back_whatever_their_bits(bits: int, shape: tuple[int, int]) -> None:
    levels = np.random.default_rng(bits).integers(0, 2**bits, shape, dtype=np.uint8)
    data = encode_mask(levels, bits)
    assert data == encode_mask(np.asfortranarray(levels), bits)
    np.testing.assert_array_equal(decode_mask(data, *shape, bits), levels)
    for bad in (data[:-1], b"", data + b"x"):
        with pytest.raises(ValueError, match="mask"):
            decode_mask(bad, *shape, bits)
    with pytest.raises(ValueError, match="mask"):
        decode_mask(data, shape[0] + 8, shape[1], bits)


def test_levels_that_the_bits_do_not_hold_are_corrupt() -> None:
    levels = np.full((4, 4), 7, np.uint8)
    with pytest.raises(ValueError, match="mask of 3 bits: it holds 15"):
        decode_mask(encode_mask(levels + 8, 4), 4, 4, 3)  # both take four bits a pixel
    with pytest.raises(ValueError, match="1 to 8"):
        decode_mask(encode_mask(levels, 4), 4, 4, 9)


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
@pytest.mark.parametrize("shard_format", FORMATS)
def test_each_range_in_the_index_decodes_alone(shard_format: str, bits: int) -> None:
    rows, qs, _ = mixed()
    given = masks(qs, bits)
    shard = build_shard(rows, qs, shard_format, given)
    for row, levels in zip(shard.rows.to_pylist(), given.levels, strict=True):
        if levels is None:
            assert [row[name] for name in OF_MASKS] == [None] * 4
            continue
        value = shard.data[row["mask_offset"] : row["mask_offset"] + row["mask_length"]]
        assert (zlib.crc32(value), bits) == (row["mask_crc32"], row["mask_bits"])
        found = read_mask(value, row["network_height"], row["network_width"], bits, shard_format)
        np.testing.assert_array_equal(found, levels)


@pytest.mark.parametrize("shard_format", FORMATS)
def test_masks_leave_the_labels_as_they_are(shard_format: str) -> None:
    plain, masked = built(shard_format), built(shard_format, masked=True)
    assert all(plain.rows[name].null_count == len(plain.rows) for name in OF_MASKS)
    labels = [
        [
            shard.data[row["byte_offset"] :][: row["byte_length"]]
            for row in shard.rows.to_pylist()
            if row["byte_offset"] is not None
        ]
        for shard in (plain, masked)
    ]
    assert labels[0] == labels[1]
    assert masked.data == built(shard_format, masked=True).data


def test_masks_that_do_not_fit_their_labels_are_refused() -> None:
    rows, qs, _ = mixed()
    good = masks(qs)
    turned = [None if levels is None else levels.T for levels in good.levels]
    unlabelled = [np.zeros((28, 42), np.uint8), *good.levels[1:]]
    for bits, levels in ((2, turned), (2, unlabelled), (1, good.levels)):
        with pytest.raises(ValueError, match="mask"):
            build_shard(rows, qs, "parquet", Masks(bits, levels))


def test_the_formats_own_readers_see_the_masks() -> None:
    _, qs, _ = mixed()
    expected = masks(qs).levels
    table = pq.read_table(io.BytesIO(built(masked=True).data))
    assert [bits for bits in table["mask_bits"].to_pylist() if bits] == [2] * sum(each is not None for each in expected)
    for value, levels in zip(table["mask"].to_pylist(), expected, strict=True):
        assert (value is None) == (levels is None)
        if levels is not None:
            packed = np.frombuffer(zstandard.decompress(value), np.uint8)
            unpacked = np.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)], axis=1).ravel()
            np.testing.assert_array_equal(unpacked[: levels.size].reshape(levels.shape), levels)

    data = built("zarr", masked=True).data
    members = {
        name: zipfile.ZipFile(io.BytesIO(data)).read(name) for name in zipfile.ZipFile(io.BytesIO(data)).namelist()
    }
    store = zarr.storage.MemoryStore(
        {name: zarr.core.buffer.cpu.Buffer.from_bytes(value) for name, value in members.items()}
    )
    for _, group in zarr.open_group(store, mode="r").groups():
        for row, bits, levels in zip(group["row"][:], group["mask_bits"][:], group["mask"][:], strict=True):
            assert (bits == 0) == (expected[row] is None)
            if bits:
                np.testing.assert_array_equal(levels, expected[row])


def test_the_example_in_format_md_decodes_a_mask() -> None:
    text = (Path(da2ray.__file__).parent / "labels" / "FORMAT.md").read_text()
    (example,) = (code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "mask_data" in code)
    _, qs, _ = mixed()
    shard = built(masked=True)
    row = shard.rows.slice(1, 1).to_pylist()[0]
    names = {"np": np, "zstandard": zstandard, "row": row}
    names["mask_data"] = shard.data[row["mask_offset"] :][: row["mask_length"]]
    exec(example, names)  # noqa: S102 - our own documentation
    np.testing.assert_array_equal(names["levels"], masks(qs).levels[1])
    assert names["confidence"].max() == 1


# ---------------------------------------------------------------------------------------------------------- datasets


@pytest.fixture(params=FORMATS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return dataset(tmp_path, request.param, shards=2, masked=True, with_far=True)


def test_labels_have_their_masks_as_levels_and_as_shares(store: Store) -> None:
    _, qs, _ = mixed()
    labels = da2ray.open_labels(store.url)
    for label, levels in zip(labels, masks(qs).levels * 2, strict=True):
        if levels is None:
            assert (label.mask, label.mask_bits, label.confidence) == (None, None, None)
            continue
        np.testing.assert_array_equal(label.mask, levels)
        assert (label.mask.dtype, label.mask_bits, label.confidence.dtype) == (np.uint8, 2, np.float32)
        np.testing.assert_allclose(label.confidence, levels / 3, rtol=1e-6)


@pytest.mark.parametrize(("name", "what"), MAPS.items())
def test_a_flipped_bit_beside_a_depth_is_noticed_by_reading_and_by_verify(store: Store, name: str, what: str) -> None:
    format_of_shards = da2ray.open_labels(store.url).info.format
    assert verify(store, format_of_shards).findings == []
    row = da2ray.open_labels(store.url).index.slice(2, 1).to_pylist()[0]
    data = bytearray(store.get(row["object"]))
    data[row[f"{name}_offset"] + row[f"{name}_length"] // 2] ^= 1
    store.put(row["object"], bytes(data))
    with pytest.raises(OSError, match=rf"{row['object']}: the {what} of '0/2.jpg'.*da2ray verify"):
        da2ray.open_labels(store.url)[2]
    found = {finding.what.value for finding in verify(store, format_of_shards).findings}
    assert {"checksum", "value"} <= found


def test_verify_decodes_masks_too(store: Store) -> None:
    """The commit has a wrong number of bits, while all bytes and checksums are right."""
    format_of_shards = da2ray.open_labels(store.url).info.format
    commit = read_commit(store, "p", 0)
    place = commit.rows.schema.get_field_index("mask_bits")
    bits = pa.array([each and 1 for each in commit.rows["mask_bits"].to_pylist()], pa.int8())
    rows = commit.rows.set_column(place, INDEX.field("mask_bits"), bits)
    fields = {name: getattr(commit, name) for name in type(commit).__dataclass_fields__}
    store.put("commits/p/00000000.parquet", serialise(type(commit)(**fields | {"rows": rows})))
    found = [finding for finding in verify(store, format_of_shards).findings if finding.what.value == "value"]
    assert len(found) == 1
    assert "mask" in found[0].detail


def test_index_rows_of_an_older_release_read_with_nulls_for_what_is_new() -> None:
    rows, _, _ = mixed()
    new = [*OF_MASKS, "mask_source", "focal", "focal_source", "checker_mean", "metric_scale"]
    older = rows.drop_columns(new)
    found = conform(older, INDEX)
    assert found.schema.equals(INDEX)
    assert found.equals(rows)
    with pytest.raises(pa.ArrowInvalid, match="key"):
        conform(older.drop_columns("key"), INDEX)
