"""Every implementation of Store behaves alike: a local disk, and S3 through either client."""

import contextlib
import http.server
import os
import pickle
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from da2ray.errors import StoreError, UserError
from da2ray.storage import LIST_SCHEMA, Store, StoreFile, join, open_store, split_uri
from tests.s3_server import S3Server

BACKENDS = ["local", "memory", "s3-obstore", "s3-fsspec"]
ODD_KEYS = [
    "a b.jpg",
    "ü/é漢.jpg",
    "100%.jpg",
    "x%2Fy.jpg",
    "a+b.jpg",
    "c#d?.jpg",
    "[e]*.jpg",
    "~(f)&=@:,;.jpg",
    "..g/h..jpg",
]


@pytest.fixture
def root(request: pytest.FixtureRequest, backend: str, tmp_path: Path) -> str:
    if backend == "local":
        return str(tmp_path / "a folder")
    if backend == "memory":
        return f"memory://{uuid.uuid4().hex}"
    return f"{request.getfixturevalue('s3').create_bucket()}/a folder/ü%20"


@pytest.fixture
def store(backend: str, root: str) -> Store:
    return open_backend(backend, root)


def open_backend(backend: str, url: str) -> Store:
    return open_store(url, "fsspec" if backend == "s3-fsspec" else "auto")


def keys(store: Store, prefix: str = "") -> list[str]:
    return [key for batch in store.list(prefix) for key in batch.column("key").to_pylist()]


pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def test_what_was_put_is_read_whole_and_in_ranges(store: Store) -> None:
    data = os.urandom(5 << 20)
    store.put("a/b", data)
    assert store.get("a/b") == data
    assert store.get_range("a/b", 1_000_003, 77) == data[1_000_003:1_000_080]
    assert store.get_range("a/b", len(data) - 5, 5) == data[-5:]
    assert store.get_range("a/b", 5, 0) == b""
    assert store.stat("a/b").size == len(data)


@pytest.mark.parametrize("offset", [0, 2, 3, 9])
def test_a_range_beyond_the_end_is_an_error_and_never_short(store: Store, offset: int) -> None:
    store.put("k", b"abc")
    with pytest.raises(StoreError):
        store.get_range("k", offset, 9)


def test_an_empty_object_is_an_object(store: Store) -> None:
    store.put("k", b"")
    assert store.get("k") == b""
    assert store.stat("k").size == 0
    assert keys(store) == ["k"]


def test_put_replaces(store: Store) -> None:
    store.put("k", b"old")
    etag = store.stat("k").etag
    store.put("k", b"newer")
    assert store.get("k") == b"newer"
    assert store.stat("k").etag != etag


def test_a_read_object_has_the_etag_of_its_bytes_which_is_that_of_the_listing(store: Store, backend: str) -> None:
    etags = []
    for data in (b"old", b"newer"):
        store.put("k", data)
        (listed,) = (etag for batch in store.list() for etag in batch["etag"].to_pylist())
        # `cat_file` of fsspec, which reads every other scheme, tells no etag.
        assert store.fetch("k") == (data, None if backend == "memory" else listed)
        etags.append(listed)
    assert etags[0] != etags[1]
    assert all(etags)


@pytest.mark.parametrize("key", ODD_KEYS)
def test_a_key_comes_back_from_the_listing_as_it_was_put(store: Store, key: str) -> None:
    store.put(key, b"x")
    assert keys(store) == [key]
    assert store.get(key) == b"x"
    store.delete([key])
    assert keys(store) == []


def test_a_missing_object_is_file_not_found_and_named(store: Store, root: str) -> None:
    for read in (lambda: store.get("no/such"), lambda: store.get_range("no/such", 0, 1), lambda: store.stat("no/such")):
        with pytest.raises(FileNotFoundError, match="no/such"):
            read()
    store.put("folder/k", b"x")
    with pytest.raises(FileNotFoundError):
        store.get("folder")
    with pytest.raises(FileNotFoundError):
        store.stat("folder")


