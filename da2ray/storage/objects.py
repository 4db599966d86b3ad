"""S3, Google Cloud Storage and Azure through obstore, at nine times the speed of s3fs and a seventh of its CPU."""

import contextlib
import mmap
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    InvalidPathError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, GCSStore, S3Store

from da2ray import __version__
from da2ray.errors import RejectedError, StoreError, UnavailableError, UserError
from da2ray.storage import base
from da2ray.storage.base import LIST_BATCH, Fetched, Stat, check_key, check_length, listing, short_message, unquoted
from da2ray.storage.pages import Page, list_pages
from da2ray.storage.retry import retry_seconds, settled

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, RetryConfig, S3Config

SCHEMES = frozenset({"s3", "gs", "az", "azure", "adl", "abfs", "abfss"})

MAX_PUT_BYTES = 5 << 30
"""S3's limit for one PUT (https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html)."""
SLOWEST_BYTES_PER_S = 1_500_000
"""The slowest upload by `create_file` that does not time out: one PUT of 5 GiB in an hour."""
PART_BYTES = 64 << 20
LIST_PAGE = 1000
"""The number of keys in one answer to a listing, at most, on S3."""

FROM_A_KEY = frozenset({"s3", "gs"})
"""Schemes whose servers begin a listing behind a key. For Azure, obstore lists from the beginning and drops keys."""

Client = S3Store | GCSStore | AzureStore
T = TypeVar("T")


