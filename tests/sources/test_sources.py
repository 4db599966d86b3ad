"""A source lists every image once, in an order that repeats, and reading one never stops the others."""

import json
import pickle
import resource
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from da2ray.errors import NothingReadError, Reason, SampleError, UserError
from da2ray.sources import MEMBERS, Cut, Member, MemberSource, Sample, members_of, open_source
from da2ray.sources import fetch as fetching
from da2ray.sources.fetch import fetch
from da2ray.storage import Fetched, Store, open_store


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path / "images"))
    return open_store(request.getfixturevalue("s3").create_bucket() + "/images")


def listed(source: MemberSource, limit: int | None = None) -> list[Member]:
    batches = list(source.members(limit))
    assert all(batch.schema == MEMBERS for batch in batches)
    return [member for batch in batches for member in members_of(batch)]


def keys(source: MemberSource, limit: int | None = None) -> list[str]:
    return [member.key for member in listed(source, limit)]


IMAGES = ["a.jpg", "b/c.JPEG", "b/d e.png", "ü.webp", "x.y.tif"]


@pytest.fixture
def images(store: Store) -> str:
    for name in [*IMAGES, "readme.txt", "b/jpg", ".hidden.jpg", "b/.cache/e.jpg", "a.jpg.json"]:
        store.put(name, name.encode())
    return store.url


def test_a_prefix_is_its_visible_image_files(images: str, store: Store) -> None:
    source = open_source(images + "/")
    members = listed(source)
    assert [member.key for member in members] == sorted(IMAGES, key=str.encode)
    for member in members:
        assert member.uri == f"{images}/{member.key}"
        assert member.size == len(member.key.encode())
        assert member.etag == store.stat(member.key).etag
    assert listed(source) == members
    assert keys(source, limit=2) == [member.key for member in members[:2]]


def test_an_empty_image_file_is_a_sample(store: Store) -> None:
    store.put("a.jpg", b"")
    assert [member.size for member in listed(open_source(store.url))] == [0]


def test_one_image_file_is_a_source(images: str) -> None:
    source = open_source(f"{images}/b/d e.png")
    (member,) = listed(source)
    assert (member.key, member.uri, member.size) == ("d e.png", f"{images}/b/d e.png", 9)
    assert source.root == f"{images}/b"


def test_a_source_travels_to_other_processes(images: str) -> None:
    source = open_source(images)
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert listed(copy) == listed(source)
    assert copy.describe() == source.describe() == {"kind": "prefix", "url": images}


def test_sources_that_cannot_be_read_are_user_errors(
    store: Store, images: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="of a kind that is not known"):
        open_source(f"{images}/readme.txt")
    with pytest.raises(UserError, match="no such manifest"):
        open_source(f"{images}/none.csv")
    if images.startswith("s3://"):
        with pytest.raises(UserError, match="no-such-bucket"):
            open_source("s3://no-such-bucket/images")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(UserError, match="SignatureDoesNotMatch"):
            open_source(images)
    else:
        with pytest.raises(UserError, match="no such folder"):
            open_source(f"{images}/none")


def write_csv(path: Path, columns: dict[str, list[str]]) -> None:
    rows = zip(*columns.values(), strict=True)
    path.write_text("\n".join([",".join(columns), *(",".join(f'"{cell}"' for cell in row) for row in rows)]) + "\n")


def write_jsonl(path: Path, columns: dict[str, list[str]]) -> None:
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(path: Path, columns: dict[str, list[str]]) -> None:
    pq.write_table(pa.table(columns), path)


@pytest.fixture(params=["csv", "jsonl", "ndjson", "parquet"])
def manifest(
    request: pytest.FixtureRequest, store: Store, tmp_path: Path
) -> Callable[[dict[str, list[str]]], MemberSource]:
    write = {"csv": write_csv, "parquet": write_parquet}.get(request.param, write_jsonl)

    def make(columns: dict[str, list[str]]) -> MemberSource:
        path = tmp_path / f"manifest.{request.param}"
        write(path, columns)
        store.put(path.name, path.read_bytes())
        return open_source(f"{store.url}/{path.name}")

    return make


Manifest = Callable[[dict[str, list[str]]], MemberSource]


def test_a_manifest_is_its_rows_and_resolves_relative_uris(manifest: Manifest, store: Store) -> None:
    uris = ["a b.jpg", "sub/../c,ü.jpg", "s3://other/d%20.jpg", "/e.jpg", "../up.jpg"]
    source = manifest({"caption": ["one\ntwo" if "csv" in str(manifest) else "x"] * 5, "url": uris})
    members = listed(source)
    assert [member.key for member in members] == uris
    folder, parent = store.url, store.url.rpartition("/")[0]
    assert [member.uri for member in members] == [
        f"{folder}/a b.jpg",
        f"{folder}/c,ü.jpg",
        "s3://other/d%20.jpg",
        "/e.jpg",
        f"{parent}/up.jpg",
    ]
    assert {member.size for member in members} == {member.etag for member in members} == {None}
    assert keys(source, limit=2) == uris[:2]


