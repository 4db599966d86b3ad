"""The far class is a map beside the depth. Both formats give the same one, it is checked like a mask, and a map without far
pixels takes no bytes.
"""

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
from da2ray.labels.commits import Commit, commit_key, read_commit, serialise
from da2ray.labels.schema import INDEX
from da2ray.labels.shards.base import BuiltShard
from da2ray.labels.shards.formats import build_shard, read_mask
from da2ray.labels.shards.whole import read_shard
from da2ray.labels.upkeep.check import check_values
from da2ray.labels.upkeep.verify import verify
from da2ray.storage import Store
from tests.labels.samples import built, dataset, far_classes, masks, mixed

FORMATS = ["parquet", "zarr"]
OF_FAR = ["far_offset", "far_length", "far_crc32"]


def expected() -> list[np.ndarray | None]:
    rows, qs, _ = mixed()
    return far_classes(rows, qs)[1]


def values(shard: BuiltShard, prefix: str) -> list[bytes | None]:
    """The bytes in each row's range."""
    ranges = zip(*(shard.rows[f"{prefix}_{name}"].to_pylist() for name in ("offset", "length")), strict=True)
    return [None if offset is None else shard.data[offset : offset + length] for offset, length in ranges]


@pytest.mark.parametrize("shard_format", FORMATS)
def test_each_range_in_the_index_decodes_alone(shard_format: str) -> None:
    shard = built(shard_format, masked=True, with_far=True)
    assert sum(far is not None for far in expected()) == 3
    for row, value, far in zip(shard.rows.to_pylist(), values(shard, "far"), expected(), strict=True):
        if far is None:
            assert [row[name] for name in OF_FAR] == [None] * 3
            continue
        assert zlib.crc32(value) == row["far_crc32"]
        assert 0 < far.mean() < 1
        found = read_mask(value, row["network_height"], row["network_width"], 1, shard_format)
        np.testing.assert_array_equal(found, far)


@pytest.mark.parametrize("shard_format", FORMATS)
@pytest.mark.parametrize("masked", [False, True])
def test_a_far_class_changes_no_byte_of_a_depth_or_a_mask(shard_format: str, masked: bool) -> None:
    without, beside = built(shard_format, masked=masked), built(shard_format, masked=masked, with_far=True)
    for prefix in ("byte", "mask"):
        assert values(without, prefix) == values(beside, prefix)
    assert without.rows["mask_bits"].equals(beside.rows["mask_bits"])


@pytest.mark.parametrize("shard_format", FORMATS)
def test_a_map_without_a_far_pixel_takes_no_byte(shard_format: str) -> None:
    rows, qs, _ = mixed()
    nowhere = [None if q is None else np.zeros(q.shape, np.bool_) for q in qs]
    plain = build_shard(rows, qs, shard_format)
    assert build_shard(rows, qs, shard_format, far=nowhere).data == plain.data
    assert build_shard(rows, qs, shard_format, far=[None] * len(qs)).data == plain.data
    if shard_format == "zarr":
        names = zipfile.ZipFile(io.BytesIO(plain.data)).namelist()
        assert not [name for name in names if "/far/" in name]


def test_any_view_is_stored_like_its_copy() -> None:
    rows, qs, _ = mixed()
    rows, far = far_classes(rows, qs)
    turned = [None if each is None else np.asfortranarray(each) for each in far]
    for shard_format in FORMATS:
        one, other = (build_shard(rows, qs, shard_format, far=given).data for given in (far, turned))
        assert one == other


def test_what_does_not_fit_its_label_is_refused() -> None:
    rows, qs, _ = mixed()
    far = far_classes(rows, qs)[1]
    for bad in (
        [None if each is None else each.T for each in far],  # other sizes
        [np.ones((28, 42), np.bool_), *far[1:]],  # for a row without a label
        [None if each is None else each.astype(np.uint8) for each in far],
        far[:-1],
    ):
        with pytest.raises(ValueError, match=r"far class|shorter"):
            build_shard(rows, qs, "parquet", far=bad)


def test_the_formats_own_readers_see_it(tmp_path: Path) -> None:
    table = pq.read_table(io.BytesIO(built(with_far=True).data))
    for value, far in zip(table["far"].to_pylist(), expected(), strict=True):
        assert (value is None) == (far is None)
        if far is not None:
            bits = np.unpackbits(np.frombuffer(zstandard.decompress(value), np.uint8), bitorder="little")
            np.testing.assert_array_equal(bits[: far.size].reshape(far.shape), far)

    path = tmp_path / "shard.zarr.zip"
    path.write_bytes(built("zarr", with_far=True).data)
    with zarr.storage.ZipStore(path, mode="r") as store:
        for _, group in zarr.open_group(store, mode="r").groups():
            for row, found in zip(group["row"][:], group["far"][:], strict=True):
                far = expected()[row]
                np.testing.assert_array_equal(found, np.zeros_like(found) if far is None else far)


def test_a_parquet_shard_of_an_older_release_still_reads() -> None:
    shard = built(masked=True)
    sink = pa.BufferOutputStream()
    pq.write_table(pq.read_table(io.BytesIO(shard.data)).drop_columns("far"), sink)
    older, newer = (read_shard(data, "parquet") for data in (sink.getvalue().to_pybytes(), shard.data))
    assert older.equals(newer)


