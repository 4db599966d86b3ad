"""Whatever a manifest or a URL says, it is read, or is one row, or is refused in a sentence or two."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from da2ray.errors import Exit, SampleError, UserError
from da2ray.labels.reader import open_labels
from da2ray.sources import Cut, MemberSource, ParquetSource, members_of, open_source
from da2ray.storage import canonical_url, join, open_store, split_uri
from tests.jobs import Command

FEW = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
NAMES = [
    "uri",
    "url",
    "path",
    "image",
    "file",
    "key",
    "focal",
    "size",
    "etag",
    " URI",
    "Key ",
    "FOCAL\t",
    "\ufeffuri",
    "caption",
    "",
]
TEXTS = [
    "", " ", "a.jpg", "../a.jpg", "~/a.jpg", "~nobody/a.jpg", "file://[Album] 01/a.jpg", "file:///[x]/a#b?.jpg", "file:/a.jpg",
    "file:///%ff.jpg", "file:///a%00.jpg", "http://[", "https://h:99999/a.jpg", "nothing://a", "::", "a::b://c", "zip://a::b",
    "s3:/b/a", "\\", "a\nb.jpg", '"', ",", "a\0.jpg", "5", "-1", "nan", "inf", "1e999", "0", "\u2028", "x" * 300, "/", ".", "..",
    "//", "az://@/x", "s3://b?x/y", "data:,x", "C:\\a.jpg", "\x1b[2J",
]  # fmt: skip
text = st.sampled_from(TEXTS) | st.text(max_size=6)
value = st.one_of(
    text,
    text,
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.lists(text, max_size=1),
    st.fixed_dictionaries({"a": text}),
)
name = st.sampled_from(NAMES) | st.text(max_size=3)
TYPES = [
    *(
        pa.string(),
        pa.large_string(),
        pa.binary(),
        pa.int8(),
        pa.uint64(),
        pa.float16(),
        pa.float64(),
        pa.bool_(),
        pa.null(),
    ),
    *(pa.timestamp("us"), pa.date32(), pa.duration("s"), pa.decimal128(9, 2), pa.list_(pa.string()), pa.binary(2)),
    *(pa.struct({"bytes": pa.binary()}), pa.dictionary(pa.int8(), pa.string()), pa.map_(pa.string(), pa.string())),
]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and a folder to be in."""
    monkeypatch.setenv("DA2RAY_RETRY_SECONDS", "0")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    monkeypatch.chdir(tmp_path)


def brief(error: UserError, lines: int) -> None:
    assert 1 <= len(str(error).splitlines()) <= lines


def read_all(path: Path) -> None:
    """Read a manifest as a run would, except that only local files are fetched."""
    try:
        source = open_source(path)
        if isinstance(source, ParquetSource):
            for batch in source.shards(Cut(100, 1 << 30)):
                for spec in batch["spec"].to_pylist():
                    assert len(list(source.read(spec, concurrency=1))) == batch["samples"][0].as_py()
            return
        assert isinstance(source, MemberSource)
        members = [member for batch in source.members() for member in members_of(batch)]
    except UserError as error:
        brief(error, 2)
        return
    assert all(member.key.strip() and member.uri for member in members)
    assert all(member.size is None or member.size >= 0 for member in members)
    assert all(member.focal is None or 0 < member.focal < float("inf") for member in members)
    local = [member for member in members if "://" not in member.uri or member.uri.lower().startswith("file:")]
    for sample in source.fetch(local, 1):
        assert isinstance(sample.body, SampleError | bytes)


@given(rows=st.lists(st.dictionaries(name, value, max_size=4), max_size=4), junk=st.binary(max_size=8))
@FEW
def test_json_lines_are_read_or_refused(rows: list[dict[str, Any]], junk: bytes, tmp_path: Path) -> None:
    lines = [json.dumps(row).encode("utf-8", "surrogatepass") for row in rows]
    (tmp_path / "m.jsonl").write_bytes(b"\n".join([*lines, junk]))
    read_all(tmp_path / "m.jsonl")


@given(names=st.lists(name, max_size=4), rows=st.lists(st.lists(text, max_size=4), max_size=4), quoted=st.booleans())
@FEW
def test_csv_is_read_or_refused(names: list[str], rows: list[list[str]], quoted: bool, tmp_path: Path) -> None:
    def cell(value: str) -> str:
        return '"' + value.replace('"', '""') + '"' if quoted else value

    body = "\n".join(",".join(map(cell, row)) for row in [names, *(row[: len(names)] for row in rows)])
    (tmp_path / "m.csv").write_bytes(body.encode("utf-8", "surrogatepass"))
    read_all(tmp_path / "m.csv")