def test_a_manifest_may_name_its_keys(manifest: Manifest) -> None:
    source = manifest({"key": ["k1", "k2"], "path": ["a.jpg", "a.jpg"]})
    assert keys(source) == ["k1", "k2"]


def test_the_first_known_column_holds_the_uris(manifest: Manifest) -> None:
    source = manifest({"file": ["no.jpg"], "uri": ["yes.jpg"], "n": ["1"]})
    assert keys(source) == ["yes.jpg"]


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson"])
def test_json_lines_have_each_column_in_the_rows_that_have_it(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("da2ray.sources.table.BLOCK_BYTES", 90)
    rows = [
        {"uri": "a.jpg"},
        {"uri": "b.jpg", "key": "mine", "focal": 500},
        {"focal": "60.5", "n": [1], "uri": "c.jpg", "key": None},
    ]
    path = tmp_path / f"m.{suffix}"
    path.write_text("\ufeff" + "\n\n".join(map(json.dumps, rows)))
    members = listed(open_source(path))
    assert [(m.key, m.focal) for m in members] == [("a.jpg", None), ("mine", 500.0), ("c.jpg", 60.5)]


def test_case_and_blanks_do_not_count_in_the_names_of_columns(manifest: Manifest) -> None:
    members = listed(manifest({"\ufeff URI ": ["a.jpg"], "Key\u00a0": ["mine"]}))
    assert [(member.key, member.uri.rpartition("/")[2]) for member in members] == [("mine", "a.jpg")]
    with pytest.raises(UserError, match="more than one column uri"):
        listed(manifest({"uri": ["a.jpg"], "URI": ["b.jpg"]}))


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("image", pa.array([{"path": "000.jpg"}]), r"column 'image' of type struct<.*it must be text"),
        ("uri", pa.array([["a.jpg"]]), "column 'uri' of type list<"),
        ("uri", pa.array([1.5]), "column 'uri' of type double"),
        ("uri", pa.array([7]), "column 'uri' of type int64"),
        ("key", pa.array([0], pa.timestamp("us")), r"column 'key' of type timestamp\[us\]"),
        ("key", pa.array([True]), "column 'key' of type bool"),
        ("focal", pa.array([[5.0]]), r"column 'focal' of type list<.*it must be numbers"),
        ("focal", pa.array([0], pa.duration("s")), "column 'focal' of type duration"),
        ("focal", pa.array([True]), "column 'focal' of type bool"),
    ],
)
def test_a_column_of_an_unfit_type_is_named_with_its_type(
    tmp_path: Path, name: str, values: pa.Array, words: str
) -> None:
    columns = {"uri": pa.array(["a.jpg"]), name: values} if name in {"key", "focal"} else {name: values}
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    with pytest.raises(UserError, match=words):
        listed(open_source(tmp_path / "m.parquet"))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"uri": ["a"]}', "row 2 has a list in 'uri'"),
        ('{"uri": {"a": 1}}', "row 2 has an object in 'uri'"),
        ('{"uri": 3}', "row 2 has a number in 'uri'"),
        ('{"uri": "a", "key": true}', "row 2 has true or false in 'key'"),
        ('{"uri": "\\ud800"}', "row 2 has half a character"),
        ('{"key": "a"}', "row 2 has no column uri"),
        ('{"url": "a"}', "row 2 has the column url, and the rows before it have uri"),
        ('{"uri": "a", "URI": "b"}', "row 2 has more than one column uri"),
        ("[1]", "row 2 is not a JSON object"),
        ("[" * 100_000, "row 2 is not JSON"),
        ('{"n": ' + "9" * 5000 + "}", "row 2 is not JSON"),
        ('{"uri": "\xff"}', "row 2 is not JSON"),
        ('{"uri": null}', "row 2 has no uri"),
        ('{"uri": "a", "key": " "}', "row 2 has no key"),
    ],
)
def test_a_wrong_row_of_json_lines_is_named(tmp_path: Path, row: str, words: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"uri": "first.jpg"}\n' + row.encode("latin-1") + b"\n")
    with pytest.raises(UserError, match=words):
        listed(open_source(path))
    assert keys(open_source(path), limit=1) == ["first.jpg"]


