"""Parquet with image bytes: every row is in one shard, in order and once; a file that is wrong ends planning, and damage that is
met later costs its own samples.
"""

import hashlib
import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from da2ray.errors import NothingReadError, OutageError, Reason, SampleError, UserError
from da2ray.images.decode import DecodeMode, Limits
from da2ray.pipeline.stages.decoding import Decoding
from da2ray.pipeline.stages.reading import Reading
from da2ray.plan.plan import make_plan
from da2ray.report.originals import Originals
from da2ray.sources import Cut, ManifestSource, ParquetSource, Place, PrefixSource, Sample, Source, open_source
from da2ray.sources.parquet.plan import File, Group, Rows, cut_groups, unpack
from da2ray.storage import open_store
from da2ray.storage.open import Client
from da2ray.teachers.depth_anything.size import OfficialSize
from tests.fault_proxy import FaultProxy
from tests.sources.parquet.make_layouts import COUNT, LAYOUTS, picture

ALL = Cut(1000, 1 << 40)
BODIES = dict[str, bytes]()  # of the fixture `bucket`


def write(path: Path | str, columns: dict[str, Any], **options: Any) -> str:
    """Write a file, and return its URL."""
    path = str(path)
    root, _, name = path.rpartition("/")
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, **options)
    open_store(root).put(name, out.getvalue())
    return path


def images(count: int, start: int = 0) -> pa.Array:
    return pa.array([f"image {number}".encode() for number in range(start, start + count)], pa.binary())


def specs(source: Source, cut: Cut = ALL) -> list[bytes]:
    return [spec for batch in source.shards(cut) for spec in batch["spec"].to_pylist()]


def read(source: Source, cut: Cut = ALL, concurrency: int = 4) -> list[Sample]:
    """All samples of a source, read as another process would."""
    source, planned = pickle.loads(pickle.dumps((source, specs(source, cut))))  # noqa: S301
    return [sample for spec in planned for sample in source.read(spec, concurrency=concurrency)]


def reasons(samples: Sequence[Sample]) -> list[Reason | None]:
    return [sample.body.reason if isinstance(sample.body, SampleError) else None for sample in samples]


# -------------------------------------------------------------------------------------------------------- what others write


def test_datasets_of_hugging_face() -> None:
    source = open_source(LAYOUTS / "hugging_face.parquet")
    assert isinstance(source, ParquetSource)
    samples = read(source)
    assert [sample.body for sample in samples] == [picture(number) for number in range(COUNT)]
    assert [sample.member.key for sample in samples] == [f"hugging_face.parquet/{number}" for number in range(COUNT)]
    assert [sample.member.image_row for sample in samples] == list(range(COUNT))
    data = (LAYOUTS / "hugging_face.parquet").read_bytes()
    for sample in samples:  # stored as they are, so that one range of the file is the image
        begin, length = sample.member.image_offset or 0, sample.member.image_length or 0
        assert data[begin : begin + length] == sample.body


def test_datasets_of_hugging_face_with_images_elsewhere() -> None:
    samples = read(open_source(LAYOUTS / "external" / "data.parquet"))
    assert [sample.body for sample in samples] == [picture(number) for number in range(4)]
    assert samples[1].member.uri == str(LAYOUTS / "external" / "beside" / "1.jpg")
    assert [sample.member.image_row for sample in samples] == [None, None, None, 3]


def test_img2dataset() -> None:
    source = open_source(LAYOUTS / "img2dataset")
    samples = read(source)
    there = [number for number in range(COUNT) if number not in (4, 9)]
    for number, sample in zip(there, samples, strict=True):
        assert isinstance(sample.body, bytes)  # it encodes what it downloads anew
        assert Image.open(io.BytesIO(sample.body)).size == (24 + number, 20)
    assert [sample.member.key for sample in samples] == [f"00000{n}" for n in (0, 1, 2, 3, 5, 6)] + [
        f"00001{n}" for n in (0, 1, 3, 4)
    ]
    assert source.passed_over == {"failed_downloads": 2}


