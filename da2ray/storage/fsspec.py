"""Every other scheme through fsspec, and S3 through s3fs if the user asks for it."""

import contextlib
import logging
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import fsspec.asyn
import pyarrow as pa

from da2ray.errors import RejectedError, StoreError, UnavailableError, UserError
from da2ray.storage import base
from da2ray.storage.base import Fetched, Stat, check_length, short_message
from da2ray.storage.fsspec_listing import Lister, etag_of
from da2ray.storage.inherited import end_only_here
from da2ray.storage.redaction import WEB, redact
from da2ray.storage.retry import retry_seconds, settled

DELETE_THREADS = 8
PART_BYTES = 64 << 20
SLOWEST_BYTES_PER_S = 1_500_000
"""The slowest upload of a file in parts that does not time out."""
LIST_TIMEOUT_S = 600
"""The time for listing a folder of any number of pages: enough for 3 million entries on an S3 server that takes 0.2 s a page."""
S3_RETRIES = 4
"""botocore's own retries, for a page or a part among many, after 1, 2, 4, 8 s, each times a random share. `settled` adds more; if
it has less time than these take, botocore gets one.
"""
WEB_RETRY_S = 15.0
"""A manifest may name many web servers, some of which no longer exist."""

T = TypeVar("T")


class FsspecStore:
    """A store that uses fsspec's synchronous calls. Any thread may use them; an asynchronous file system runs them in one loop.

    A file system that neither writes an object whole nor creates it exclusively (plain SFTP) cannot hold a dataset, but can be a
    source of images. A listing holds one folder at a time, as Python objects of about 1 kB for each entry.
    """

    def __init__(self, url: str, retry_s: float | None = None) -> None:
        """`url`: canonical, with a scheme that fsspec knows. `retry_s`: see `open_store`.

        Raises:
            UserError: fsspec does not know the scheme, or the scheme's package is not installed.
        """
        self.url = url
        self._scheme = url.partition("://")[0]
        self._retry_s = retry_seconds() if retry_s is None else retry_s
        self._lock = threading.Lock()
        self._made: tuple[Any, str] | None = None
        self._process = os.getpid()
        self.passed_over: Counter[str] = Counter()
        try:
            fsspec.get_filesystem_class(self._scheme)
        except (ImportError, ValueError) as error:
            raise UserError(f"cannot open {self._scheme}:// URLs: {error}") from error

    def __reduce__(self) -> "tuple[type[FsspecStore], tuple[str, float]]":
        return FsspecStore, (self.url, self._retry_s)

    def get(self, key: str) -> bytes:
        return self.fetch(key).data

    def fetch(self, key: str) -> Fetched:
        return self._call(key, lambda fs, path: self._whole(fs, path, self._uri(key)))

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        if length == 0:
            return b""
        data = bytes(self._call(key, lambda fs, path: _run(fs, "cat_file", path, start=offset, end=offset + length)))
        return check_length(self._uri(key), data, length)

    def stat(self, key: str) -> Stat:
        info = self._call(key, lambda fs, path: _run(fs, "info", path, timeout_s=base.STAT_TIMEOUT_S))
        if info["type"] != "file":
            raise FileNotFoundError(f"{self._uri(key)}: a folder")
        if info["size"] is None:
            raise StoreError(f"{self._uri(key)}: the server does not tell its size")
        return Stat(info["size"], etag_of(info), _modified(info))

    def put(self, key: str, data: bytes) -> None:
        self._call(key, lambda fs, path: self._pipe(fs, path, data))

    def put_file(self, key: str, path: Path) -> None:
        self._call(key, lambda fs, target: self._upload(fs, target, path))

    def create(self, key: str, data: bytes) -> bool:
        return self._create(key, lambda fs, path: self._pipe(fs, path, data, mode="create"))

    def create_file(self, key: str, path: Path) -> bool:
        if self._scheme == "s3":
            return self._create(key, lambda fs, target: self._upload(fs, target, path, mode="create"))
        # fsspec's own `put_file` checks whether the file exists and then writes, so two callers can both succeed.
        return self.create(key, path.read_bytes())

    def list(self, prefix: str = "") -> Iterator[pa.RecordBatch]:
        prefix = prefix.strip("/")

        def entries(folder: str) -> Sequence[dict[str, Any]]:
            return self._call(prefix, lambda fs, _: self._entries(fs, folder))

        def info(path: str) -> dict[str, Any]:
            return self._call(prefix, lambda fs, _: _run(fs, "info", path, timeout_s=base.STAT_TIMEOUT_S))

        self.passed_over = Counter()
        top: str = self._call(prefix, lambda _, path: path.rstrip("/"))
        with contextlib.suppress(FileNotFoundError):
            yield from Lister(entries, info, self.passed_over).files(top, f"{prefix}/" if prefix else "")

    def delete(self, keys: Iterable[str]) -> None:
        with ThreadPoolExecutor(DELETE_THREADS) as pool:
            # Consumed, so that the error of any of them is raised.
            deque(pool.map(self._delete, keys), maxlen=0)

    def _delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            # Not `rm`, which takes `*`, `?` and `[` for patterns.
            self._call(key, lambda fs, path: _run(fs, "rm_file", path, timeout_s=base.STAT_TIMEOUT_S))

    def _entries(self, fs: Any, folder: str) -> Sequence[dict[str, Any]]:
        """What fsspec says of each entry of a folder."""
        found: Sequence[dict[str, Any]] = _run(fs, "ls", folder, timeout_s=LIST_TIMEOUT_S, detail=True)
        return found

    def _whole(self, fs: Any, path: str, uri: str) -> Fetched:
        """An object without its etag, which `cat_file` does not tell."""
        if self._scheme in WEB:  # one GET, whose length aiohttp checks
            return Fetched(bytes(_run(fs, "cat_file", path)), None)
        declared = _run(fs, "info", path, timeout_s=base.STAT_TIMEOUT_S)["size"]
        data = bytes(_run(fs, "cat_file", path))
        return Fetched(data if declared is None else check_length(uri, data, declared), None)

    def _pipe(self, fs: Any, path: str, data: bytes, **mode: str) -> None:
        self._make_parent(fs, path)
        # s3fs sends large data in parts unless the part size is larger.
        options: dict[str, Any] = {"chunksize": 5 << 30} | mode if self._scheme == "s3" else mode
        _run(fs, "pipe_file", path, data, **options)

    def _upload(self, fs: Any, target: str, path: Path, **mode: str) -> None:
        self._make_parent(fs, target)
        options: dict[str, Any] = {"chunksize": PART_BYTES} | mode if self._scheme == "s3" else mode
        seconds = base.REQUEST_TIMEOUT_S + path.stat().st_size / SLOWEST_BYTES_PER_S
        _run(fs, "put_file", str(path), target, timeout_s=seconds, **options)

    def _create(self, key: str, write: Callable[[Any, str], None]) -> bool:
        def create(fs: Any, path: str) -> bool:
            try:
                write(fs, path)
            except FileExistsError:
                return False
            except OSError as error:
                if _s3_code(error) == "PreconditionFailed":
                    return False
                raise
            except (NotImplementedError, TypeError, ValueError) as error:
                raise UserError(
                    f"fsspec's {self._scheme}:// cannot create an object exclusively, which commits need: write elsewhere"
                ) from error
            return True

        return self._call(key, create)

    def _call(self, key: str, call: Callable[[Any, str], T]) -> T:
        """The result of `call` with the file system and the key's path, repeated while the store is unavailable."""

        def attempt() -> T:
            with self._normalised(key) as (fs, path):
                return call(fs, path)

        # Other schemes' packages retry by themselves.
        longest = self._retry_s if self._scheme == "s3" else WEB_RETRY_S if self._scheme in WEB else 0
        return settled(attempt, min(self._retry_s, longest))

    def _make_parent(self, fs: Any, path: str) -> None:
        """Make the folder of a path, but not on object stores: they have none, and s3fs would try to make the bucket."""
        if self._scheme not in {"s3", "gs", "memory", "az", "abfs", "abfss"}:
            fs.makedirs(fs._parent(path), exist_ok=True)

    def _check(self, key: str) -> None:
        if "\0" in key or ".." in key.split("/"):
            raise ValueError(f"not a key: {key!r}")

    def _uri(self, key: str) -> str:
        return redact(f"{self.url}{'' if self.url.endswith('/') else '/'}{key}") if key else self.url

    @contextlib.contextmanager
    def _normalised(self, key: str) -> Iterator[tuple[Any, str]]:
        """The file system and a key's path in it; its errors are turned into those of `da2ray.storage`."""
        self._check(key)
        uri = self._uri(key)
        try:
            fs, root = self._filesystem()
            yield fs, f"{root}/{key}" if key else root
        except (StoreError, UserError):
            raise
        except FileNotFoundError as error:
            # A file on this machine, such as a web identity's token.
            if self._scheme == "s3" and error.filename is not None:
                raise PermissionError(f"{uri}: {base.NO_CREDENTIALS}{_message(error)}") from None
            cause = error.__cause__
            if self._scheme in WEB and isinstance(cause, Exception) and getattr(cause, "status", None) != 404:
                # When asked for a size, fsspec reports every failure of a web server as a missing file.
                raise _translated(uri, cause) from None
            if _s3_status(error) is None:
                raise FileNotFoundError(f"{uri}: no such object") from None
            raise _translated(uri, error) from None
        except MemoryError:
            raise
        except (ValueError, NotImplementedError) as error:
            if type(error).__module__.startswith("botocore"):
                raise _translated(uri, error) from None
            raise StoreError(f"{uri}: {self._scheme}:// cannot read or write this: {_message(error)}") from None
        except Exception as error:  # noqa: BLE001  Each file system has errors of its own: botocore, aiohttp, ...
            raise _translated(uri, error) from None

    def _filesystem(self) -> tuple[Any, str]:
        if self._process != os.getpid():  # forked: the parent's loop, its connections and maybe a held lock
            self._lock, self._made, self._process = threading.Lock(), None, os.getpid()
        with self._lock:
            if self._made is None:
                self._made = self._make()
                end_only_here(self._made[0])
            return self._made

    def _make(self) -> tuple[Any, str]:
        """A file system, and the store's URL as a path in it."""
        # A cached instance would keep the credentials of an earlier environment, and a cached listing would hide new commits.
        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        if self._scheme == "s3":
            options |= _s3_options(self._retry_s)
        options |= fsspec.get_filesystem_class(self._scheme)._get_kwargs_from_urls(self.url)  # a host and a port
        fs = fsspec.filesystem(self._scheme, **options)
        if self._scheme == "s3":
            fs.retries = 1  # s3fs would repeat what botocore has repeated already.
        return fs, fs._strip_protocol(self.url).rstrip("/")


