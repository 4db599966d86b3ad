"""The interface of a store, and what its implementations share."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import pyarrow as pa

from da2ray.errors import NoBucketError, RejectedError, StoreError, UnavailableError
from da2ray.storage.redaction import printable

LIST_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("etag", pa.string()),
    ]
)
"""Rows of `Store.list`: the key relative to the store's URL, the size in bytes, and the store's etag without quotes."""

LIST_BATCH = 10_000
"""Keys in a batch at most: enough that Arrow's cost of a batch vanishes, and about 1 MB of Python objects while it is built."""

CONNECT_TIMEOUT_S = 10
REQUEST_TIMEOUT_S = 120
"""The time for one request with its body. A shard of 100 MB fits at 1 MB/s. After it a server that accepts but never answers is
given up."""
STAT_TIMEOUT_S = 30
"""The time for one request whose answer has no body."""


@dataclass(frozen=True, slots=True)
class Stat:
    """The size of an object in bytes; its etag, which changes when the object does; when it was written, in UTC by the store's
    clock. The etag and the time are None if the store has none.
    """

    size: int
    etag: str | None
    modified: datetime | None = None


class Fetched(NamedTuple):
    """A whole object: its bytes, and the etag of just these bytes; None if the store's answer has none."""

    data: bytes
    etag: str | None