def test_an_integer_may_be_a_key(tmp_path: Path) -> None:
    pq.write_table(pa.table({"uri": ["a.jpg"], "key": [12]}), tmp_path / "m.parquet")
    (tmp_path / "m.jsonl").write_text('{"uri": "a.jpg", "key": 12}\n')
    for name in ("m.parquet", "m.jsonl"):
        assert keys(open_source(tmp_path / name)) == ["12"]


@pytest.mark.parametrize("name", ["m", "m.parquet"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_folder_of_parts_is_one_manifest(store: Store, tmp_path: Path, suffix: str, name: str) -> None:
    write = {"csv": write_csv, "parquet": write_parquet}.get(suffix, write_jsonl)
    for part, uris in {"part-1": ["c.jpg"], "part-0": ["a.jpg", "b.jpg"], "x=1/part-2": ["../d.jpg"]}.items():
        path = tmp_path / f"part.{suffix}"
        write(path, {"uri": uris, "key": [f"{part}/{uri}" for uri in uris]})
        store.put(f"{name}/{part}.{suffix}", path.read_bytes())
    for tools in ("_SUCCESS", "_delta_log/0.jsonl", f".part-0.{suffix}.crc", "README.md"):
        store.put(f"{name}/{tools}", b"x")
    url = f"{store.url}/{name}"
    source = open_source(f"{url}/")
    assert keys(source) == ["part-0/a.jpg", "part-0/b.jpg", "part-1/c.jpg", "x=1/part-2/../d.jpg"]
    assert [member.uri for member in listed(source)] == [
        f"{url}/a.jpg",
        f"{url}/b.jpg",
        f"{url}/c.jpg",
        f"{store.url}/d.jpg",
    ]
    assert keys(source, limit=3) == keys(source)[:3]
    described = source.describe()
    assert described == open_source(url).describe()
    store.put(f"{name}/part-3.{suffix}", path.read_bytes())
    assert described != open_source(url).describe()
    with pytest.raises(UserError, match=r"rows 1 of part-3.* and 1 of x=1/part-2.* have the same key"):
        listed(open_source(url))
    store.put(f"{name}/part-4.{'csv' if suffix == 'parquet' else 'parquet'}", b"x")
    with pytest.raises(UserError, match="several formats"):
        listed(open_source(url))


def test_a_folder_with_an_image_holds_images_whatever_else_it_holds(store: Store) -> None:
    store.put("m.csv/a.jpg", b"x")
    store.put("m.csv/list.csv", b"uri\na.jpg\n")
    assert keys(open_source(f"{store.url}/m.csv")) == ["a.jpg"]


def test_a_manifest_without_uris_is_a_user_error_that_lists_its_columns(manifest: Manifest) -> None:
    with pytest.raises(UserError, match="its columns are id, link"):
        listed(manifest({"id": ["1"], "link": ["a.jpg"]}))


def test_an_empty_uri_is_a_user_error_that_names_its_row(manifest: Manifest) -> None:
    with pytest.raises(UserError, match="row 3 has no uri"):
        listed(manifest({"uri": ["a.jpg", "b.jpg", ""]}))


def test_a_repeated_key_is_a_user_error_that_names_it(manifest: Manifest) -> None:
    source = manifest({"uri": [f"{i}.jpg" for i in range(1000)] + ["7.jpg", "9.jpg"]})
    with pytest.raises(UserError, match=r"rows 8 and 1001 have the same key '7.jpg'"):
        listed(source)
    assert len(keys(source, limit=1000)) == 1000


def test_an_edited_manifest_is_another_source_and_a_rewritten_one_is_not(manifest: Manifest) -> None:
    first = manifest({"uri": ["a.jpg"]}).describe()
    again = manifest({"uri": ["a.jpg"]}).describe()
    edited = manifest({"uri": ["b.jpg"]}).describe()
    assert first == again
    assert first != edited


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl", "m.parquet"])
def test_a_broken_manifest_is_a_user_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for body in (b"", b"\x00\x01 nonsense", b'{"uri": "a.jpg"}\n{"uri": 3', b"uri,b\n1,2\n3\n"):
        path.write_bytes(body)
        with pytest.raises(UserError, match=r"m\."):
            listed(open_source(str(path)))


def test_a_csv_that_is_cut_off_loses_no_row_silently(tmp_path: Path) -> None:
    header = '"uri","caption"\r\n'
    text = header + '"a.jpg","two\nlines"\r\n"b.jpg","5"\r\n"c.jpg",""\r\n'
    for cut in range(len(header), len(text)):
        path = tmp_path / "m.csv"
        path.write_bytes(text[:cut].encode())
        # An empty cell needs no marks: a comma at the end makes a whole row.
        rows, rest = divmod(text.count('"', len(header), cut) + 2 * text[:cut].endswith(","), 4)
        if rest:
            with pytest.raises(UserError):
                keys(open_source(path))
        else:
            assert keys(open_source(path)) == ["a.jpg", "b.jpg", "c.jpg"][:rows]


def test_a_manifest_longer_than_a_block_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("da2ray.sources.table.BLOCK_BYTES", 1000)
    monkeypatch.setattr("da2ray.sources.table.PARQUET_ROWS", 10)
    uris = [f"{i:05d}.jpg" for i in range(5000)]
    for suffix, write in (("csv", write_csv), ("jsonl", write_jsonl), ("parquet", write_parquet)):
        write(tmp_path / f"m.{suffix}", {"uri": uris})
        assert keys(open_source(str(tmp_path / f"m.{suffix}"))) == uris


def test_what_fails_for_one_sample_is_its_reason_and_the_others_go_on(images: str, store: Store) -> None:
    wanted = listed(open_source(images))
    odd = [
        Member("gone", f"{images}/gone.jpg", None, None),
        Member("scheme", "nonsense://x/y.jpg", None, None),
        Member("folder", f"{images}/b", None, None),
        Member("root", "s3://", None, None),
    ]
    results = list(open_source(images).fetch([wanted[0], *odd, *wanted[1:]], concurrency=3))
    assert [sample.member for sample in results] == [wanted[0], *odd, *wanted[1:]]
    bodies = [sample.body for sample in results]
    reasons = [body.reason for body in bodies if isinstance(body, SampleError)]
    assert reasons == [Reason.NOT_FOUND, Reason.UNREADABLE, Reason.NOT_FOUND, Reason.UNREADABLE]
    assert [body for body in bodies if isinstance(body, bytes)] == [member.key.encode() for member in wanted]


def test_a_shard_is_read_in_its_order_from_any_row_on(images: str) -> None:
    source = open_source(images)
    (batch,) = source.shards(Cut(len(IMAGES), 1 << 40))
    (spec,) = batch["spec"].to_pylist()
    bodies = [key.encode() for key in keys(source)]
    for skip in range(len(IMAGES) + 1):
        for concurrency in (1, 16):
            read = source.read(spec, concurrency=concurrency, skip=skip)
            assert [sample.body for sample in read] == bodies[skip:]
    assert [source.member(spec, row) for row in range(len(IMAGES) + 1)] == [*listed(source), None]


@pytest.mark.parametrize("listed", [True, False])
def test_a_file_larger_than_any_image_is_one_failed_sample(listed: bool, tmp_path: Path) -> None:
    sizes = {"a.tif": fetching.MOST_BYTES + 1, "b.tif": 4}
    for name, size in sizes.items():
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)  # takes no room
    members = [Member(name, str(tmp_path / name), size if listed else None, None) for name, size in sizes.items()]
    large, body = (sample.body for sample in fetch(members, 2))
    assert isinstance(large, SampleError)
    assert large.reason is Reason.OUT_OF_MEMORY
    assert body == bytes(4)


def test_an_object_that_is_listed_as_larger_than_any_image_is_not_asked_for() -> None:
    (sample,) = fetch([Member("a.tif", "s3://no-such-bucket/a.tif", fetching.MOST_BYTES + 1, None)], 1)
    large = sample.body
    assert isinstance(large, SampleError)
    assert large.reason is Reason.OUT_OF_MEMORY


def test_a_file_that_memory_does_not_suffice_for_is_one_failed_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "MOST_BYTES", 1 << 40)
    with (tmp_path / "a.tif").open("wb") as file:
        file.truncate(64 << 30)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30), limits[1]))
    try:
        (sample,) = fetch([Member("a.tif", str(tmp_path / "a.tif"), None, None)], 1)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    large = sample.body
    assert isinstance(large, SampleError)
    assert large.reason is Reason.OUT_OF_MEMORY


def test_refused_credentials_are_not_shown(images: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not images.startswith("s3://"):
        pytest.skip("root reads every local file")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    with pytest.raises(NothingReadError, match=images) as caught:
        list(fetch([Member("a", f"{images}/a.jpg", None, None)], 1))
    assert "not-the-secret" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_reading_looks_ahead_by_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    started = 0
    lock = threading.Lock()

    def read(stores: object, member: Member) -> Fetched:
        nonlocal started
        with lock:
            started += 1
        return Fetched(member.key.encode(), None)

    monkeypatch.setattr(fetching, "_read", read)

    def endless() -> Iterator[Member]:
        number = 0
        while True:
            yield Member(str(number), "", None, None)
            number += 1

    results = fetch(endless(), concurrency=4)
    for number in range(10):
        sample = next(results)
        assert sample == Sample(Member(str(number), ""), str(number).encode())
        time.sleep(0.01)
        assert started <= number + 4
    results.close()