def _run(fs: Any, method: str, *args: Any, timeout_s: float | None = None, **options: Any) -> Any:
    """Call a method of a file system. An asynchronous one (all that use HTTP are) gets REQUEST_TIMEOUT_S, or `timeout_s`, for the
    whole call; any other takes as long as it takes.
    """
    if not fs.async_impl:
        return getattr(fs, method)(*args, **options)
    coroutine = getattr(fs, f"_{method}")
    try:
        # As fsspec's synchronous methods do, which have no timeout.
        return fsspec.asyn.sync(fs.loop, coroutine, *args, timeout=timeout_s or base.REQUEST_TIMEOUT_S, **options)
    except fsspec.asyn.FSTimeoutError:
        raise TimeoutError("no answer in time") from None


def _modified(info: dict[str, Any]) -> datetime | None:
    """When a file was written, which file systems give under three names, as a time with or without zone or as seconds."""
    written = info.get("LastModified") or info.get("mtime") or info.get("created")
    if isinstance(written, int | float):
        return datetime.fromtimestamp(written, UTC)
    if isinstance(written, datetime):
        return written if written.tzinfo else written.replace(tzinfo=UTC)
    return None


def _s3_options(retry_s: float) -> dict[str, Any]:
    """What s3fs is given. Its session is aiobotocore's, with the variables of `aws_config`."""
    from aiobotocore.session import AioSession  # type: ignore[import-untyped]  # noqa: PLC0415 - only S3 needs it

    from da2ray.storage.aws import aws_config  # noqa: PLC0415 - botocore

    # As botocore does for its own: a warning that nobody handles goes to stderr with its traceback.
    logging.getLogger("aiobotocore").addHandler(logging.NullHandler())
    config = aws_config(AioSession)
    return {
        "anon": config.anonymous,
        "endpoint_url": config.endpoint,
        "session": config.session,
        "client_kwargs": {"region_name": config.region, "verify": config.ca_bundle},
        "config_kwargs": {
            "max_pool_connections": 32,  # twice the requests of a listing; botocore's 10 would make some wait
            "connect_timeout": base.CONNECT_TIMEOUT_S,
            "read_timeout": base.REQUEST_TIMEOUT_S,
            "retries": {
                "mode": "standard",
                "max_attempts": S3_RETRIES if retry_s > 2**S3_RETRIES else min(1, S3_RETRIES),
            },
        },
    }


