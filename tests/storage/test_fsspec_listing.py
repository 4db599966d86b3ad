"""A listing through fsspec gives each key once, counts what it cannot give, and comes to an end."""

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import FTPServer

from da2ray.errors import UserError
from da2ray.sources import members_of, open_source
from da2ray.storage import Store, open_store


@pytest.fixture(autouse=True)
def _empty_memory() -> Iterator[None]:
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def keys(store: Store) -> list[str]:
    return [key for batch in store.list() for key in batch["key"].to_pylist()]


class Tree(fsspec.AbstractFileSystem):
    """Entries by folder; an error instead of entries is raised."""

    protocol = "tree"
    cachable = False
    folders: ClassVar[dict[str, list[dict[str, Any]] | Exception]] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("tree://").rstrip("/")

    def ls(self, path: str, **_: object) -> list[dict[str, Any]]:
        found = self.folders.get(path, FileNotFoundError(path))
        if isinstance(found, Exception):
            raise found
        return found

    def info(self, path: str, **_: object) -> dict[str, Any]:
        target = self.folders.get(f"info {path}", FileNotFoundError(path))
        if isinstance(target, Exception):
            raise target
        return target[0]


fsspec.register_implementation("tree", Tree, clobber=True)


def entry(name: str, type_: str = "file", **more: object) -> dict[str, Any]:
    return {"name": name, "type": type_, "size": 1 if type_ == "file" else 0, **more}


