"""Files of a local or shared POSIX file system."""

import contextlib
import errno
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from da2ray.errors import StoreError, UnavailableError
from da2ray.storage.base import LIST_BATCH, LIST_SCHEMA, Fetched, Stat, check_key, check_length
from da2ray.storage.walk import CLOSED_FOLDERS, LINK_LOOPS, walk

TEMPORARY = ".da2ray-tmp-"
"""The beginning of the names of files that are being written. A killed process leaves such a file behind; no listing shows it."""

UNAVAILABLE = {
    *(errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN),
    *(errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
}
"""A mount that is missing, a disk or server that fails, a process out of descriptors: errors that say nothing about the file."""


class LocalStore:
    """A store whose objects are files.

    A write goes to a temporary file in the same folder, is synced, and gets its name in one step.
    """

    def __init__(self, url: str) -> None:
        """`url`: an absolute path (see `canonical_url`); the first write makes the folders."""
        self.url = url
        self._root = Path(url)
        self.passed_over: Counter[str] = Counter()
        self.skipped: list[str] = []
        """Beginnings of keys below which the newest listing did not look, though there may be objects."""

    def get(self, key: str) -> bytes:
        return self.fetch(key).data

    def fetch(self, key: str) -> Fetched:
        path = self._path(key)
        with _normalised(path), path.open("rb") as file:
            data, status = file.read(), os.fstat(file.fileno())
            return Fetched(check_length(str(path), data, status.st_size), _etag(status))

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        path = self._path(key)
        with _normalised(path), path.open("rb") as file:
            file.seek(offset)
            return check_length(str(path), file.read(length), length)

    def stat(self, key: str) -> Stat:
        path = self._path(key)
        with _normalised(path):
            if path.is_dir():
                raise IsADirectoryError
            status = path.stat()
        modified = datetime.fromtimestamp(status.st_mtime, UTC)
        return Stat(status.st_size, _etag(status), modified)

    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        with _normalised(path), _temporary(path) as (temporary, file):
            file.write(data)
            _publish(file, lambda: temporary.replace(path), path)

    def put_file(self, key: str, path: Path) -> None:
        target = self._path(key)
        with _normalised(target), _temporary(target) as (temporary, file), path.open("rb") as source:
            shutil.copyfileobj(source, file, 1 << 20)
            _publish(file, lambda: temporary.replace(target), target)

    def create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        with _normalised(path):
            if path.exists():  # Only saves the write; the link below decides.
                return False
            with _temporary(path) as (temporary, file):
                file.write(data)
                return _publish_new(file, temporary, path)

    def create_file(self, key: str, path: Path) -> bool:
        target = self._path(key)
        with _normalised(target), _temporary(target) as (temporary, file), path.open("rb") as source:
            shutil.copyfileobj(source, file, 1 << 20)
            return _publish_new(file, temporary, target)

    def list(self, prefix: str = "") -> Iterator[pa.RecordBatch]:
        prefix = prefix.strip("/")
        top = self._path(prefix) if prefix else self._root
        with _normalised(top):
            if not top.is_dir():
                return
            self.passed_over, self.skipped = Counter(), []
            yield from _walk(top, f"{prefix}/" if prefix else "", self.passed_over, self.skipped)

    def leftovers(self) -> Iterator[pa.RecordBatch]:
        """The temporary files of killed writers and of writers at work, in batches like those of `list`."""
        with _normalised(self._root):
            if self._root.is_dir():
                yield from _walk(self._root, "", Counter(), [], temporary=True)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            path = self._path(key)
            with contextlib.suppress(FileNotFoundError), _normalised(path):
                path.unlink()

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)