@runtime_checkable
class Store(Protocol):
    """Objects under one URL. Keys are relative to it, with `/` between parts.

    Many threads may use a store. A store can be pickled: it takes its URL along but never a credential, because each process
    finds its own.
    """

    @property
    def url(self) -> str:
        """The canonical URL, without a slash at the end unless it is `/`."""
        ...

    @property
    def passed_over(self) -> Mapping[str, int]:
        """What the newest listing passed over, by the names in `da2ray.storage.walk`. Object stores pass over nothing."""
        ...

    def get(self, key: str) -> bytes:
        """The whole object. A body shorter than its declared length raises `StoreError`."""
        ...

    def fetch(self, key: str) -> Fetched:
        """The whole object as `get` gives it, with its etag, in one request."""
        ...

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`. An object that ends before that raises `StoreError`."""
        ...

    def stat(self, key: str) -> Stat: ...

    def put(self, key: str, data: bytes) -> None:
        """Write or replace an object atomically: no reader sees half of it."""
        ...

    def put_file(self, key: str, path: Path) -> None:
        """`put` for a local file that may be larger than memory."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Write an object if there is none; return False if there is one. Of any number of callers exactly one writes.

        A client whose first try succeeded but whose answer was lost sees its own object on the retry and gets False (15 of 30
        lost answers). To tell, put an attempt id into `data` and read it back.
        """
        ...

    def create_file(self, key: str, path: Path) -> bool:
        """`create` for a local file that may be larger than memory (at most 5 GiB on S3, the limit of one PUT)."""
        ...

    def list(self, prefix: str = "") -> Iterator[pa.RecordBatch]:
        """All objects below the folder `prefix`, as a stream of batches of schema LIST_SCHEMA.

        They come in the order of the keys' UTF-8 bytes, as on S3. A folder that does not exist holds nothing; a bucket that does
        not exist raises `FileNotFoundError`.
        """
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; a key that does not exist is fine."""
        ...


def check_key(key: str) -> str:
    """The key itself, if it can only name one object below the store's URL.

    Raises:
        ValueError: the key is empty or absolute, or has an empty, `.` or `..` part, or a NUL. Line breaks, control characters and
            backslashes are allowed: on POSIX and S3 they are part of names like any other, and such keys must be readable.
    """
    if any(part in {"", ".", ".."} for part in key.split("/")) or "\0" in key:
        raise ValueError(f"not a key: {printable(key)} (it must be relative, without empty, '.' or '..' parts)")
    return key


def check_length(uri: str, data: bytes, declared: int) -> bytes:
    """The data itself, if it has the declared length in bytes.

    Raises:
        StoreError: it has another length.
    """
    if len(data) != declared:
        raise StoreError(f"{uri}: got {len(data)} of {declared} bytes")
    return data


def listing(keys: list[str], sizes: list[int], etags: list[str | None]) -> pa.RecordBatch:
    return pa.record_batch(
        [pa.array(keys, pa.string()), pa.array(sizes, pa.int64()), pa.array(etags, pa.string())], schema=LIST_SCHEMA
    )


def unquoted(etag: str | None) -> str | None:
    """The etag without the quotes of HTTP, which s3fs and obstore both leave on."""
    return etag.replace('"', "") if etag else None


REFUSALS = frozenset(
    {
        *("AccessDenied", "AccountProblem", "AllAccessDisabled", "AuthFailure", "AuthenticationFailed"),
        *("CredentialsNotSupported", "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId"),
        *("InvalidAuthenticationInfo", "InvalidClientTokenId", "InvalidSecurity", "InvalidToken"),
        *("MissingAuthenticationToken", "MissingSecurityElement", "MissingSecurityHeader", "NotSignedUp"),
        *("RequestExpired", "RequestTimeTooSkewed", "SignatureDoesNotMatch", "TokenRefreshRequired"),
        *("UnauthorizedAccess", "UnrecognizedClientException"),
    }
)
"""Codes by which S3 and Azure refuse access. Some come with status 400, among them those of credentials that expired
(https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html)."""
PASSING = frozenset({"IncompleteBody", "PriorRequestNotComplete", "RequestTimeout", "RequestTimeoutException"})
"""Codes of S3 with status 400 that a second request does not meet."""
ELSEWHERE = frozenset(
    {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "Redirect"}
)
"""Codes of S3 for a bucket in another region."""

NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound"})
"""Codes of S3 and Azure for a bucket that does not exist."""


def answer_error(uri: str, status: int, code: str | None, message: str) -> OSError:
    """The error of `da2ray.storage` for an HTTP answer that is not a success.

    Args:
        uri: what was asked for.
        status: of the answer.
        code: the code in its body, such as "NoSuchKey"; None if it has none.
        message: the answer in one line, for the error's message.
    """
    text = f"{uri}: {message}"
    # An upload in parts took effect but its answer was lost, so its second completion finds no upload.
    if status in {408, 409, 425, 429} or code in PASSING or code == "NoSuchUpload":
        return UnavailableError(text)
    if status in {301, 302, 307, 308} or code in ELSEWHERE:
        return RejectedError(f"{text}; the bucket may be in another region: set AWS_REGION")
    if status in {401, 403} or code in REFUSALS:
        return PermissionError(text)
    if status == 404:
        return NoBucketError(text) if code in NO_BUCKET else FileNotFoundError(text)
    if status >= 500 and status not in LASTING:
        return UnavailableError(text)
    return RejectedError(text)


LASTING = frozenset({501, 505, 506, 507, 508, 510, 511})
"""Statuses of the 5xx kind that say what the server cannot do, or that its disk is full."""


NO_CREDENTIALS = "credentials cannot be renewed: "
"""The beginning of the message of a provider of credentials that fails. The text alone passes through obstore."""


def untrusted(uri: str, message: str) -> RejectedError:
    """The error for a server whose certificate the client rejects."""
    return RejectedError(
        f"{uri}: {message}; give the certificates to trust by AWS_CA_BUNDLE, or check that the endpoint speaks TLS"
    )


_CODE = re.compile(r"<Code>(.*?)</Code>", re.DOTALL)
_MESSAGE = re.compile(r"<Message>(.*?)</Message>", re.DOTALL)
_STATUS = re.compile(r"status code: (\d{3} [A-Za-z -]+)")


def code_of(text: str) -> str | None:
    """The code in the body of an S3 error, such as "NoSuchKey"."""
    found = _CODE.search(text)
    return found[1].strip() if found else None


def short_message(text: str) -> str:
    """A server's answer in one printable line: the code and message of an S3 error, else the first line.

    URLs lose their credentials. The rest of an S3 error body is left out too: for a wrong signature it holds the key id and the
    string that was signed.
    """
    code = _CODE.search(text)
    if code:
        message = _MESSAGE.search(text)
        return printable(f"{code[1]}: {message[1]}" if message else code[1], 300)
    status = _STATUS.search(text)  # An answer to a HEAD has no body.
    if status:
        return status[1].strip()
    lines = text.strip().splitlines()
    return printable(lines[0], 300) if lines else "no message"