# ------------------------------------------------------------------------------------------------------------------- plans


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 90), st.integers(0, 5000)), min_size=1, max_size=8),
    st.integers(1, 60),
    st.integers(1, 20_000),
    st.none() | st.integers(1, 100),
)
def test_every_row_is_in_one_shard_in_order(
    sizes: list[tuple[int, int]], shard_size: int, shard_bytes: int, limit: int | None
) -> None:
    groups, first = [], 0
    for count, size in sizes:
        if count:
            groups.append(Group(Rows(File("f", 1, "e"), np.arange(first, first + count)), size))
        first += count
    found: list[int] = []
    for batch in cut_groups(groups, Cut(shard_size, shard_bytes, limit)):
        (row,) = batch.to_pylist()
        numbers = [number for rows in unpack(row["spec"]) for number in rows.numbers.tolist()]
        assert row["samples"] == len(numbers) <= shard_size
        assert row["exact"]
        assert row["bytes"] <= shard_bytes or len(numbers) == 1
        found += numbers
    assert found == list(range(first))[: limit if limit is not None else first]


def test_shards_are_row_groups_as_long_as_they_fit_and_even_parts_of_larger_ones(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"image": images(30)}, row_group_size=10)
    write(tmp_path / "b.parquet", {"image": images(50, 30)}, row_group_size=40)
    source = open_source(tmp_path)
    for size, counts in ((25, [20, 10, 20, 20, 10]), (40, [30, 40, 10]), (7, [5] * 6 + [6, 7, 7, 6, 7, 7, 5, 5])):
        (planned,) = [[batch["samples"][0].as_py() for batch in source.shards(Cut(size, 1 << 30))]]
        assert sorted(planned) == sorted(counts)
        assert [sample.body for sample in read(source, Cut(size, 1 << 30))] == images(80).to_pylist()
    assert [sample.body for sample in read(source, Cut(25, 1 << 30, limit=35))] == images(35).to_pylist()


def test_reading_may_begin_anywhere_and_samples_can_be_selected(tmp_path: Path) -> None:
    source = open_source(
        write(tmp_path / "a.parquet", {"image": images(50), "key": list(range(50))}, row_group_size=20)
    )
    planned = specs(source, Cut(20, 1 << 30))
    (whole,) = [[sample.member.key for spec in planned for sample in source.read(spec, concurrency=1)]]
    assert whole == [str(number) for number in range(50)]
    assert [each.member.key for each in source.read(planned[1], concurrency=3, skip=17)] == ["37", "38", "39"]
    assert [source.member(planned[2], row).key for row in (0, 9)] == ["40", "49"]  # type: ignore[union-attr]
    assert source.member(planned[2], 10) is None
    chosen = source.select([(planned[1], [Place(3), Place(4)]), (planned[0], [Place(19), Place(0)])])
    assert [each.body for each in source.read(chosen, concurrency=2)] == [
        f"image {n}".encode() for n in (23, 24, 19, 0)
    ]


def test_a_selection_of_images_of_a_rewritten_file(tmp_path: Path) -> None:
    """Where the key is file and row, the row is read as it is now. A column of keys may have moved, so it is not."""
    (tmp_path / "another").touch()  # the disk is still there when both files are gone
    for name, keys in (("plain", {}), ("keyed", {"key": ["a", "b", "c"]})):
        path = tmp_path / f"{name}.parquet"
        source = open_source(write(path, {"image": images(3), **keys}))
        (spec,) = specs(source)
        write(path, {"image": images(2, 100), **{name: column[1:] for name, column in keys.items()}})
        for each in (spec, source.select([(spec, [Place(0), Place(1), Place(2)])])):
            samples = list(source.read(each, concurrency=4))
            if keys:
                assert reasons(samples) == [Reason.UNREADABLE] * 3
            else:
                assert [sample.body for sample in samples[:2]] == [b"image 100", b"image 101"]
                assert reasons(samples) == [None, None, Reason.NOT_FOUND]
        path.unlink()
        assert reasons(list(source.read(spec, concurrency=4))) == [Reason.NOT_FOUND] * 3


# -------------------------------------------------------------------------------------------------------- columns and keys

STRUCT = pa.array([{"bytes": b"s", "path": None}])
BYTES, TEXT = pa.array([b"b"]), pa.array(["a.jpg"])