def test_a_second_create_returns_false_and_changes_nothing(store: Store, tmp_path: Path) -> None:
    assert store.create("c/1", b"first") is True
    assert store.create("c/1", b"second") is False
    path = tmp_path / "file"
    path.write_bytes(b"third")
    assert store.create_file("c/1", path) is False
    assert store.get("c/1") == b"first"
    assert store.create_file("c/2", path) is True
    assert store.get("c/2") == b"third"
    assert keys(store) == ["c/1", "c/2"]


def test_of_concurrent_creates_exactly_one_wins(store: Store) -> None:
    bodies = [f"{i}".encode() * 1000 for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda body: store.create("c", body), bodies))
    assert won.count(True) == 1
    assert store.get("c") == bodies[won.index(True)]


def test_put_file_stores_the_file(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(3_000_000))
    store.put_file("f", path)
    assert store.get("f") == path.read_bytes()


def test_a_listing_is_sorted_complete_and_below_its_folder_only(store: Store) -> None:
    names = ["a", "a-b", "a.jpg", "d/z", "d/e/f", "d0", "d-e/x", "é", "Z"]
    for name in names:
        store.put(name, name.encode())
    batches = list(store.list())
    assert all(batch.schema == LIST_SCHEMA for batch in batches)
    table = pa.Table.from_batches(batches)
    listed = table["key"].to_pylist()
    assert sorted(listed) == sorted(names)
    assert listed == keys(store)
    assert table["size"].to_pylist() == [len(name.encode()) for name in listed]
    assert all(store.stat(key).etag == etag for key, etag in zip(listed, table["etag"].to_pylist(), strict=True))
    assert sorted(keys(store, "d")) == sorted(keys(store, "d/")) == ["d/e/f", "d/z"]
    assert keys(store, "none") == []


def test_a_listing_goes_past_a_page_of_1000(store: Store) -> None:
    names = [f"commits/{i:08d}" for i in range(2100)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: store.put(name, b""), names))
    assert keys(store, "commits") == names
    store.delete(names)
    assert keys(store) == []


def test_a_new_object_is_in_the_next_listing(store: Store) -> None:
    store.put("d/a", b"")
    assert keys(store, "d") == ["d/a"]
    store.put("d/b", b"")
    assert keys(store, "d") == ["d/a", "d/b"]


def test_deleting_what_is_not_there_is_fine(store: Store) -> None:
    store.put("a", b"")
    store.delete(["none/a", "a", "b"])
    store.delete([])
    assert keys(store) == []


def test_a_store_travels_to_other_processes_without_credentials(store: Store) -> None:
    store.put("a", b"x")
    pickled = pickle.dumps(store)
    assert os.environ.get("AWS_SECRET_ACCESS_KEY", "none").encode() not in pickled
    assert pickle.loads(pickled).get("a") == b"x"  # noqa: S301


@pytest.mark.parametrize("key", ["../x", "a/../../x", "..", "a\0b"])
def test_no_key_escapes_the_url(store: Store, key: str) -> None:
    for call in (store.get, store.stat, lambda k: store.put(k, b""), lambda k: store.create(k, b"")):
        with pytest.raises(ValueError, match="not a key"):
            call(key)


def test_a_file_reads_like_the_object(store: Store) -> None:
    data = os.urandom(100_000)
    store.put("f", data)
    file = StoreFile(store, "f", block=4096)
    assert file.read(10) == data[:10]
    file.seek(50_000)
    assert file.read(9000) == data[50_000:59_000]
    file.seek(-8, 2)
    assert file.read() == data[-8:]
    file.seek(0)
    assert b"".join(iter(lambda: file.read(7777), b"")) == data


