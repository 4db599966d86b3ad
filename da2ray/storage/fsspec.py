"""Every other scheme, and S3 by s3fs where it is asked for, through fsspec."""

import collections
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa

from da2ray.errors import UserError
from da2ray.storage import base
from da2ray.storage.base import LIST_BATCH, Stat, StoreError, check_length, listing, short_message, shown, unquoted

CONFLICT_TRIES = 6
DELETE_THREADS = 8


class FsspecStore:
    """Through fsspec's synchronous calls, which any thread may use: an asynchronous file system runs them in one loop.

    A file system that neither sends an object whole nor creates it exclusively (plain SFTP) is no place for a dataset;
    as a source of images it will do. A listing holds a folder at a time, as Python objects of about 1 kB an entry.
    """

    def __init__(self, url: str) -> None:
        """`url`: canonical, with a scheme that fsspec knows.

        Raises:
            UserError: it does not, or the scheme's package is not installed.
        """
        self.url = url
        self._scheme = url.partition("://")[0]
        self._lock = threading.Lock()
        self._made: tuple[Any, str] | None = None
        try:
            fsspec.get_filesystem_class(self._scheme)
        except (ImportError, ValueError) as error:
            raise UserError(f"cannot open {self._scheme}:// URLs: {error}") from error

    def __reduce__(self) -> "tuple[type[FsspecStore], tuple[str]]":
        return FsspecStore, (self.url,)

    def get(self, key: str) -> bytes:
        with self._normalised(key) as (fs, path):
            if self._scheme == "s3":
                # One GET, whose length aiohttp checks; without max_concurrency s3fs sends a HEAD before each.
                return bytes(fs.cat_file(path, max_concurrency=1))
            declared = fs.info(path)["size"]
            data = bytes(fs.cat_file(path))
            # A web server may send no length.
            return data if declared is None else check_length(self._uri(key), data, declared)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        if length == 0:
            return b""
        with self._normalised(key) as (fs, path):
            data = bytes(fs.cat_file(path, start=offset, end=offset + length))
        return check_length(self._uri(key), data, length)

    def stat(self, key: str) -> Stat:
        with self._normalised(key) as (fs, path):
            info = fs.info(path)
        if info["type"] != "file":
            raise FileNotFoundError(f"{self._uri(key)}: a folder")
        if info["size"] is None:
            raise StoreError(f"{self._uri(key)}: the server does not tell its size")
        return Stat(info["size"], _etag(info))

    def put(self, key: str, data: bytes) -> None:
        with self._normalised(key) as (fs, path):
            self._make_parent(fs, path)
            fs.pipe_file(path, data)

    def put_file(self, key: str, path: Path) -> None:
        with self._normalised(key) as (fs, target):
            self._make_parent(fs, target)
            fs.put_file(str(path), target)

    def create(self, key: str, data: bytes) -> bool:
        return self._create(key, lambda fs, path: fs.pipe_file(path, data, mode="create"))

    def create_file(self, key: str, path: Path) -> bool:
        if self._scheme == "s3":
            return self._create(key, lambda fs, target: fs.put_file(str(path), target, mode="create"))
        # fsspec's own `put_file` asks whether the file exists and then writes: two callers can both succeed.
        return self.create(key, path.read_bytes())

    def list(self, prefix: str = "") -> Iterator[pa.RecordBatch]:
        prefix = prefix.strip("/")
        with self._normalised(prefix) as (fs, path):
            try:
                yield from _walk(fs, path.rstrip("/"), f"{prefix}/" if prefix else "")
            except FileNotFoundError:
                # A folder without objects does not exist; a bucket that does not exist is a mistake to report.
                if self._scheme == "s3" and not _bucket_exists(fs, path):
                    raise

    def delete(self, keys: Iterable[str]) -> None:
        with ThreadPoolExecutor(DELETE_THREADS) as pool:
            # Consumed, so that an error of any of them is raised.
            collections.deque(pool.map(self._delete, keys), maxlen=0)

    def _delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError), self._normalised(key) as (fs, path):
            fs.rm_file(path)  # Not `rm`, which takes `*`, `?` and `[` for patterns.

    def _create(self, key: str, write: Callable[[Any, str], object]) -> bool:
        with self._normalised(key) as (fs, path):
            self._make_parent(fs, path)
            for attempt in range(CONFLICT_TRIES):
                try:
                    write(fs, path)
                except FileExistsError:
                    return False
                except OSError as error:
                    code = _s3_code(error)
                    if code == "PreconditionFailed":
                        return False
                    # Two creates at once: AWS lets one through and tells the other to come again.
                    if code != "ConditionalRequestConflict" or attempt == CONFLICT_TRIES - 1:
                        raise
                    time.sleep(0.1 * 2**attempt)
                except (NotImplementedError, TypeError, ValueError) as error:
                    raise UserError(
                        f"fsspec's {self._scheme}:// cannot create exclusively, as commits must: write elsewhere"
                    ) from error
                else:
                    return True
        raise AssertionError("unreachable")

    def _make_parent(self, fs: Any, path: str) -> None:
        """Object stores have no folders; s3fs would try to make the bucket."""
        if self._scheme not in {"s3", "gs", "memory", "az", "abfs", "abfss"}:
            fs.makedirs(fs._parent(path), exist_ok=True)

    def _uri(self, key: str) -> str:
        return shown(f"{self.url}{'' if self.url.endswith('/') else '/'}{key}") if key else self.url

    @contextlib.contextmanager
    def _normalised(self, key: str) -> Iterator[tuple[Any, str]]:
        """The file system and the path of a key in it, with its errors turned into those of `da2ray.storage`."""
        if "\0" in key or ".." in key.split("/"):
            raise ValueError(f"not a key: {key!r}")
        uri = self._uri(key)
        try:
            fs, root = self._filesystem()
            yield fs, f"{root}/{key}" if key else root
        except (StoreError, UserError):
            raise
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{uri}: {_s3_code(error) or 'no such object'}") from None
        except PermissionError as error:
            raise PermissionError(f"{uri}: {_message(error)}") from None
        except (MemoryError, ValueError, NotImplementedError):
            raise
        except Exception as error:  # noqa: BLE001  Each file system has a zoo of its own: botocore, aiohttp, ...
            denied = getattr(error, "status", None) in {401, 403} or type(error).__name__ == "NoCredentialsError"
            kind = PermissionError if denied else StoreError
            raise kind(f"{uri}: {_message(error)}") from None

    def _filesystem(self) -> tuple[Any, str]:
        with self._lock:
            if self._made is None:
                # A cached instance would keep the credentials of an earlier environment, a cached listing hide new
                # commits.
                options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
                if self._scheme == "s3":
                    options |= _s3_options()
                fs = fsspec.filesystem(self._scheme, **options)
                self._made = fs, fs._strip_protocol(self.url).rstrip("/")
            return self._made