@pytest.mark.parametrize(
    ("columns", "options", "found"),
    [
        ({"image": STRUCT, "mask": STRUCT}, {}, "image.bytes"),
        ({"jpg": BYTES, "url": TEXT, "other": BYTES}, {}, "jpg"),
        ({" Image ": BYTES}, {}, " Image "),
        ({"pixels": BYTES, "n": pa.array([1])}, {}, "pixels"),
        ({"pixels": STRUCT, "caption": TEXT}, {}, "pixels.bytes"),
        ({"a": STRUCT, "b": STRUCT}, {"image_column": "b"}, "b.bytes"),
        ({"a": STRUCT, "b": STRUCT}, {"image_column": "b.bytes"}, "b.bytes"),
        ({"a": pa.array([{"image": {"bytes": b"n"}}]), "jpg": BYTES}, {"image_column": "a.image"}, "a.image.bytes"),
        ({"uri": TEXT, "thumb": BYTES}, {}, None),
        ({"uri": BYTES}, {}, None),
        ({"image": BYTES, "url": TEXT}, {"image_column": "url"}, None),
        ({"image": TEXT}, {}, None),
    ],
)
def test_the_column_of_images(
    tmp_path: Path, columns: dict[str, pa.Array], options: dict[str, str], found: str | None
) -> None:
    source = open_source(write(tmp_path / "a.parquet", columns), **options)
    if found is None:
        assert isinstance(source, ManifestSource)
    else:
        assert isinstance(source, ParquetSource)
        assert source.describe()["image_column"] == found
    assert len(specs(source)) == 1


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (
            {"a": STRUCT, "b": BYTES},
            {},
            r"several columns that may hold images \(a, b\): choose one with --image-column",
        ),
        ({"image": BYTES, " IMAGE": BYTES}, {}, r"several columns that may hold images \(image,  IMAGE\)"),
        ({"image": pa.array([[b"x"]])}, {}, "the column image holds lists"),
        ({"image": pa.array([[{"bytes": b"x"}]])}, {}, "the column image holds lists"),
        (
            {"image": STRUCT},
            {"image_column": "photo"},
            r"has no column photo \(--image-column\); its columns are image.bytes",
        ),
        ({"image": STRUCT}, {"key_column": "id"}, r"has no column id \(--key-column\)"),
        ({"image": STRUCT}, {"image_column": "image.path"}, "holds no image bytes"),
        ({"image": STRUCT, "key": pa.array([1.5])}, {}, "column 'key' of type double; it must be text or integers"),
        ({"image": STRUCT, "key": pa.array([" "])}, {}, "row 1 has no key"),
        ({"n": pa.array([1])}, {}, "has no column uri"),
    ],
)
def test_columns_that_do_not_fit(
    tmp_path: Path, columns: dict[str, pa.Array], options: dict[str, str], message: str
) -> None:
    url = write(tmp_path / "a.parquet", columns)
    with pytest.raises(UserError, match=message) as caught:
        specs(open_source(url, **options))
    assert url in str(caught.value)


def test_named_columns_are_part_of_the_source(tmp_path: Path) -> None:
    url = write(tmp_path / "a.parquet", {"image": BYTES, "other": BYTES, "key": pa.array(["k"]), "url": TEXT})
    options = [{}, {"image_column": "other"}, {"key_column": "none"}, {"key_column": "url"}, {"image_column": "url"}]
    described = [open_source(url, **each).describe() for each in options]
    assert len({tuple(sorted(each.items())) for each in described}) == len(options)
    assert described[0] == open_source(url, image_column="image", key_column="key").describe()


def test_columns_of_a_manifest_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    (tmp_path / "m.csv").write_text("where,id\na.jpg,one\n")
    source = open_source(tmp_path / "m.csv", image_column="where", key_column="id")
    assert [(each.member.key, each.body) for each in read(source)] == [("one", b"a")]
    assert source.describe()["image_column"] == "where"


def test_keys_come_from_a_column_and_name_one_row_each(tmp_path: Path) -> None:
    keys = pa.array(["x", None, "z"])
    write(tmp_path / "a.parquet", {"image": images(3), "key": keys})
    write(tmp_path / "b.parquet", {"image": images(1), "key": pa.array(["other"])})
    assert [each.member.key for each in read(open_source(tmp_path))] == ["x", "a.parquet/1", "z", "other"]
    write(tmp_path / "b.parquet", {"image": images(2), "key": pa.array(["y", "z"])})
    with pytest.raises(UserError, match=r"rows 3 of a.parquet and 2 of b.parquet have the same key 'z'.*--key-column"):
        specs(open_source(tmp_path))
    assert len(read(open_source(tmp_path), Cut(10, 1 << 30, limit=4))) == 4  # rows beyond the limit need not be right
    unkeyed = read(open_source(tmp_path, key_column="none"))
    assert [each.member.key for each in unkeyed] == [f"a.parquet/{n}" for n in range(3)] + [
        f"b.parquet/{n}" for n in range(2)
    ]


# ------------------------------------------------------------------------------------------------------ what can be wrong