class TestS3:
    """Faults that only a remote store can have."""

    @pytest.fixture(autouse=True)
    def _only_s3(self, backend: str) -> None:
        if not backend.startswith("s3-"):
            pytest.skip("not S3")

    def test_wrong_credentials_are_a_permission_error_that_shows_none(
        self, backend: str, root: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
        store = open_backend(backend, root)
        calls = (
            lambda: store.get("a"),
            lambda: store.put("a", b""),
            lambda: store.create("a", b""),
            lambda: keys(store),
        )
        for call in calls:
            with pytest.raises(PermissionError, match=root.split("/")[2]) as caught:
                call()
            assert "not-the-secret" not in str(caught.value)

    def test_no_credentials_are_a_permission_error_that_says_what_to_set(
        self, backend: str, root: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        with pytest.raises(PermissionError, match="credentials"):
            open_backend(backend, root).get("a")

    def test_credentials_of_a_profile_are_used(
        self, backend: str, root: str, store: Store, s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        store.put("a", b"x")
        for name in (
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_REGION",
            "AWS_DEFAULT_REGION",
            "AWS_ENDPOINT_URL",
        ):
            monkeypatch.delenv(name)
        (tmp_path / "credentials").write_text(
            f"[mine]\naws_access_key_id={s3.access_key}\naws_secret_access_key={s3.secret_key}\n"
        )
        (tmp_path / "config").write_text(f"[profile mine]\nregion=us-east-1\nendpoint_url={s3.endpoint}\n")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_PROFILE", "mine")
        assert open_backend(backend, root).get("a") == b"x"

    @pytest.mark.usefixtures("s3")
    def test_a_missing_bucket_is_file_not_found(self, backend: str) -> None:
        store = open_backend(backend, "s3://no-such-bucket-here/a")
        for call in (lambda: keys(store), lambda: store.get("k")):
            with pytest.raises(FileNotFoundError, match="no-such-bucket-here"):
                call()

    def test_an_unreachable_endpoint_is_a_store_error(
        self, backend: str, root: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        monkeypatch.setenv("DA2RAY_RETRY_SECONDS", "1")
        started = time.monotonic()
        with pytest.raises(StoreError, match=root.split("/")[2]):
            open_backend(backend, root).get("a")
        assert time.monotonic() - started < 30

    @pytest.mark.usefixtures("s3")
    def test_a_body_shorter_than_declared_is_an_error(self, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DA2RAY_RETRY_SECONDS", "1")
        with short_answers() as endpoint:
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
            store = open_backend(backend, "s3://bucket")
            with pytest.raises(StoreError):
                store.get("a")
            with pytest.raises(StoreError):
                store.get_range("a", 0, 10)


@contextlib.contextmanager
def short_answers() -> Iterator[str]:
    """A server that always declares ten bytes and sends five."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            ranged = "Range" in self.headers
            self.send_response(206 if ranged else 200)
            self.send_header("Content-Length", "10")
            if ranged:
                self.send_header("Content-Range", "bytes 0-9/10")
            self.send_header("ETag", '"x"')
            self.send_header("Last-Modified", "Mon, 23 Nov 2026 00:00:00 GMT")
            self.end_headers()
            self.wfile.write(b"12345")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("uri", "root_", "key"),
    [
        ("s3://bucket/a/b c.jpg", "s3://bucket", "a/b c.jpg"),
        ("s3a://bucket/a", "s3://bucket", "a"),
        ("gs://bucket/a%20b#c", "gs://bucket", "a%20b#c"),
        ("abfss://container@account.dfs.core.windows.net/a/b", "abfss://container@account.dfs.core.windows.net", "a/b"),
        ("/a/b/c.jpg", "/", "a/b/c.jpg"),
        ("/a/../b//c.jpg", "/", "b/c.jpg"),
        ("file:///a/b%20c.jpg", "/", "a/b c.jpg"),
        ("memory://a/b", "memory://", "a/b"),
        ("https://host/a.jpg?v=1", "https://host", "a.jpg?v=1"),
    ],
)
def test_split_and_join_are_inverse(backend: str, uri: str, root_: str, key: str) -> None:
    assert split_uri(uri) == (root_, key)
    assert split_uri(join(root_, key)) == (root_, key)


def test_urls_that_cannot_work_are_user_errors(backend: str) -> None:
    for url in ("", "s3://", "nonsense://x", "s3://key:secret@bucket/a"):
        with pytest.raises(UserError) as caught:
            open_store(url)
        assert "secret" not in str(caught.value)