class ObjectStore:
    """A store behind an obstore client, which each process makes at first use from its own environment."""

    passed_over: Mapping[str, int] = MappingProxyType({})

    def __init__(self, url: str, retry_s: float | None = None) -> None:
        """`url`: canonical, of a scheme in SCHEMES. `retry_s`: see `open_store`."""
        self.url = url
        self._retry_s = retry_seconds() if retry_s is None else retry_s
        self._lock = threading.Lock()
        self._clients: dict[tuple[float, float], Client] = {}

    def __reduce__(self) -> "tuple[type[ObjectStore], tuple[str, float]]":
        return ObjectStore, (self.url, self._retry_s)

    def get(self, key: str) -> bytes:
        return self.fetch(key).data

    def fetch(self, key: str) -> Fetched:
        def whole(client: Client) -> Fetched:
            result = client.get(check_key(key))
            start, stop = result.range
            # One copy, from Rust's memory to Python's, because readers of image bytes need `bytes`.
            data = check_length(f"{self.url}/{key}", bytes(result.bytes()), stop - start)
            return Fetched(data, unquoted(result.meta["e_tag"]))

        return self._call(key, whole)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        if length == 0:
            return b""
        data = self._call(key, lambda client: bytes(client.get_range(check_key(key), start=offset, length=length)))
        return check_length(f"{self.url}/{key}", data, length)

    def stat(self, key: str) -> Stat:
        meta = self._call(key, lambda client: client.head(check_key(key)), base.STAT_TIMEOUT_S)
        return Stat(meta["size"], unquoted(meta["e_tag"]), meta["last_modified"])

    def put(self, key: str, data: bytes) -> None:
        self._call(key, lambda client: client.put(check_key(key), data, use_multipart=False))

    def put_file(self, key: str, path: Path) -> None:
        # In parts, each with its own retries; the object appears when the last call completes the upload.
        self._call(
            key,
            lambda client: client.put(check_key(key), path, chunk_size=PART_BYTES, max_concurrency=4),
            client_retry_s=self._retry_s,
        )

    def create(self, key: str, data: bytes) -> bool:
        return self._create(key, data)

    def create_file(self, key: str, path: Path) -> bool:
        size = path.stat().st_size
        if size > MAX_PUT_BYTES:
            raise StoreError(f"{self.url}/{key}: {size} bytes, but a conditional PUT takes at most {MAX_PUT_BYTES}")
        if size == 0:
            return self.create(key, b"")
        # A mapped file costs page cache, which the kernel can take back, but no memory of this process.
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            # In whole timeouts, because each different timeout needs a client of its own.
            return self._create(key, mapped, 1 + size // (SLOWEST_BYTES_PER_S * base.REQUEST_TIMEOUT_S))

    def list(self, prefix: str = "") -> Iterator[pa.RecordBatch]:
        prefix = prefix.strip("/")
        if self.url.partition("://")[0] in FROM_A_KEY:
            yield from list_pages(partial(self._page, prefix), f"{prefix}/" if prefix else "")
            return
        pages = _Listing(prefix)
        while metas := self._call(prefix, pages.next):
            # obstore's own Arrow batches need another package (arro3-core). As dicts a key costs 1.5 microseconds, while its
            # share of a page of the listing costs 20 or more.
            yield listing(
                [meta["path"] for meta in metas],
                [meta["size"] for meta in metas],
                [unquoted(meta["e_tag"]) for meta in metas],
            )

    def _page(self, prefix: str, after: str | None, token: str | None) -> Page:
        """A page of a listing; its token is its last key."""

        def ask(client: Client) -> "Sequence[ObjectMeta]":
            return next(client.list(prefix or None, offset=token or after, chunk_size=LIST_PAGE), [])

        metas = self._call(prefix, ask)
        keys = [meta["path"] for meta in metas]
        rows = listing(keys, [meta["size"] for meta in metas], [unquoted(meta["e_tag"]) for meta in metas])
        return Page(keys, rows, keys[-1] if len(keys) == LIST_PAGE else None)

    def delete(self, keys: Iterable[str]) -> None:
        checked = [check_key(key) for key in keys]
        for start in range(0, len(checked), 1000):  # S3 takes 1000 keys in a request.
            chunk = checked[start : start + 1000]
            try:
                self._delete(chunk)
            except FileNotFoundError:
                # GCS and Azure stop at the first missing key: go on one by one.
                for key in chunk:
                    with contextlib.suppress(FileNotFoundError):
                        self._delete([key])

    def _delete(self, keys: Sequence[str]) -> None:
        self._call(keys[0], lambda client: client.delete(keys))

    def _create(self, key: str, data: bytes | mmap.mmap, timeouts: int = 1) -> bool:
        def create(client: Client) -> bool:
            try:
                client.put(check_key(key), data, mode="create", use_multipart=False)
            except (AlreadyExistsError, PreconditionError) as error:
                # obstore reports every 409 as "exists". On S3 a 409 means two creates at once, one of which must retry.
                if self.url.startswith("s3://") and _status(error) == 409:
                    raise UnavailableError(f"{self.url}/{key}: {short_message(str(error))}") from None
                return False
            return True

        return self._call(key, create, timeouts * base.REQUEST_TIMEOUT_S)

    def _call(
        self, key: str, call: Callable[[Client], T], timeout_s: float | None = None, client_retry_s: float = 0
    ) -> T:
        """The result of `call` with the client, repeated while the store is unavailable."""

        def attempt() -> T:
            with self._normalised(key, timeout_s or base.REQUEST_TIMEOUT_S, client_retry_s) as client:
                return call(client)

        return settled(attempt, self._retry_s)

    @contextlib.contextmanager
    def _normalised(self, key: str, timeout_s: float, client_retry_s: float) -> Iterator[Client]:
        """The client; its errors are turned into those of `da2ray.storage`.

        Raises:
            UserError: obstore was used before this process was forked, and would hang.
        """
        uri = f"{self.url}/{key}" if key else self.url
        Fork.check(self.url)
        try:
            yield self._client(timeout_s, client_retry_s)
        except InvalidPathError as error:
            raise StoreError(f"{uri}: {short_message(str(error))}; --storage-client fsspec reads such names") from None
        except (BaseError, FileNotFoundError) as error:
            raise _translated(uri, error) from None
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # pyo3_runtime's class cannot be imported
                raise
            raise RejectedError(
                f"{uri}: obstore cannot work with this configuration: {short_message(str(error))}"
            ) from None

    def _client(self, timeout_s: float, client_retry_s: float) -> Client:
        with self._lock:
            if (timeout_s, client_retry_s) not in self._clients:
                Fork.used = True
                try:
                    client = _make_client(self.url, timeout_s, client_retry_s)
                except ValueError as error:
                    raise UserError(
                        f"{self.url}: obstore cannot open such a URL: {short_message(str(error))}"
                    ) from None
                self._clients[timeout_s, client_retry_s] = client
            return self._clients[timeout_s, client_retry_s]


class Fork:
    """What obstore's threads make of forks: they do not live in a forked child, where each call would wait for them for ever.

    A child that never calls obstore, and a process whose parent never called it, are not affected.
    """

    used = False
    """This process has made a client."""
    crossed = False
    """This process was forked from one that had made a client."""

    @classmethod
    def check(cls, url: str) -> None:
        """Check that obstore works in this process.

        Raises:
            UserError: it would hang.
        """
        if cls.crossed:
            raise UserError(
                f"{url}: this process was forked after obstore was used, and obstore would hang in it: start processes with "
                'multiprocessing_context="spawn" or "forkserver" (DataLoader and multiprocessing), or use client="fsspec"'
            )

    @classmethod
    def in_child(cls) -> None:
        """Note a fork; runs in each forked child."""
        cls.crossed = cls.crossed or cls.used


os.register_at_fork(after_in_child=Fork.in_child)


class _Listing:
    """The objects below a folder, in lists of up to LIST_BATCH. After an answer that broke off it goes on from the last key."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix or None
        self._size = LIST_BATCH
        self._last: str | None = None
        self._batches: Iterator[Sequence[ObjectMeta]] | None = None

    def next(self, client: Client) -> "Sequence[ObjectMeta]":
        """The next list of objects, empty at the end."""
        try:
            if self._batches is None:
                self._batches = client.list(self._prefix, offset=self._last, chunk_size=self._size)
            metas: Sequence[ObjectMeta] = next(self._batches, [])
        except BaseError:
            # List one page at a time from now on: if each may break off, ten in a row rarely arrive.
            self._batches, self._size = None, LIST_PAGE
            raise
        if metas:
            self._last = metas[-1]["path"]
        return metas


_STATUS = re.compile(r"status code: (\d{3})")
_TRANSPORT = re.compile(r"(https?://[^/\s?]+)?.*HTTP error: (.*)")
_KIND = re.compile(r"HttpError \{\s*kind: (\w+)")
_TROUBLE = {
    "Connect": "no connection",
    "Timeout": "no answer in time",
    "Request": "the connection was reset",
    "Interrupted": "the answer broke off",
    "Decode": "the answer broke off",
}
"""Messages by object_store's HttpErrorKind, which obstore gives only in the text of its errors."""
_UNTRUSTED = re.compile(
    r"error: (InvalidCertificate|InvalidMessage|NoCertificatesPresented|PeerIncompatible|PeerMisbehaved|UnsupportedNameType)"
    r"(?:\(\s*(\w+))?"
)
"""What rustls says about a server that it does not trust, or that does not speak TLS (rustls::Error)."""


def _status(error: Exception) -> int | None:
    """The HTTP status of the answer; None if there was no whole answer."""
    text = str(error)
    if found := _STATUS.search(text):
        return int(found[1])
    return 301 if "redirect without LOCATION" in text else None


def _translated(uri: str, error: BaseError | FileNotFoundError) -> OSError:
    """The error of `da2ray.storage` for an error of obstore. Its text decides, because obstore has no class of error for the
    answer to a listing, nor for a lost answer.
    """
    text, status = str(error), _status(error)
    if status is not None:
        return base.answer_error(uri, status, base.code_of(text), short_message(text))
    return _without_answer(uri, error, text)


def _without_answer(uri: str, error: BaseError | FileNotFoundError, text: str) -> OSError:
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return PermissionError(f"{uri}: {short_message(text)}")
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"{uri}: {short_message(text)}")
    if base.NO_CREDENTIALS in text:
        return PermissionError(f"{uri}: {short_message(text[text.index(base.NO_CREDENTIALS) :])}")
    if untrusted := _UNTRUSTED.search(text):
        what = "certificate not trusted" if untrusted[1] == "InvalidCertificate" else "no connection by TLS"
        return base.untrusted(uri, f"{what} ({untrusted[2] or untrusted[1]})")
    transport = _TRANSPORT.search(text.partition("\n")[0])
    if transport and isinstance(error, GenericError):
        kind = _KIND.search(text)
        trouble = _TROUBLE.get(kind[1] if kind else "", transport[2])
        return UnavailableError(f"{uri}: {trouble} ({transport[1]})" if transport[1] else f"{uri}: {trouble}")
    return StoreError(f"{uri}: {short_message(text)}")


