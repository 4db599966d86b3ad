"""S3 Inventory: its files list the image objects of a bucket and are checked first, and an object that is gone did not fail."""

import gzip
import hashlib
import io
import json
import pickle
from typing import Any
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet as pq
import pytest

from da2ray.errors import Reason, SampleError, Status, UserError
from da2ray.sources import Cut, Member, Source, open_source
from da2ray.sources.inventory import InventorySource
from da2ray.storage import open_store

RUN = "2026-11-27T01-00Z"
NAMES = {"bucket": "Bucket", "key": "Key", "version_id": "VersionId", "is_latest": "IsLatest"} | {
    "is_delete_marker": "IsDeleteMarker",
    "size": "Size",
    "e_tag": "ETag",
}
TYPES = {"is_latest": pa.bool_(), "is_delete_marker": pa.bool_(), "size": pa.int64()}


def row(key: str, size: int | None = 3, **others: Any) -> dict[str, Any]:
    return {"bucket": "photos", "key": key, "size": size, "e_tag": f"etag-{len(key)}", **others}


def encoded(form: str, rows: list[dict[str, Any]]) -> tuple[str, bytes]:
    """The schema of a file for the manifest, and the file."""
    columns = [name for name in NAMES if any(name in each for each in rows)]
    if form == "CSV":

        def cell(name: str, value: Any) -> str:
            text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            return '"' + (quote_plus(text, safe="/") if name == "key" else text) + '"'

        lines = "".join(",".join(cell(name, each.get(name)) for name in columns) + "\n" for each in rows)
        return ", ".join(NAMES[name] for name in columns), gzip.compress(lines.encode())
    table = pa.table(
        {name: pa.array([each.get(name) for each in rows], TYPES.get(name, pa.string())) for name in columns}
    )
    out = io.BytesIO()
    pq.write_table(table, out) if form == "Parquet" else pyarrow.orc.write_table(table, out)
    return "struct<…>", out.getvalue()


def write(
    url: str,
    rows_of_files: list[list[dict[str, Any]]],
    form: str = "CSV",
    run: str = RUN,
    source: str = "photos",
    **changes: Any,
) -> str:
    """Write an inventory as S3 does, with the configuration at `url`, and return the URL of its manifest."""
    store = open_store(url)
    listed, schema = [], ""
    for number, rows in enumerate(rows_of_files):
        schema, data = encoded(form, rows)
        name = f"{run}-{number}.{'csv.gz' if form == 'CSV' else form.lower()}"
        store.put(f"data/{name}", data)
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        listed.append({"key": f"x/y/data/{name}", "size": len(data), "MD5checksum": md5})
    manifest = {
        "sourceBucket": source,
        "destinationBucket": "arn:aws:s3:::elsewhere",
        "version": "2016-11-30",
        "creationTimestamp": "1514944800000",
        "fileFormat": form,
        "fileSchema": schema,
        "files": listed,
        **changes,
    }
    data = json.dumps(manifest).encode()
    store.put(f"{run}/manifest.json", data)
    store.put(f"{run}/manifest.checksum", hashlib.md5(data, usedforsecurity=False).hexdigest().encode() + b"\n")
    return f"{url}/{run}/manifest.json"


def members(source: Source) -> list[Member]:
    found = []
    for batch in source.shards(Cut(2, 1 << 40)):
        for spec, count in zip(batch["spec"].to_pylist(), batch["samples"].to_pylist(), strict=True):
            some = [source.member(spec, place) for place in range(count)]
            found += [each for each in some if each is not None]
    return found


KEYS = ["a.jpg", "sub/b c+d%.PNG", "ä/é.jpeg", 'quo"te,.jpg']


@pytest.mark.parametrize("form", ["CSV", "Parquet", "ORC"])
def test_image_files_of_every_format(tmp_path: Any, form: str) -> None:
    rows = [row(key, number) for number, key in enumerate(KEYS)]
    others = [row("notes.txt"), row(".hidden/a.jpg"), row("c.heic"), row("folder.jpg/", 0)]
    source = open_source(write(str(tmp_path), [rows[:3], [rows[3], *others]], form))
    assert isinstance(source, InventorySource)
    assert members(source) == [
        Member(key, f"s3://photos/{key}", number, f"etag-{len(key)}") for number, key in enumerate(KEYS)
    ]
    assert {kind: count for kind, count in source.passed_over.items() if count} == {
        "hidden_files": 1,
        "other_image_types": 1,
    }
    assert len(members(pickle.loads(pickle.dumps(source)))) == 4  # noqa: S301


@pytest.mark.parametrize("form", ["CSV", "Parquet", "ORC"])
def test_only_the_latest_version_counts(tmp_path: Any, form: str) -> None:
    def version(key: str, latest: bool, deleted: bool) -> dict[str, Any]:
        size = None if deleted else 3
        return row(key, size, version_id="v", is_latest=latest, is_delete_marker=deleted)

    rows = [
        version("a.jpg", False, False),
        version("a.jpg", True, False),
        version("b.jpg", True, True),
        version("b.jpg", False, False),
    ]
    assert [each.key for each in members(open_source(write(str(tmp_path), [rows], form)))] == ["a.jpg"]


@pytest.mark.parametrize("form", ["CSV", "Parquet", "ORC"])
def test_an_inventory_need_not_have_sizes_and_etags(tmp_path: Any, form: str) -> None:
    source = open_source(write(str(tmp_path), [[{"bucket": "photos", "key": "a.jpg"}]], form))
    assert members(source) == [Member("a.jpg", "s3://photos/a.jpg")]