def test_the_example_in_format_md_decodes_it() -> None:
    text = (Path(da2ray.__file__).parent / "labels" / "FORMAT.md").read_text()
    (example,) = (code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "far_data" in code)
    shard = built(with_far=True)
    names = {"np": np, "zstandard": zstandard, "row": shard.rows.slice(2, 1).to_pylist()[0]}
    names["far_data"] = values(shard, "far")[2]
    exec(example, names)  # noqa: S102 - our own documentation
    np.testing.assert_array_equal(names["far"], expected()[2])


# ---------------------------------------------------------------------------------------------------------- datasets


@pytest.fixture(params=FORMATS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return dataset(tmp_path, request.param, masked=True, with_far=True)


def test_labels_distinguish_no_far_pixel_from_an_unknown_far_class(store: Store) -> None:
    labels = da2ray.open_labels(store.url)
    shares = labels.index["far_share"].to_pylist()
    for label, share, far in zip(labels, shares, expected(), strict=True):
        if share is None:
            assert label.far is None
            continue
        assert (label.far.dtype, label.far.shape) == (np.bool_, label.depth.shape)
        np.testing.assert_array_equal(label.far, np.zeros_like(label.far) if far is None else far)
        assert label.scores["far_share"] == pytest.approx(label.far.mean())
    assert [label.far is None for label in labels] == [share is None for share in shares]
    assert 0.0 in shares


def test_formats_yield_the_same_labels_with_all_that_lies_beside_them(tmp_path: Path) -> None:
    pair = [da2ray.open_labels(dataset(tmp_path / name, name, masked=True, with_far=True).url) for name in FORMATS]
    for one, other in zip(*pair, strict=True):
        for name in ("depth", "mask", "far"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    _, qs, _ = mixed()
    for label, levels, far in zip(pair[0], masks(qs).levels, expected(), strict=True):
        np.testing.assert_array_equal(label.mask, levels)
        assert far is None or np.array_equal(label.far, far)


def found_after(store: Store, changes: dict[str, dict[int, object]]) -> dict[str, str]:
    """The findings of `verify` after the commit of the shard got other values in some rows: detail by kind."""
    commit = read_commit(store, "p", 0)
    rows = commit.rows
    for name, changed in changes.items():
        new = [changed.get(row, old) for row, old in enumerate(rows[name].to_pylist())]
        rows = rows.set_column(INDEX.get_field_index(name), INDEX.field(name), pa.array(new, INDEX.field(name).type))
    fields = {name: getattr(commit, name) for name in Commit.__dataclass_fields__}
    store.put(commit_key("p", 0), serialise(Commit(**fields | {"rows": rows})))
    findings = verify(store, da2ray.open_labels(store.url).info.format).findings
    return {finding.what.value: finding.detail for finding in findings}


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"far_share": {2: 0.9}}, "far_share is 0.9"),
        ({"far_share": {1: 0.01}}, "far_share is 0.01, but the mean of its far class is 0"),
        ({"far_share": {2: float("nan")}}, "far_share is nan"),
        ({"far_share": {2: None}}, "far_share is missing"),
        (
            {name: {2: None} for name in OF_FAR} | {"far_share": {2: 0.0}},
            "the shard itself holds a far class, but the index has none",
        ),
    ],
    ids=["another share", "a share without a map", "no number", "a map without a share", "a map that the index lost"],
)
def test_verify_compares_the_share_in_the_index_with_the_map(
    store: Store, changes: dict[str, dict[int, object]], detail: str
) -> None:
    assert detail in found_after(store, changes)["value"]


def test_a_range_in_parts_or_of_a_row_without_label_contradicts_the_commit(store: Store) -> None:
    assert "far_crc32" in found_after(store, {"far_crc32": {2: None}})["commit"]
    assert (
        "far_offset" in found_after(store, {"far_offset": {0: 5}, "far_length": {0: 5}, "far_crc32": {0: 5}})["commit"]
    )


def test_traded_ranges_are_found(store: Store) -> None:
    """Two far classes of one size trade places. Both decode, but belong to the other image."""
    rows = read_commit(store, "p", 0).rows.to_pylist()
    other = next(row for row in rows[3:] if row["far_offset"] and row["network_height"] == rows[3]["network_height"])
    first = next(row for row in rows if row["far_offset"] and row["row"] != other["row"])
    names = [*OF_FAR, "far_share"]
    changes = {name: {first["row"]: other[name], other["row"]: first[name]} for name in names}
    assert "value" in found_after(store, changes)


def test_the_share_may_be_rounded_and_no_more() -> None:
    shard = built(with_far=True)
    for error, broken in ((5e-5, 0), (2e-4, 1)):
        shares = [share and share + error for share in shard.rows["far_share"].to_pylist()]
        rows = shard.rows.set_column(
            INDEX.get_field_index("far_share"), INDEX.field("far_share"), pa.array(shares, pa.float32())
        )
        assert len(check_values(rows, shard.data, "parquet")) == broken
