"""S3, Google Cloud Storage and Azure through obstore, at nine times the speed of s3fs and a seventh of its CPU."""

import contextlib
import mmap
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
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

from da2ray.errors import StoreError, UnavailableError
from da2ray.storage import base
from da2ray.storage.base import LIST_BATCH, Stat, check_key, check_length, listing, short_message, unquoted
from da2ray.storage.retry import retry_seconds, settled

if TYPE_CHECKING:
    import botocore.credentials  # type: ignore[import-untyped]
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, RetryConfig, S3Credential

SCHEMES = frozenset({"s3", "gs", "az", "azure", "adl", "abfs", "abfss"})

MAX_PUT_BYTES = 5 << 30
"""S3's limit for one PUT (https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html)."""
SLOWEST_BYTES_PER_S = 1_500_000
"""For the one PUT of `create_file`: 5 GiB in an hour."""
PART_BYTES = 64 << 20
LIST_PAGE = 1000
"""The number of keys in one answer to a listing, at most, on S3."""
CREDENTIAL_LIFE = timedelta(minutes=15)
"""How long a credential is used before botocore is asked again, which renews those of a role or an instance in time."""

Client = S3Store | GCSStore | AzureStore
T = TypeVar("T")


class ObjectStore:
    """A store behind an obstore client, which each process makes at first use from its own environment."""

    def __init__(self, url: str, retry_s: float | None = None) -> None:
        """`url`: canonical, of a scheme in SCHEMES. `retry_s`: see `open_store`."""
        self.url = url
        self._retry_s = retry_seconds() if retry_s is None else retry_s
        self._lock = threading.Lock()
        self._clients: dict[float, Client] = {}

    def __reduce__(self) -> "tuple[type[ObjectStore], tuple[str, float]]":
        return ObjectStore, (self.url, self._retry_s)

    def get(self, key: str) -> bytes:
        def whole(client: Client) -> bytes:
            result = client.get(check_key(key))
            start, stop = result.range
            # One copy, from Rust's memory to Python's, because readers of image bytes need `bytes`.
            return check_length(f"{self.url}/{key}", bytes(result.bytes()), stop - start)

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
        self._call(key, lambda client: client.put(check_key(key), path, chunk_size=PART_BYTES, max_concurrency=4))

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
        pages = _Listing(prefix)
        while metas := self._call(prefix, pages.next):
            # obstore's own Arrow batches need another package (arro3-core). As dicts a key costs 1.5 microseconds, while its
            # share of a page of the listing costs 20 or more.
            yield listing(
                [meta["path"] for meta in metas],
                [meta["size"] for meta in metas],
                [unquoted(meta["e_tag"]) for meta in metas],
            )

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

    def _call(self, key: str, call: Callable[[Client], T], timeout_s: float | None = None) -> T:
        """The result of `call` with the client, repeated while the store is unavailable."""

        def attempt() -> T:
            with self._normalised(key, timeout_s or base.REQUEST_TIMEOUT_S) as client:
                return call(client)

        return settled(attempt, self._retry_s)

    @contextlib.contextmanager
    def _normalised(self, key: str, timeout_s: float) -> Iterator[Client]:
        """The client; its errors are turned into those of `da2ray.storage`."""
        uri = f"{self.url}/{key}" if key else self.url
        try:
            yield self._client(timeout_s)
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise PermissionError(f"{uri}: {short_message(str(error))}") from None
        except FileNotFoundError as error:
            raise _missing(uri, str(error)) from None
        except InvalidPathError as error:
            raise StoreError(f"{uri}: {short_message(str(error))}; --storage-client fsspec reads such names") from None
        except BaseError as error:
            raise _other(uri, error) from None

    def _client(self, timeout_s: float) -> Client:
        with self._lock:
            if timeout_s not in self._clients:
                self._clients[timeout_s] = _make_client(self.url, timeout_s, self._retry_s)
            return self._clients[timeout_s]


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


def _status(error: BaseError) -> int | None:
    """The HTTP status of the answer; None if there was no whole answer."""
    found = _STATUS.search(str(error))
    return int(found[1]) if found else None


def _missing(uri: str, text: str) -> OSError:
    # An upload in parts took effect but its answer was lost, so its second completion finds no upload.
    kind = UnavailableError if "NoSuchUpload" in text else FileNotFoundError
    return kind(f"{uri}: {short_message(text)}")


def _other(uri: str, error: BaseError) -> OSError:
    """The error of `da2ray.storage` for an error of obstore, told from its text, because obstore has no class of error for the
    answer to a listing, nor for a lost answer.
    """
    text, status = str(error), _status(error)
    message = f"{uri}: {short_message(text)}"
    if status in {401, 403}:
        return PermissionError(message)
    if status == 404:
        return FileNotFoundError(message)
    if status == 301:
        return StoreError(f"{message}; the bucket is in another region: set AWS_REGION")
    if status in {408, 409, 429} or (status is not None and status >= 500):
        return UnavailableError(message)
    transport = _TRANSPORT.search(text.partition("\n")[0])
    if status is None and transport and isinstance(error, GenericError):
        kind = _KIND.search(text)
        trouble = _TROUBLE.get(kind[1] if kind else "", transport[2])
        return UnavailableError(f"{uri}: {trouble} ({transport[1]})" if transport[1] else f"{uri}: {trouble}")
    return StoreError(message)


def _make_client(url: str, timeout_s: float, retry_s: float) -> Client:
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    prefix = path or None
    retry: RetryConfig = {
        "max_retries": 1000,  # The limit is the time.
        "retry_timeout": timedelta(seconds=retry_s),
        "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=15), "base": 2},
    }
    options: ClientConfig = {
        "connect_timeout": timedelta(seconds=base.CONNECT_TIMEOUT_S),
        # No separate read timeout, because reqwest counts the time of an upload against it too.
        "timeout": timedelta(seconds=timeout_s),
        "user_agent": "da2ray",
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
    """An S3 client. obstore itself reads the AWS_* variables; botocore supplies what a profile says."""
    provider = region = None
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if "AWS_ACCESS_KEY_ID" not in os.environ and not _is_true(os.environ.get("AWS_SKIP_SIGNATURE")):
        import botocore.session  # type: ignore[import-untyped]  # noqa: PLC0415

        session = botocore.session.get_session()
        credentials = session.get_credentials()
        if credentials is None:
            raise PermissionError(
                f"s3://{bucket}: no credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, "
                "or AWS_SKIP_SIGNATURE=true for a public bucket"
            )
        provider = _BotocoreCredentials(credentials)
        region = session.get_config_variable("region")
        endpoint = endpoint or session.get_scoped_config().get("endpoint_url")
    if endpoint:
        options["allow_http"] = endpoint.startswith("http://")
    config: dict[str, str] = {"endpoint": endpoint} if endpoint else {}
    if region:
        config["region"] = region
    return S3Store(
        bucket,
        prefix=prefix,
        client_options=options,
        retry_config=retry,
        credential_provider=provider,
        **config,  # type: ignore[arg-type]
    )


class _BotocoreCredentials:
    """obstore's credential provider over botocore's chain: profiles, SSO, roles, containers, instances.

    obstore ships one, but it imports boto3, which s3fs does not bring along.
    """

    def __init__(self, credentials: "botocore.credentials.Credentials") -> None:
        self._credentials = credentials

    def __call__(self) -> "S3Credential":
        frozen = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + CREDENTIAL_LIFE,
        }


def _is_true(value: str | None) -> bool:
    return value is not None and value.lower() in {"1", "true", "yes", "on"}