def _walk(fs: Any, folder: str, prefix: str) -> Iterator[pa.RecordBatch]:
    """Folder by folder, each sorted as its keys sort: a folder counts as its name with a slash."""
    rows: list[tuple[str, Any]] = []
    for info in fs.ls(folder, detail=True):
        name = info["name"].rstrip("/").removeprefix(folder).lstrip("/")
        # An object of length 0 named like its folder, which some tools write to make the folder visible.
        if not name or (info["type"] == "file" and info["name"].endswith("/")):
            continue
        rows.append((f"{name}/" if info["type"] == "directory" else name, info))
    rows.sort(key=lambda row: row[0])
    files: list[tuple[str, Any]] = []
    for name, info in rows:
        if not name.endswith("/"):
            files.append((name, info))
        if files and (name.endswith("/") or len(files) == LIST_BATCH):
            yield _batch(files, prefix)
            files.clear()
        if name.endswith("/"):
            with contextlib.suppress(FileNotFoundError):  # Deleted while the walk is under way.
                yield from _walk(fs, f"{folder}/{name[:-1]}", prefix + name)
    if files:
        yield _batch(files, prefix)


def _batch(files: list[tuple[str, Any]], prefix: str) -> pa.RecordBatch:
    # A web server's index tells no sizes; 0 would read as an empty file, so such a source is refused.
    if any(info["size"] is None for _, info in files):
        raise StoreError(f"{files[0][1]['name']}: the server tells no sizes; list the images in a manifest instead")
    return listing(
        [prefix + name for name, _ in files], [info["size"] for _, info in files], [_etag(info) for _, info in files]
    )


def _etag(info: dict[str, Any]) -> str | None:
    """An etag or checksum where there is one, else size and time of writing, as for local files."""
    for name in ("ETag", "etag", "md5Hash", "content_md5"):
        if info.get(name):
            return unquoted(str(info[name]))
    written = info.get("mtime") or info.get("LastModified") or info.get("created")
    if isinstance(written, datetime):
        written = written.timestamp()
    return f"{info['size']}-{written}" if written is not None else None


def _s3_options() -> dict[str, Any]:
    return {
        "anon": os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in {"1", "true", "yes", "on"},
        "config_kwargs": {
            "connect_timeout": base.CONNECT_TIMEOUT_S,
            "read_timeout": base.REQUEST_TIMEOUT_S,
            # Waits of 1, 2, 4, ... at most 20 s, each times a random share: at most three minutes in all.
            "retries": {"mode": "standard", "max_attempts": base.MAX_RETRIES},
        },
    }


def _s3_code(error: BaseException) -> str | None:
    """The code of the answer that s3fs made an error of, such as PreconditionFailed."""
    response = getattr(error.__cause__, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None


def _message(error: BaseException) -> str:
    code = _s3_code(error)
    text = short_message(str(error) or type(error).__name__)
    return f"{code}: {text}" if code else text


def _bucket_exists(fs: Any, path: str) -> bool:
    try:
        next(iter(fs.ls(path.partition("/")[0], detail=True)), None)
    except FileNotFoundError:
        return False
    return True