@pytest.fixture
def tree(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    folders: dict[str, Any] = {}
    monkeypatch.setattr(Tree, "folders", folders)
    return folders


def test_a_folder_below_that_may_not_be_listed_is_counted_and_a_root_is_refused(tree: dict[str, Any]) -> None:
    tree["h"] = [entry("h/a.jpg"), *(entry(f"h/{name}", "directory") for name in ("closed", "gone", "open"))]
    tree["h/closed"] = PermissionError("h/closed")
    tree["h/open"] = [entry("h/open/b.jpg")]
    source = open_source("tree://h")
    assert [member.key for batch in source.members() for member in members_of(batch)] == ["a.jpg", "open/b.jpg"]
    assert source.passed_over["closed_folders"] == 1
    tree["h"] = PermissionError("h")
    with pytest.raises(UserError, match="cannot list tree://h"):
        list(open_source("tree://h").members())


def test_any_other_error_of_a_folder_ends_the_listing(tree: dict[str, Any]) -> None:
    tree["h"] = [entry("h/broken", "directory")]
    for error in (OSError("down"), KeyError("h"), NotADirectoryError("h")):
        tree["h/broken"] = error
        with pytest.raises(OSError, match="tree://h"):
            keys(open_store("tree://h"))


def test_entries_that_cannot_be_named_are_counted(tree: dict[str, Any]) -> None:
    tree["h"] = [
        entry("h", "directory"),  # the folder itself
        entry("h/", size=0),  # its marker
        entry("h/", "directory"),  # of `h//a.jpg`
        entry("h/.."),
        entry("h/.", "directory"),
        entry("elsewhere/a.jpg"),
        entry("hh/a.jpg"),
        entry("h/d/a.jpg"),  # not directly below
        entry("h/a.jpg/", size=0),
        entry("h/b.jpg/"),
        entry("h/d"),
        entry("h/d", "directory"),
    ]
    tree["h/d"] = [entry("h/d")]  # a file named like a folder hides it
    store = open_store("tree://h")
    assert keys(store) == ["d"]
    assert store.passed_over == {"unlisted": 8}


def test_links_to_files_are_files_and_links_to_folders_are_counted(tree: dict[str, Any]) -> None:
    tree["h"] = [entry(f"h/{name}", "link") for name in ("dangling.jpg", "file.jpg", "folder", "loop")]
    tree["info h/file.jpg"] = [entry("h/file.jpg", size=7)]
    tree["info h/folder"] = tree["info h/loop"] = [entry("h/folder", "directory")]
    store = open_store("tree://h")
    rows = [row for batch in store.list() for row in batch.to_pylist()]
    assert [(row["key"], row["size"]) for row in rows] == [("dangling.jpg", 0), ("file.jpg", 7)]
    assert store.passed_over["linked_folders"] == 2


class EndlessTree(Tree):
    """Every folder holds one picture and two folders that are the same folder again."""

    protocol = "endless"
    tells: ClassVar[bool] = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("endless://").rstrip("/")

    def ls(self, path: str, **_: object) -> list[dict[str, Any]]:
        identity = {"unique": "1g2"} if self.tells else {}
        return [
            entry(f"{path}/a.jpg", mtime=5),
            *(entry(f"{path}/{name}", "directory", **identity) for name in ("x", "y")),
        ]


fsspec.register_implementation("endless", EndlessTree, clobber=True)


@pytest.mark.parametrize(("tells", "found", "loops"), [(True, 3, 4), (False, 7, 8)])
def test_loops_end_whether_the_server_tells_them_or_not(
    tells: bool, found: int, loops: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EndlessTree, "tells", tells)
    store = open_store("endless://h")
    assert len(keys(store)) == found
    assert store.passed_over["link_loops"] == loops


def test_copies_within_copies_are_not_loops(tree: dict[str, Any]) -> None:
    for path in ("h", "h/x", "h/x/x"):
        tree[path] = [entry(f"{path}/a.jpg", mtime=5), entry(f"{path}/x", "directory", mtime=5)]
    tree["h/x/x/x"] = [entry("h/x/x/x/a.jpg", mtime=5)]
    assert len(keys(open_store("tree://h"))) == 4


def test_a_server_without_end_is_listed_to_an_end(tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tree, "ls", lambda _, path, **__: [entry(f"{path}/x", "directory")])
    store = open_store("tree://h")
    assert keys(store) == []
    assert store.passed_over == {"link_loops": 1}


def test_folders_may_lie_deeper_than_pythons_stack(tmp_path: Path) -> None:
    names = "d/" * 1500
    subprocess.run(["mkdir", "-p", f"{tmp_path}/{names}"], check=True)
    try:
        Path(f"{tmp_path}/{names}a.jpg").write_bytes(b"x")
        assert keys(open_store(tmp_path)) == [f"{names}a.jpg"]
    finally:
        subprocess.run(["rm", "-r", tmp_path / "d"], check=True)  # Python's rmtree would not.
    memory = open_store("memory://deep")
    memory.put(f"{names}a.jpg", b"x")
    assert keys(memory) == [f"{names}a.jpg"]


name = st.text("ab.-/\u00fc\U0001f600", min_size=1, max_size=5)


@given(names=st.sets(name, min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_every_key_of_a_file_system_is_listed_once_or_something_is_counted(names: set[str]) -> None:
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    fs = MemoryFileSystem()
    for each in names:
        MemoryFileSystem.store[f"/p/{each}"] = fsspec.implementations.memory.MemoryFile(fs, f"/p/{each}", b"x")
    store = open_store("memory://p")
    listed = keys(store)
    assert listed == sorted(set(listed), key=str.encode)
    assert set(listed) <= names
    assert set(listed) == names or store.passed_over["unlisted"]
    for each in listed:
        try:
            assert store.get(each) == b"x"
        except (OSError, ValueError):  # `..`, and a file whose name is also that of a folder
            assert ".." in each.split("/") or any(other.startswith(f"{each}/") for other in names)


@pytest.fixture(params=[True, False], ids=["mlsd", "list"])
def tells_types(request: pytest.FixtureRequest) -> bool:
    """Whether an FTP server knows MLSD. vsftpd does not."""
    return request.param


@pytest.fixture
def ftp(tells_types: bool, tmp_path: Path) -> Iterator[str]:
    """An FTP server on loopback whose folder `closed` it lists to nobody."""
    for folder in ("closed", "open", "empty", "odd [1] *"):
        (tmp_path / folder).mkdir()
        if folder != "empty":
            (tmp_path / folder / "a.jpg").write_bytes(folder.encode())
    (tmp_path / "open" / "self").symlink_to(".")
    (tmp_path / "link.jpg").symlink_to("open/a.jpg")
    authorizer = DummyAuthorizer()
    authorizer.add_anonymous(str(tmp_path))
    authorizer.override_perm("anonymous", str(tmp_path / "closed"), "er")
    commands = {
        name: what for name, what in FTPHandler.proto_cmds.items() if tells_types or name not in {"MLSD", "MLST"}
    }
    handler = type("Handler", (FTPHandler,), {"authorizer": authorizer, "proto_cmds": commands})
    with FTPServer(("127.0.0.1", 0), handler) as server:
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                server.serve_forever(timeout=0.05, blocking=False)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"ftp://127.0.0.1:{server.address[1]}"
        ended.set()
        thread.join(10)
        server.close_all()


def test_an_ftp_server_is_a_source(ftp: str, tells_types: bool) -> None:
    source = open_source(ftp)
    members = [member for batch in source.members() for member in members_of(batch)]
    assert [member.key for member in members] == ["link.jpg", "odd [1] */a.jpg", "open/a.jpg"]
    assert +source.passed_over == {"closed_folders": 1, "link_loops" if tells_types else "linked_folders": 1}
    bodies = [sample.body for sample in source.fetch(members * 5, concurrency=8)]
    assert bodies == [b"open", b"odd [1] *", b"open"] * 5
    with pytest.raises(UserError, match="550"):
        list(open_source(f"{ftp}/closed").members())
    assert keys(open_store(f"{ftp}/none")) == []
