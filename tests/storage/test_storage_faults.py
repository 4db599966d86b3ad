"""Both clients retry or report every fault on the way to a store. Nothing is lost, cut short or written twice."""

import contextlib
import http.server
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from da2ray.errors import StoreError, UnavailableError, UserError
from da2ray.labels.commits import commit_shard, read_commit
from da2ray.storage import Store, base, fsspec, objects, open_store
from tests import fault_proxy
from tests.fault_proxy import FaultProxy, Mode, Request
from tests.labels.samples import FINGERPRINT, built

DATA = bytes(range(256)) * 40
PART_BYTES = 5 << 20
"""The least size that S3 accepts for a part other than the last."""


@pytest.fixture(params=["obstore", "fsspec"])
def store(
    request: pytest.FixtureRequest, bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    """A store in its own folder behind the proxy, which passes everything on at first."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    monkeypatch.setattr(fault_proxy, "STALL_S", 0.3)
    # botocore's own retries would wait for seconds and hide ours. The jobs in tests/integration keep them.
    monkeypatch.setattr(fsspec, "S3_RETRIES", 0)
    yield open_store(f"{bucket}/{uuid.uuid4().hex}", request.param)
    proxy.set("none")
    proxy.applies = lambda _: True


@contextlib.contextmanager
def faults(proxy: FaultProxy, mode: Mode) -> Iterator[None]:
    """Make the first of each group of equal requests fail. Requests of two uploads in parts count as equal.

    Raises:
        AssertionError: no request came, so the test shows nothing.
    """
    seen: set[tuple[str, str, bytes]] = set()

    def first(request: Request) -> bool:
        known = (request.method, re.sub("uploadId=[^&]*", "", request.target), request.body[:100])
        fresh = known not in seen
        seen.add(known)
        return fresh

    proxy.set(mode, share=1.0)
    proxy.applies = first
    yield
    failed = proxy.faults.total()
    proxy.set("none")
    assert failed


Operation = Callable[[Store, Callable[[], contextlib.AbstractContextManager[None]], Path], None]


def reads_whole(store: Store, trouble: Callable[[], contextlib.AbstractContextManager[None]], _: Path) -> None:
    store.put("k", DATA)
    with trouble():
        assert store.get("k") == DATA


def reads_a_range(store: Store, trouble: Callable[[], contextlib.AbstractContextManager[None]], _: Path) -> None:
    store.put("k", DATA)
    with trouble():
        assert store.get_range("k", 100, 5000) == DATA[100:5100]


def tells_the_size(store: Store, trouble: Callable[[], contextlib.AbstractContextManager[None]], _: Path) -> None:
    store.put("k", DATA)
    with trouble():
        assert store.stat("k").size == len(DATA)
    with trouble(), pytest.raises(FileNotFoundError):
        store.stat("none")


def lists(store: Store, trouble: Callable[[], contextlib.AbstractContextManager[None]], _: Path) -> None:
    for name in ("a/1", "a/2", "b"):
        store.put(name, b"")
    with trouble():
        assert keys(store) == ["a/1", "a/2", "b"]


def writes(store: Store, trouble: Callable[[], contextlib.AbstractContextManager[None]], _: Path) -> None:
    with trouble():
        store.put("k", DATA)
    assert store.get("k") == DATA


def writes_a_file(store: Store, trouble: Callable[[], contextlib.AbstractContextManager[None]], folder: Path) -> None:
    path = large_file(folder)
    with trouble():
        store.put_file("f", path)
    assert store.get("f") == path.read_bytes()


def creates(store: Store, trouble: Callable[[], contextlib.AbstractContextManager[None]], _: Path) -> None:
    with trouble():
        store.create("k", DATA)
    assert store.get("k") == DATA
    with trouble():
        assert store.create("k", b"other") is False
    assert store.get("k") == DATA


def creates_a_file(store: Store, trouble: Callable[[], contextlib.AbstractContextManager[None]], folder: Path) -> None:
    path = large_file(folder)
    with trouble():
        store.create_file("f", path)
    assert store.get("f") == path.read_bytes()


def deletes(store: Store, trouble: Callable[[], contextlib.AbstractContextManager[None]], _: Path) -> None:
    for name in ("a", "b", "c"):
        store.put(name, b"")
    with trouble():
        store.delete(["a", "none", "c"])
    assert keys(store) == ["b"]


READS: list[Operation] = [reads_whole, reads_a_range, tells_the_size, lists]
CREATES: list[Operation] = [creates, creates_a_file]
WRITES: list[Operation] = [*CREATES, writes, writes_a_file, deletes]
MODES: dict[Mode, list[Operation]] = {
    "slow_down": READS + WRITES,
    "conflict": CREATES,
    "reset": READS + WRITES,
    "truncate": [reads_whole, reads_a_range, lists],
    "lost": WRITES,
    "stall": READS + WRITES,
}


@pytest.mark.parametrize(
    ("mode", "operation"),
    [pytest.param(mode, each, id=f"{mode}-{each.__name__}") for mode, every in MODES.items() for each in every],
)
def test_a_call_does_what_it_does_undisturbed(
    mode: Mode, operation: Operation, store: Store, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsspec, "PART_BYTES", PART_BYTES)
    monkeypatch.setattr(objects, "PART_BYTES", PART_BYTES)
    operation(store, lambda: faults(proxy, mode), tmp_path)


def large_file(folder: Path) -> Path:
    """An object of three parts."""
    path = folder / "file"
    path.write_bytes(os.urandom(2 * PART_BYTES + 1000))
    return path


def keys(store: Store) -> list[str]:
    return [key for batch in store.list() for key in batch["key"].to_pylist()]


def test_a_long_listing_whose_pages_break_off_is_whole(store: Store, proxy: FaultProxy) -> None:
    names = [f"{number:05d}" for number in range(1100)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: store.put(name, b""), names))
    with faults(proxy, "truncate"):
        assert keys(store) == names


@pytest.mark.parametrize("mode", ["lost", "conflict"])
def test_simultaneous_creates_make_one_object_and_at_most_one_caller_gets_true(
    store: Store, proxy: FaultProxy, mode: Mode
) -> None:
    bodies = [f"{number}".encode() * 1000 for number in range(8)]
    with faults(proxy, mode), ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda body: store.create("k", body), bodies))
    assert won.count(True) <= 1
    assert store.get("k") == bodies[won.index(True)] if any(won) else store.get("k") in bodies


def test_a_commit_whose_answer_is_lost_is_known_to_be_ours(store: Store, proxy: FaultProxy) -> None:
    with faults(proxy, "lost"):
        outcome = commit_shard(store, "p", 3, built(), FINGERPRINT)
    assert outcome.committed
    commit = read_commit(store, "p", 3)
    assert commit.attempt == outcome.attempt
    assert store.get(commit.object) == built().data


@pytest.mark.parametrize("mode", ["down", "refused", "hang"])
def test_a_store_that_stays_down_is_a_one_line_error_in_time(
    store: Store, proxy: FaultProxy, mode: Mode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DA2RAY_RETRY_SECONDS", "1")
    for name in ("REQUEST_TIMEOUT_S", "STAT_TIMEOUT_S"):
        monkeypatch.setattr(base, name, 1)
    monkeypatch.setattr(fsspec, "LIST_TIMEOUT_S", 1)
    store = open_store(store.url, "obstore" if isinstance(store, objects.ObjectStore) else "fsspec")
    path = tmp_path / "file"
    path.write_bytes(DATA)
    proxy.set(mode)
    calls: list[Callable[[], object]] = [
        lambda: store.get("k"),
        lambda: store.get_range("k", 0, 10),
        lambda: store.stat("k"),
        lambda: store.put("k", DATA),
        lambda: store.put_file("k", path),
        lambda: store.create("k", DATA),
        lambda: store.create_file("k", path),
        lambda: keys(store),
        lambda: store.delete(["k"]),
    ]

    def ends(call: Callable[[], object]) -> float:
        began = time.monotonic()
        with pytest.raises(UnavailableError, match=store.url) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400
        return time.monotonic() - began

    with ThreadPoolExecutor(len(calls)) as pool:
        assert max(pool.map(ends, calls)) < 10
    proxy.set("none")


def test_a_body_that_always_ends_early_is_never_returned(
    store: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DA2RAY_RETRY_SECONDS", "1")
    store = open_store(store.url, "obstore" if isinstance(store, objects.ObjectStore) else "fsspec")
    store.put("k", DATA)
    proxy.set("truncate", share=1.0)
    for call in (partial(store.get, "k"), partial(store.get_range, "k", 10, 1000), partial(keys, store)):
        with pytest.raises(UnavailableError, match=store.url):
            call()


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultProxy]:
    """A web server with one file, `k`."""
    folder = tmp_path_factory.mktemp("web")
    (folder / "k").write_bytes(DATA)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        with FaultProxy(f"http://127.0.0.1:{server.server_port}") as proxy:
            yield proxy
        server.shutdown()


@pytest.mark.parametrize("mode", ["slow_down", "reset", "truncate"])
def test_a_web_server_is_asked_again(web: FaultProxy, mode: Mode) -> None:
    web.set("none")
    with faults(web, mode):
        assert open_store(web.endpoint).get("k") == DATA


@pytest.mark.parametrize("mode", ["truncate", "hang", "down"])
def test_a_web_server_that_always_fails_is_an_error_in_time(
    web: FaultProxy, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsspec, "WEB_RETRY_S", 1.0)
    monkeypatch.setattr(base, "REQUEST_TIMEOUT_S", 1)
    monkeypatch.setattr(base, "STAT_TIMEOUT_S", 1)
    web.set(mode, share=1.0)
    web.applies = lambda _: True
    began = time.monotonic()
    with pytest.raises(UnavailableError, match=web.endpoint):
        open_store(web.endpoint).get("k")
    assert time.monotonic() - began < 10


def test_a_file_system_that_is_gone_is_unavailable_and_a_long_name_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path))
    with pytest.raises(StoreError) as caught:
        store.get("x" * 300)
    assert not isinstance(caught.value, UnavailableError)

    def stale(*_: object, **__: object) -> None:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(Path, "open", stale)
    with pytest.raises(UnavailableError, match="Stale file handle"):
        store.get("k")


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
def test_a_retry_time_that_is_not_a_number_of_seconds_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DA2RAY_RETRY_SECONDS", text)
    with pytest.raises(UserError, match="DA2RAY_RETRY_SECONDS"):
        open_store("s3://bucket")
