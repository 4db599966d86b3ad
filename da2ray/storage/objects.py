"""S3, Google Cloud Storage and Azure through obstore: nine times s3fs at a seventh of its CPU."""

import contextlib
import mmap
import os
import re
import threading
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, GCSStore, S3Store

from da2ray.storage import base
from da2ray.storage.base import LIST_BATCH, Stat, StoreError, check_key, check_length, listing, short_message, unquoted

if TYPE_CHECKING:
    import botocore.credentials  # type: ignore[import-untyped]
    from obstore.store import ClientConfig, RetryConfig, S3Credential

SCHEMES = frozenset({"s3", "gs", "az", "azure", "adl", "abfs", "abfss"})

MAX_PUT_BYTES = 5 << 30
"""S3's limit for one PUT (https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html)."""
FILE_TIMEOUT_S = 3600
"""For the one PUT of `create_file`: 5 GiB at 1.5 MB/s."""
CREDENTIAL_LIFE = timedelta(minutes=15)
"""After it botocore is asked again; it renews what it got from a role or an instance in time by itself."""

Client = S3Store | GCSStore | AzureStore


class ObjectStore:
    """The client is made at first use in each process, from that process's environment."""

    def __init__(self, url: str) -> None:
        """`url`: canonical, of a scheme in SCHEMES."""
        self.url = url
        self._lock = threading.Lock()
        self._clients: dict[int, Client] = {}

    def __reduce__(self) -> "tuple[type[ObjectStore], tuple[str]]":
        return ObjectStore, (self.url,)

    def get(self, key: str) -> bytes:
        with self._normalised(key) as client:
            result = client.get(check_key(key))
            start, stop = result.range
            # One copy, from Rust's memory to Python's: readers of image bytes want `bytes`.
            return check_length(f"{self.url}/{key}", bytes(result.bytes()), stop - start)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        if length == 0:
            return b""
        with self._normalised(key) as client:
            data = bytes(client.get_range(check_key(key), start=offset, length=length))
        return check_length(f"{self.url}/{key}", data, length)

    def stat(self, key: str) -> Stat:
        with self._normalised(key) as client:
            meta = client.head(check_key(key))
        return Stat(meta["size"], unquoted(meta["e_tag"]))

    def put(self, key: str, data: bytes) -> None:
        with self._normalised(key) as client:
            client.put(check_key(key), data, use_multipart=False)

    def put_file(self, key: str, path: Path) -> None:
        # In parts, each with its own retries; the object appears when the last call completes the upload.
        with self._normalised(key) as client:
            client.put(check_key(key), path, chunk_size=64 << 20, max_concurrency=4)

    def create(self, key: str, data: bytes) -> bool:
        return self._create(key, data, base.REQUEST_TIMEOUT_S)

    def create_file(self, key: str, path: Path) -> bool:
        size = path.stat().st_size
        if size > MAX_PUT_BYTES:
            raise StoreError(f"{self.url}/{key}: {size} bytes, and a conditional PUT takes at most {MAX_PUT_BYTES}")
        if size == 0:
            return self.create(key, b"")
        # A mapped file costs page cache, which the kernel takes back, and no memory of ours.
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return self._create(key, mapped, FILE_TIMEOUT_S)

    def list(self, prefix: str = "") -> Iterator[pa.RecordBatch]:
        prefix = prefix.strip("/")
        with self._normalised(prefix) as client:
            # obstore's own Arrow batches need another package (arro3-core); as dicts a key costs 1.5 microseconds, and
            # its share of a page of the listing some 20 or more.
            for metas in client.list(prefix or None, chunk_size=LIST_BATCH):
                yield listing(
                    [meta["path"] for meta in metas],
                    [meta["size"] for meta in metas],
                    [unquoted(meta["e_tag"]) for meta in metas],
                )

    def delete(self, keys: Iterable[str]) -> None:
        checked = [check_key(key) for key in keys]
        for start in range(0, len(checked), 1000):  # S3 takes 1000 a request.
            chunk = checked[start : start + 1000]
            try:
                with self._normalised(chunk[0]) as client:
                    client.delete(chunk)
            except FileNotFoundError:
                # GCS and Azure stop at the first missing key: go on one by one.
                for key in chunk:
                    with contextlib.suppress(FileNotFoundError), self._normalised(key) as client:
                        client.delete(key)

    def _create(self, key: str, data: bytes | mmap.mmap, timeout_s: int) -> bool:
        with self._normalised(key, timeout_s) as client:
            try:
                client.put(check_key(key), data, mode="create", use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return False
            return True

    @contextlib.contextmanager
    def _normalised(self, key: str, timeout_s: int | None = None) -> Iterator[Client]:
        """The client, with its errors turned into those of `da2ray.storage`."""
        uri = f"{self.url}/{key}" if key else self.url
        try:
            yield self._client(timeout_s or base.REQUEST_TIMEOUT_S)
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise PermissionError(f"{uri}: {short_message(str(error))}") from None
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{uri}: {short_message(str(error))}") from None
        except InvalidPathError as error:
            raise StoreError(f"{uri}: {short_message(str(error))}; --client fsspec reads such names") from None
        except BaseError as error:
            raise _from_status(uri, str(error)) from None

    def _client(self, timeout_s: int) -> Client:
        with self._lock:
            if timeout_s not in self._clients:
                self._clients[timeout_s] = _make_client(self.url, timeout_s)
            return self._clients[timeout_s]


_STATUS = re.compile(r"status code: (\d{3})")


def _from_status(uri: str, text: str) -> OSError:
    """From the status in the text, as obstore has no class of error of its own for an answer to a listing."""
    status = _STATUS.search(text)
    message = f"{uri}: {short_message(text)}"
    if status and status[1] in {"401", "403"}:
        return PermissionError(message)
    if status and status[1] == "404":
        return FileNotFoundError(message)
    if status and status[1] == "301":
        return StoreError(f"{message}; the bucket is in another region: set AWS_REGION")
    return StoreError(message)


def _make_client(url: str, timeout_s: int) -> Client:
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    prefix = path or None
    retry: RetryConfig = {
        "max_retries": base.MAX_RETRIES,
        "retry_timeout": timedelta(seconds=base.RETRY_TIMEOUT_S),
        "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=15), "base": 2},
    }
    options: ClientConfig = {
        "connect_timeout": timedelta(seconds=base.CONNECT_TIMEOUT_S),
        # No read timeout of its own: reqwest counts the time of an upload against it too.
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
    """The AWS_* variables are read by obstore itself; what a profile says comes from botocore."""
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