def web_timeout() -> Any:
    """Timeouts for web servers: a host that does not exist is given up before one that is slow."""
    import aiohttp  # noqa: PLC0415 - fsspec's web servers need it, other schemes may lack it

    return aiohttp.ClientTimeout(total=base.REQUEST_TIMEOUT_S, sock_connect=base.CONNECT_TIMEOUT_S)


_TRANSPORT = frozenset({"HTTPClientError", "ConnectionError", "IncompleteReadError", "ResponseParserError"})
"""The names of botocore's errors for a connection or a broken answer; all its other errors are about configuration."""
_UNTRUSTED = frozenset({"SSLError", "ClientSSLError", "ClientConnectorCertificateError", "SSLCertVerificationError"})
"""The names of errors of botocore, aiohttp and Python for a certificate that is not trusted, or a server without TLS."""
_NO_CREDENTIALS = frozenset(
    {
        "NoCredentialsError",
        "CredentialRetrievalError",
        "TokenRetrievalError",
        "SSOError",
        "RefreshWithMFAUnsupportedError",
    }
)
"""The names of botocore's errors for credentials that it does not find or cannot renew."""


def _translated(uri: str, error: Exception) -> OSError:
    """The error of `da2ray.storage` for an error of a file system."""
    status = _s3_status(error) or getattr(error, "status", None)
    if isinstance(error, RecursionError):  # botocore asks where the bucket is, and is redirected there again
        status = 301
    if isinstance(status, int):
        return base.answer_error(uri, status, _s3_code(error), _message(error))
    text = f"{uri}: {_message(error)}"
    names = {each.__name__ for each in type(error).__mro__}
    if isinstance(error, PermissionError) or _NO_CREDENTIALS & names:
        return PermissionError(text)
    if _UNTRUSTED & names:
        return base.untrusted(uri, _message(error))
    # On S3 an error of Python is that of a program for credentials which prints something else.
    configured = isinstance(error, LookupError) and uri.startswith("s3://")
    if configured or (type(error).__module__.startswith("botocore") and not _TRANSPORT & names):
        return RejectedError(text)
    if isinstance(
        error, TypeError | AttributeError | LookupError | IsADirectoryError | NotADirectoryError | FileExistsError
    ):
        return StoreError(text)
    return UnavailableError(text)


def _s3_status(error: BaseException) -> int | None:
    response = getattr(error.__cause__, "response", None)
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    return status if isinstance(status, int) else None


def _s3_code(error: BaseException) -> str | None:
    """The code in the answer that s3fs turned into this error, such as PreconditionFailed."""
    response = getattr(error.__cause__, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None


def _message(error: BaseException) -> str:
    code = _s3_code(error)
    text = short_message(str(error) or type(error).__name__)
    return f"{code}: {text}" if code else text