def broken_files() -> dict[str, bytes]:
    out = io.BytesIO()
    pq.write_table(pa.table({"image": images(50)}), out)
    data = out.getvalue()
    return {
        "empty": b"",
        "text": b"not Parquet, but long enough to be",
        "cut": data[:-100],
        "encrypted": data[:-4] + b"PARE",
        "length": data[:-8] + b"\xff\xff\xff\x7f" + data[-4:],
        "footer": data[:-60] + bytes(30) + data[-30:],
        "columns": b"",
    }


@pytest.mark.parametrize("kind", broken_files())
def test_a_file_that_is_wrong_is_named_when_the_run_is_planned(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "a.parquet", {"image": images(3)})
    bad = tmp_path / "b.parquet"
    bad.write_bytes(broken_files()[kind])
    if kind == "columns":
        write(bad, {"image": pa.array(["text"])})
    for url in (tmp_path, bad)[: 1 if kind == "columns" else 2]:
        with pytest.raises(UserError, match=r"b\.parquet") as caught:
            specs(open_source(url))
        assert str(caught.value).count("\n") <= 1


def test_a_part_without_rows_has_no_samples(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"image": images(0)})
    assert specs(open_source(tmp_path)) == []
    write(tmp_path / "b.parquet", {"image": images(2)})
    assert len(read(open_source(tmp_path))) == 2


def test_files_beside_images_do_not_count_and_hidden_ones_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "_metadata.parquet", {"image": images(2)})
    write(tmp_path / "a.parquet", {"image": images(1)})
    (tmp_path / "a_stats.json").write_text("{}")
    assert len(read(open_source(tmp_path))) == 1
    (tmp_path / "photo.jpg").write_bytes(b"x")
    assert isinstance(open_source(tmp_path), PrefixSource)