def _etag(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


@contextlib.contextmanager
def _normalised(path: Path) -> Iterator[None]:
    """Turn errors of the operating system into those of `da2ray.storage`."""
    try:
        yield
    except StoreError:
        raise
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise FileNotFoundError(errno.ENOENT, "no such file", error.filename or str(path)) from error
    except PermissionError as error:
        raise PermissionError(errno.EACCES, error.strerror, error.filename or str(path)) from error
    except OSError as error:
        kind = UnavailableError if error.errno in UNAVAILABLE else StoreError
        raise kind(f"{error.filename or path}: {error.strerror or error}") from error


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file beside `path`, which is removed afterwards unless it was renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
    try:
        with temporary.open("xb") as file:
            yield temporary, file
    finally:
        temporary.unlink(missing_ok=True)


def _publish(file: BinaryIO, name: Callable[[], object], path: Path) -> None:
    """Sync the bytes, give the file its name, sync the folder: after a power cut, a name that exists has all its bytes."""
    file.flush()
    os.fsync(file.fileno())
    name()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        # Some network and FUSE file systems refuse to sync a folder, because the server does it.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP, errno.EBADF}:
            raise
    finally:
        os.close(folder)


def _publish_new(file: BinaryIO, temporary: Path, path: Path) -> bool:
    """Give the file its name; return False if the name is taken. Only a hard link does both in one step."""
    try:
        _publish(file, lambda: path.hardlink_to(temporary), path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in {errno.ENOTSUP, errno.EPERM, errno.ENOSYS, errno.EMLINK}:
            raise StoreError(
                f"{path}: this file system has no hard links, so commits cannot be exclusive: write elsewhere"
            ) from error
        raise
    return True


@dataclass(frozen=True, slots=True)
class _Folder:
    """The entries of a folder in the order of their keys, in which a folder counts as its name with a slash."""

    names: pa.StringArray
    sizes: np.ndarray
    mtimes: np.ndarray
    folders: np.ndarray
    """Positions of the entries that are folders, ascending."""


@dataclass(frozen=True, slots=True)
class _Below:
    """A folder to be listed.

    Attributes:
        prefix: of the keys below it.
        above: device and inode of the folders above it.
    """

    path: Path
    prefix: str
    above: frozenset[tuple[int, int]] = frozenset()


def _walk(
    top: Path, prefix: str, passed_over: Counter[str], skipped: list[str], *, temporary: bool = False
) -> Iterator[pa.RecordBatch]:
    def read(folder: _Below) -> Iterator[pa.RecordBatch | _Below]:
        try:
            status = folder.path.stat()
            identity = (status.st_dev, status.st_ino)
            if identity in folder.above:
                passed_over[LINK_LOOPS] += 1
                skipped.append(folder.prefix)
                return
            entries = _scan(folder.path, passed_over, temporary=temporary)
        except PermissionError:
            if not folder.above:
                raise
            passed_over[CLOSED_FOLDERS] += 1
            skipped.append(folder.prefix)
            return
        except FileNotFoundError:  # deleted during the walk
            if not folder.above:
                raise
            return
        begin = 0
        for position in [*entries.folders.tolist(), len(entries.names)]:
            yield from _batches(entries, begin, position, folder.prefix)
            if position < len(entries.names):
                name = entries.names[position].as_py()
                yield _Below(folder.path / name, f"{folder.prefix}{name}", folder.above | {identity})
            begin = position + 1

    return walk(_Below(top, prefix), read)


def _batches(entries: _Folder, begin: int, end: int, prefix: str) -> Iterator[pa.RecordBatch]:
    for start in range(begin, end, LIST_BATCH):
        stop = min(start + LIST_BATCH, end)
        keys = pc.binary_join_element_wise(pa.scalar(prefix), entries.names.slice(start, stop - start), "")
        sizes = pa.array(entries.sizes[start:stop])
        mtimes = pa.array(entries.mtimes[start:stop])
        etags = pc.binary_join_element_wise(sizes.cast(pa.string()), mtimes.cast(pa.string()), "-")
        yield pa.record_batch([keys, sizes, etags], schema=LIST_SCHEMA)


def _scan(folder: Path, passed_over: Counter[str], *, temporary: bool) -> _Folder:
    """The folders, and either the temporary files or all others.

    They are read in chunks into Arrow and numpy, so a folder of a million files takes 50 MB instead of 500.
    """
    names: list[pa.StringArray] = []
    numbers: list[np.ndarray] = []
    with os.scandir(folder) as entries:
        chunk: list[tuple[str, int, int, bool]] = []
        for entry in entries:
            if entry.name.startswith(TEMPORARY) and not temporary:
                continue
            try:
                status = entry.stat()
                is_folder = entry.is_dir()
            except OSError as error:
                if error.errno == errno.ELOOP:
                    passed_over[LINK_LOOPS] += 1
                    continue
                if not isinstance(error, FileNotFoundError | PermissionError) or not entry.is_symlink():
                    if isinstance(error, FileNotFoundError):  # deleted meanwhile
                        continue
                    raise
                # A link to nothing, or to what may not be read: reading it says so.
                status, is_folder = entry.stat(follow_symlinks=False), False
            if temporary and not is_folder and not entry.name.startswith(TEMPORARY):
                continue
            chunk.append((f"{entry.name}/" if is_folder else entry.name, status.st_size, status.st_mtime_ns, is_folder))
            if len(chunk) == LIST_BATCH:
                _append(folder, chunk, names, numbers)
        _append(folder, chunk, names, numbers)
    joined = pa.chunked_array(names, pa.string()).combine_chunks()
    order = pc.sort_indices(joined)
    table = np.concatenate(numbers)[order.to_numpy()]
    return _Folder(joined.take(order), table[:, 0].copy(), table[:, 1].copy(), np.flatnonzero(table[:, 2]))


def _append(
    folder: Path, chunk: list[tuple[str, int, int, bool]], names: list[pa.StringArray], numbers: list[np.ndarray]
) -> None:
    try:
        names.append(pa.array([row[0] for row in chunk], pa.string()))
    except UnicodeEncodeError as error:
        raise StoreError(f"{folder}: the file name {error.object!r} is not UTF-8; rename it") from error
    numbers.append(np.array([row[1:] for row in chunk], np.int64).reshape(-1, 3))
    chunk.clear()