@given(columns=st.lists(st.tuples(name, st.sampled_from(TYPES), value), min_size=1, max_size=4))
@FEW
@example(columns=[("uri", pa.string(), "a.jpg"), ("uri", pa.string(), "b.jpg")])
def test_parquet_is_read_or_refused(columns: list[tuple[str, pa.DataType, Any]], tmp_path: Path) -> None:
    def array(type_: pa.DataType, value: object) -> pa.Array:
        try:
            return pa.array([value, value], type_)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            return pa.nulls(2, type_)

    arrays = [array(type_, value) for _, type_, value in columns]
    try:
        pq.write_table(pa.table(arrays, names=[name for name, _, _ in columns]), tmp_path / "m.parquet")
    except (pa.ArrowException, UnicodeEncodeError):
        return  # not a file that anyone can have
    read_all(tmp_path / "m.parquet")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@given(junk=st.binary(max_size=60))
@example(junk=b"\x80\r")
@settings(FEW, max_examples=20)
def test_any_bytes_are_read_or_refused(suffix: str, junk: bytes, tmp_path: Path) -> None:
    (tmp_path / f"m.{suffix}").write_bytes(junk)
    read_all(tmp_path / f"m.{suffix}")


SCHEMES = [
    "",
    "file://",
    "file:",
    "s3://",
    "gs://",
    "az://",
    "http://",
    "memory://",
    "s3:",
    "x.y://",
    "zip://",
    "FILE:///",
]
url = st.builds("{}{}".format, st.sampled_from(SCHEMES), text) | st.text(max_size=8)


@given(url=url)
@settings(FEW, max_examples=200)
@example(url="~nobody")
@example(url="\udcff")
@example(url="file://[Album] 01/a.jpg")
def test_a_url_is_split_and_joined_or_refused(url: str) -> None:
    try:
        root, key = split_uri(url)
        place = canonical_url(url)
    except UserError as error:
        brief(error, 1)
        return
    assert canonical_url(place) == place
    if key:
        assert split_uri(join(root, key)) == (root, key)
    with contextlib.suppress(UserError):
        open_store(url)


def may_be_opened(url: str) -> bool:
    """Whether a command may open it here: not on the network, and not a folder of this machine such as `/`, which takes hours."""
    if "\0" in url or url.lower().startswith(("http", "gs", "az")):
        return False
    with contextlib.suppress(UserError):
        return not Path(canonical_url(url)).is_dir()
    return True


@given(url=url.filter(may_be_opened))
@settings(FEW, max_examples=25)
@example(url="~nobody")
@example(url="p\udcff")
@example(url="http://[")
@example(url="https://h:99999/x")
@example(url="zip://a::b")
@example(url="s3://b//x/../y")
def test_a_command_with_any_url_ends_by_the_table(
    url: str, command: Command, job_without_ray: Command, tmp_path: Path
) -> None:
    for code, _, said in (
        command("status", url),
        job_without_ray("--images", url, "--output", tmp_path / "labels", "--teacher", "luminance", "--dry-run"),
        job_without_ray("--images", tmp_path, "--output", url, "--teacher", "luminance", "--dry-run"),
    ):
        assert code in (Exit.DONE, Exit.USAGE, Exit.RESUMABLE), said


def test_a_path_object_may_stand_for_a_url(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    source = open_source(tmp_path)
    assert [member.key for batch in source.members() for member in members_of(batch)] == ["a.jpg"]
    assert open_store(tmp_path).get("a.jpg") == b"x"
    with pytest.raises(UserError, match="no dataset"):
        open_labels(tmp_path)
    for use in (open_store, open_source, open_labels):
        with pytest.raises(UserError, match="give URLs as text"):
            use(Path("s3://bucket/labels"))


@pytest.mark.parametrize("uri", ["file://localhost{}", "file://{}", "FILE://{}", "file:{}", "{}"])
@pytest.mark.parametrize("name", ["[Album] 01/a.jpg", "a#b.jpg", "a?b#c.jpg", "~a.jpg", "100%.jpg", "a b.jpg"])
def test_a_file_url_names_the_file_with_and_without_quotes(tmp_path: Path, name: str, uri: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    (tmp_path / "m.jsonl").write_text(json.dumps({"uri": uri.format(path)}))
    source = open_source(tmp_path / "m.jsonl")
    (sample,) = source.fetch([member for batch in source.members() for member in members_of(batch)], 1)
    assert sample.body == b"x"
    assert split_uri(path.as_uri()) == ("/", str(path)[1:])


def test_a_folder_of_this_user_and_of_another_that_does_not_exist(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert canonical_url("~/x") == f"{tmp_path}/x"
    with pytest.raises(UserError, match="no user of this name"):
        canonical_url("~no-such-user/x")
    assert canonical_url("./~no-such-user/x") == f"{Path.cwd()}/~no-such-user/x"
