"""Listing a file system of fsspec folder by folder. A key that the listing cannot give is counted, and a loop ends."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import pyarrow as pa

from da2ray.errors import StoreError
from da2ray.storage.base import LIST_BATCH, listing, unquoted
from da2ray.storage.walk import CLOSED_FOLDERS, LINK_LOOPS, LINKED_FOLDERS, UNLISTED, walk

SAME_ABOVE: Final = 3
"""A folder that lists the same names, sizes and times as this many folders above it, a file among them, is taken for a loop that
the server does not tell. Folders alone are no evidence: `0/` to `f/` may lie in each other at every level."""
LONGEST_PATH: Final = 4096
"""Linux's PATH_MAX. A longer path is taken for a loop, too."""

Info = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Lister:
    """How a file system is asked. Both raise the errors of `da2ray.storage`.

    Attributes:
        entries: the entries of a folder, given by its path.
        info: what lies at a path; it follows links.
        passed_over: counts what is passed over.
    """

    entries: Callable[[str], Sequence[Info]]
    info: Callable[[str], Info]
    passed_over: Counter[str]

    def files(self, top: str, prefix: str) -> Iterator[pa.RecordBatch]:
        """The files below the folder `top`, whose keys begin with `prefix`, in batches of LIST_SCHEMA.

        Raises:
            FileNotFoundError: the folder does not exist.
            PermissionError: it may not be listed. Folders below it that may not be listed are counted.
            StoreError: the file system gives no sizes.
        """
        return walk(_Folder(top, prefix), self._read)

    def _read(self, folder: "_Folder") -> Iterator["pa.RecordBatch | _Folder"]:
        try:
            found = self._named(folder)
        except PermissionError:
            if not folder.below:
                raise
            self.passed_over[CLOSED_FOLDERS] += 1
            return
        except FileNotFoundError:  # deleted during the walk
            if not folder.below:
                raise
            return
        content = hash(tuple((name, info["size"], _written(info)) for name, info in found))
        dated = any(info["type"] == "file" and _written(info) for _, info in found)
        if (dated and folder.above.count(content) >= SAME_ABOVE) or len(folder.path) > LONGEST_PATH:
            self.passed_over[LINK_LOOPS] += 1
            return
        files: list[tuple[str, Info]] = []
        for name, info in found:
            if not name.endswith("/"):
                files.append((name, info))
            if files and (name.endswith("/") or len(files) == LIST_BATCH):
                yield _batch(files, folder.prefix)
                files.clear()
            if not name.endswith("/"):
                continue
            identity = info.get("unique")  # of FTP servers: device and inode
            if identity is not None and identity in folder.identities:
                self.passed_over[LINK_LOOPS] += 1
                continue
            yield _Folder(
                f"{folder.path}/{name[:-1]}",
                f"{folder.prefix}{name}",
                (*folder.above, content),
                (*folder.identities, identity),
            )
        if files:
            yield _batch(files, folder.prefix)

    def _named(self, folder: "_Folder") -> list[tuple[str, Info]]:
        """The entries by name, in the order of their keys, in which a folder counts as its name with a slash."""
        named: dict[str, Info] = {}
        for info in self.entries(folder.path):
            full = info["name"]
            name = _name(full, folder.path)
            if name == "" and _is_marker(info):
                continue
            if not name or "/" in name or name in {".", ".."}:
                # `a//b`, or a folder below a file of the same name: its path names something else.
                self.passed_over[UNLISTED] += 1
                continue
            if info["type"] == "file" and full.endswith("/"):
                # Some tools write an object of length 0, named like a folder, to make the folder visible.
                if info["size"]:
                    self.passed_over[UNLISTED] += 1
                continue
            if info["type"] not in {"file", "directory"} or info.get("islink"):
                if info["type"] != "directory":
                    info = self._target(info, f"{folder.path}/{name}")  # noqa: PLW2901
                if info["type"] == "directory":
                    self.passed_over[LINKED_FOLDERS] += 1
                    continue
                if info["type"] != "file" and not info.get("islink"):  # A link of which nothing is known but its name.
                    self.passed_over[UNLISTED] += 1
            named[f"{name}/" if info["type"] == "directory" else name] = info
        return sorted(named.items())

    def _target(self, info: Info, path: str) -> Info:
        """What a link leads to, or the link itself if it leads nowhere: reading it says so."""
        with contextlib.suppress(FileNotFoundError, PermissionError):
            return self.info(path)
        return info


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder on the way.

    Attributes:
        path: in the file system.
        prefix: of the keys below it.
        above: hashes of what the folders above it hold.
        identities: what the server says that they are; None if it does not.
    """

    path: str
    prefix: str
    above: tuple[int, ...] = ()
    identities: tuple[str | None, ...] = ()

    @property
    def below(self) -> bool:
        """Whether the walk began above it."""
        return bool(self.above)


def _name(path: str, folder: str) -> str | None:
    """The name of a path in a folder; empty if it is the folder, None if it lies elsewhere."""
    path, folder = path.strip("/"), folder.strip("/")
    if path == folder:
        return ""
    return (
        path.removeprefix(f"{folder}/" if folder else "") if path.startswith(f"{folder}/" if folder else "") else None
    )


def _is_marker(info: Info) -> bool:
    """Whether an entry that is named like its folder is the folder: an object of no bytes, or the folder's own entry.

    The others are what lies below it without a name: the folder in `a//b`, or a file named like the folder.
    """
    if info["type"] == "directory":
        return not info["name"].endswith("/")
    return info["name"].endswith("/") and not info["size"]


def _batch(files: Sequence[tuple[str, Info]], prefix: str) -> pa.RecordBatch:
    # A web server's index has no sizes. 0 would mean an empty file, so such a source is refused.
    if any(info["size"] is None for _, info in files):
        raise StoreError(f"{files[0][1]['name']}: the server gives no sizes: list the images in a manifest instead")
    sizes, etags = [info["size"] for _, info in files], [etag_of(info) for _, info in files]
    try:
        return listing([prefix + name for name, _ in files], sizes, etags)
    except UnicodeEncodeError as error:
        raise StoreError(f"the file name {error.object!r} is not UTF-8; rename it") from None


def etag_of(info: Info) -> str | None:
    """The etag or a checksum if there is one, else the size and the time of writing, as for local files."""
    for name in ("ETag", "etag", "md5Hash", "content_md5"):
        if info.get(name):
            return unquoted(str(info[name]))
    written = _written(info)
    return f"{info['size']}-{written}" if written is not None else None


def _written(info: Info) -> Any:
    written = info.get("mtime") or info.get("LastModified") or info.get("created") or info.get("modify")
    return written.timestamp() if isinstance(written, datetime) else written