def _make_client(url: str, timeout_s: float, retry_s: float) -> Client:
    """A client. It retries by itself for `retry_s` seconds; 0 leaves retries to `settled`, which knows what waiting can mend."""
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    prefix = path or None
    retry: RetryConfig = {
        "max_retries": 1000 if retry_s else 0,  # The limit is the time.
        "retry_timeout": timedelta(seconds=retry_s),
        "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=15), "base": 2},
    }
    options: ClientConfig = {
        "connect_timeout": timedelta(seconds=base.CONNECT_TIMEOUT_S),
        # No separate read timeout, because reqwest counts the time of an upload against it too.
        "timeout": timedelta(seconds=timeout_s),
        "user_agent": f"da2ray/{__version__}",
    }
    if scheme == "s3":
        return _s3_client(host, prefix, options, retry)
    if scheme == "gs":
        return GCSStore(host, prefix=prefix, client_options=options, retry_config=retry)
    container, _, account = host.partition("@")
    if account:  # abfss://container@account.dfs.core.windows.net/prefix
        account = account.partition(".")[0]
        return AzureStore(container, prefix=prefix, account_name=account, client_options=options, retry_config=retry)
    return AzureStore(container, prefix=prefix, client_options=options, retry_config=retry)


def _s3_client(bucket: str, prefix: str | None, options: "ClientConfig", retry: "RetryConfig") -> S3Store:
    """An S3 client whose whole configuration `aws_config` decides, so that obstore takes none from the environment itself."""
    from da2ray.storage.aws import aws_config  # noqa: PLC0415 - botocore: 0.2 s, which other stores do without

    config = aws_config()
    try:
        credentials = None if config.anonymous else config.credentials()
    except PermissionError as error:
        raise PermissionError(f"s3://{bucket}: {error}") from None
    bucket_url = config.bucket_url(bucket)
    options["allow_http"] = config.url.startswith("http://")
    if (certificates := config.root_certificates()) is not None:
        options["root_certificate"] = certificates
    chosen: S3Config = {
        "aws_endpoint_url_s3": bucket_url or config.url,
        "region": config.region,
        "skip_signature": config.anonymous,
    }
    if bucket_url:
        chosen["virtual_hosted_style_request"] = True
    return S3Store(
        bucket,
        prefix=prefix,
        config=chosen,
        client_options=options,
        retry_config=retry,
        credential_provider=credentials,
    )