def test_rows_without_bytes(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(b"beside")
    rows = [
        {"bytes": b"", "path": "x"},
        None,
        {"bytes": None, "path": "b.jpg"},
        {"bytes": None, "path": "./sub/../b.jpg"},
        {"bytes": None, "path": "gone.jpg"},
        {"bytes": None, "path": "https://example.com/a.jpg"},
        {"bytes": b"here", "path": None},
        {"bytes": None, "path": None},
    ]
    samples = read(open_source(write(tmp_path / "a.parquet", {"image": pa.array(rows)})))
    assert [each.member.key for each in samples] == [f"a.parquet/{n}" for n in range(8)]
    some = [None if isinstance(each.body, SampleError) else each.body for each in samples]
    assert some == [b"", None, b"beside", b"beside", None, None, b"here", None]
    assert reasons(samples) == [
        *(None, Reason.EMPTY, None, None, Reason.NOT_FOUND, Reason.FORBIDDEN, None, Reason.EMPTY),
    ]
    flat = read(open_source(write(tmp_path / "c.parquet", {"image": pa.array([None, b"x"], pa.binary())})))
    assert reasons(flat) == [Reason.EMPTY, None]


def test_paths_reach_what_a_manifest_may_name(tmp_path: Path) -> None:
    paths = [{"bytes": None, "path": path} for path in ("/etc/hostname", "../../etc/passwd")]
    rows = pa.array(paths, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    samples = read(open_source(write("memory://untrusted/a.parquet", {"image": rows})))
    assert isinstance(samples[0].body, SampleError)
    assert samples[0].body.reason is Reason.FORBIDDEN
    assert isinstance(samples[1].body, SampleError)


def test_damage_that_is_met_when_reading_costs_its_own_samples(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    source = open_source(
        write(
            path,
            {"image": images(60)},
            row_group_size=20,
            use_dictionary=False,
            write_page_checksum=True,
            compression="none",
        )
    )
    planned = specs(source)
    data = path.read_bytes()
    at = data.index(b"image 30")
    path.write_bytes(data[:at] + b"IMAGE" + data[at + 5 :])
    (samples,) = [list(source.read(spec, concurrency=4)) for spec in planned]
    assert reasons(samples) == [None] * 20 + [Reason.CORRUPT] * 20 + [None] * 20


# ------------------------------------------------------------------------------------------------------------- other stores


@pytest.mark.parametrize("folder", [True, False])
def test_object_stores(bucket: str, client: Client, folder: bool) -> None:
    place = f"{bucket}/{client}{folder}"
    for part in range(3 if folder else 1):
        write(f"{place}/{part}.parquet", {"image": images(40, 40 * part)}, row_group_size=15, write_page_index=True)
    source = open_source(place if folder else f"{place}/0.parquet", client)
    expected = images(120 if folder else 40).to_pylist()
    for size in (7, 100):
        assert [each.body for each in read(source, Cut(size, 1 << 30))] == expected
    assert all(each.etag for each in read(source))
    # Where keys come from a column, the version that was listed must be the one that is read.
    write(f"{place}/0.parquet", {"image": images(4), "key": list("abcd")})
    assert [each.member.key for each in read(open_source(f"{place}/0.parquet", client))] == list("abcd")


@pytest.mark.parametrize("folder", [True, False])
def test_a_scheme_of_fsspec(folder: bool) -> None:
    url = write(f"memory://parquet{folder}/a.parquet", {"image": images(40), "key": list(range(40))}, row_group_size=15)
    source = open_source(url.rpartition("/")[0] if folder else url)
    assert [each.body for each in read(source, Cut(7, 1 << 30))] == images(40).to_pylist()


@pytest.mark.parametrize("compression", ["none", "snappy"])
def test_one_image_is_read_from_its_row_of_the_index(tmp_path: Path, compression: str) -> None:
    out = io.BytesIO()
    Image.new("RGB", (80, 60), (9, 99, 199)).save(out, "PNG")
    rows = pa.array([{"bytes": None, "path": "x.png"}, {"bytes": out.getvalue(), "path": None}])
    (tmp_path / "x.png").write_bytes(out.getvalue())
    options = {"compression": compression, "use_dictionary": False}
    source = open_source(write(tmp_path / "a.parquet", {"image": rows}, **options))
    plan = make_plan(source, open_store(str(tmp_path / "out")), shard_size=4, limit=None, fingerprint="f")
    originals = Originals({plan.id: plan.info})
    for sample in read(source):
        member = sample.member
        assert isinstance(sample.body, bytes)
        row = {
            "plan": plan.id,
            "uri": member.uri,
            "sha256": hashlib.sha256(sample.body).digest(),
            **{name: getattr(member, name) for name in ("image_offset", "image_length", "image_row")},
        }
        assert (row["image_offset"] is None) == (compression == "snappy" or row["image_row"] is None)
        assert originals.read(row, (60, 80)).shape == (60, 80, 3)


@pytest.mark.parametrize("mode", ["down", "refused"])
def test_a_store_that_is_down_fails_no_sample(bucket: str, proxy: FaultProxy, client: Client, mode: Any) -> None:
    for part in range(3):
        write(f"{bucket}/{client}{mode}/{part}.parquet", {"image": images(5)})
    source = open_source(f"{bucket}/{client}{mode}", client)
    first, *others = specs(source, Cut(5, 1 << 30))
    proxy.set(mode)
    with pytest.raises(NothingReadError):
        list(source.read(first, concurrency=4))
    proxy.set("none")
    assert reasons(list(source.read(first, concurrency=4))) == [None] * 5
    proxy.set(mode)
    with pytest.raises(OutageError, match=bucket):
        list(source.read(others[0], concurrency=4))
    # One file that cannot be read is its own trouble, since another shows that the store works.
    proxy.applies = lambda request: "/1.parquet" in request.target
    both = source.select([(others[0], [Place(0)]), (others[1], [Place(0)])])
    assert len(reasons(list(source.read(both, concurrency=4)))) == 2
    assert reasons(list(source.read(both, concurrency=4)))[1] is None


def test_faults_on_the_way_change_nothing(bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DA2RAY_RETRY_SECONDS", "20")
    url = write(f"{bucket}/faulty/a.parquet", {"image": images(60)}, row_group_size=10)
    source = open_source(url)
    planned = specs(source)
    proxy.set("slow_down", "reset", "truncate", share=0.3)
    (samples,) = [list(source.read(spec, concurrency=4)) for spec in planned]
    assert [each.body for each in samples] == images(60).to_pylist()


# ------------------------------------------------------------------------------------------------------------ the pipeline


def test_the_index_says_where_the_image_lies(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.new("RGB", (80, 60)).save(out, "PNG")
    source = open_source(write(tmp_path / "a.parquet", {"image": pa.array([out.getvalue(), b"no image", None])}))
    (spec,) = specs(source)
    block = Reading(source, OfficialSize(), Limits(), Decoding(DecodeMode.EXACT), 4).read(0, spec)
    rows = sorted((row for batch in block["samples"].to_pylist() for row in batch), key=lambda row: row["row"])
    assert [(row["status"], row["reason"], row["image_row"]) for row in rows] == [
        ("labelled", None, 0),
        ("failed", "not_an_image", 1),
        ("failed", "empty", 2),
    ]
    assert {row["uri"] for row in rows} == {str(tmp_path / "a.parquet")}