def test_the_newest_complete_inventory_of_a_folder(tmp_path: Any) -> None:
    for number, run in enumerate(("2026-11-25T01-00Z", "2026-11-27T01-00Z", "2026-11-26T01-00Z")):
        write(str(tmp_path), [[row(f"{number}.jpg")]], "Parquet", run)
    assert [each.key for each in members(open_source(tmp_path))] == ["1.jpg"]
    (tmp_path / "2026-11-27T01-00Z" / "manifest.checksum").unlink()  # S3 writes it last
    assert [each.key for each in members(open_source(tmp_path))] == ["2.jpg"]
    assert [each.key for each in members(open_source(tmp_path / "2026-11-26T01-00Z"))] == ["2.jpg"]


def test_an_inventory_is_its_content(tmp_path: Any) -> None:
    url = write(str(tmp_path), [[row("a.jpg")]])
    source = open_source(url)
    assert open_source(url).describe() == source.describe()
    write(str(tmp_path), [[row("b.jpg")]])
    assert open_source(url).describe() != source.describe()
    with pytest.raises(UserError, match="has changed since the run began"):
        members(source)


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "not gzip", "no key"])
def test_a_file_that_is_not_the_one_of_the_manifest_is_named(tmp_path: Any, damage: str) -> None:
    rows = [row(f"{number}.jpg") for number in range(100)]
    url = write(str(tmp_path), [[row("first.jpg")], rows])
    path = tmp_path / "data" / f"{RUN}-1.csv.gz"
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[:-20])
    elif damage == "changed":
        path.write_bytes(data[:-20] + bytes(20))
    elif damage == "gone":
        path.unlink()
    elif damage == "not gzip":
        broken = b"\x1f\x8b" + data[2:40]
        path.write_bytes(broken)
        md5 = hashlib.md5(broken, usedforsecurity=False).hexdigest()
        files = json.loads((tmp_path / RUN / "manifest.json").read_text())["files"]
        changed = {"files": [files[0], files[1] | {"size": len(broken), "MD5checksum": md5}]}
        write(str(tmp_path), [[row("first.jpg")]], **changed)
    else:
        url = write(str(tmp_path), [[row("first.jpg")], rows], fileSchema="Bucket, Name, Size, ETag")
    source = open_source(url)
    with pytest.raises(UserError, match=f"{RUN}-0" if damage == "no key" else f"{RUN}-1") as caught:
        members(source)
    assert str(caught.value).count("\n") <= 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"files": []}, "is not the manifest of an S3 inventory: sourceBucket"),
        ({"sourceBucket": "../x"}, "sourceBucket"),
        ([1], "is not the manifest"),
        (None, "its manifest.checksum says"),
    ],
)
def test_other_json_is_no_inventory(tmp_path: Any, content: Any, words: str) -> None:
    url = write(str(tmp_path), [[row("a.jpg")]])
    if content is None:
        open_store(str(tmp_path)).put(f"{RUN}/manifest.checksum", b"0" * 32)
    else:
        data = json.dumps(content).encode()
        open_store(str(tmp_path)).put(f"{RUN}/manifest.json", data)
        digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
        open_store(str(tmp_path)).put(f"{RUN}/manifest.checksum", digest.encode())
    with pytest.raises(UserError, match=words):
        open_source(url)
    (tmp_path / "a_stats.json").write_text("{}")
    with pytest.raises(UserError, match=r"a_stats\.json: its manifest\.checksum is missing"):
        open_source(tmp_path / "a_stats.json")


def test_a_key_that_is_listed_twice_ends_planning(tmp_path: Any) -> None:
    source = open_source(write(str(tmp_path), [[row("a.jpg"), row("b.jpg")], [row("b.jpg")]]))
    with pytest.raises(UserError, match=r"have the same key 'b\.jpg'"):
        members(source)


def test_a_limit_reads_no_more_files_than_it_needs(tmp_path: Any) -> None:
    source = open_source(write(str(tmp_path), [[row("a.jpg"), row("b.jpg")], [row("c.jpg")]]))
    (tmp_path / "data" / f"{RUN}-1.csv.gz").unlink()
    assert len([spec for batch in source.shards(Cut(1, 1 << 40, limit=2)) for spec in batch["spec"]]) == 2


def test_objects_that_are_gone_since_did_not_fail(s3: Any) -> None:
    objects, inventory = s3.create_bucket(), s3.create_bucket()
    store = open_store(objects)
    for name in ("a.jpg", "b c.jpg"):
        store.put(name, name.encode())
    bucket = objects.removeprefix("s3://")
    rows = [row(name) for name in ("a.jpg", "b c.jpg", "deleted.jpg")]
    source = open_source(
        write(f"{inventory}/x/y", [rows], source=bucket, destinationBucket=f"arn:aws:s3:::{inventory[5:]}")
    )
    assert isinstance(source, InventorySource)
    (spec,) = [spec for batch in source.shards(Cut(10, 1 << 40)) for spec in batch["spec"].to_pylist()]
    bodies = [sample.body for sample in source.read(spec, concurrency=2)]
    assert bodies[:2] == [b"a.jpg", b"b c.jpg"]
    assert isinstance(bodies[2], SampleError)
    assert bodies[2].reason is Reason.GONE
    assert Reason.GONE.status is Status.REJECTED  # neither --max-failed nor --retry-failed counts it
