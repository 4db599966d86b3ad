"""The protocol of a source, and the reading of samples that sources of files share."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from da2ray.errors import OutageError, Reason, SampleError, UnavailableError, UserError
from da2ray.sources.allowed import Allowed, must_be_regular
from da2ray.sources.outage import PROBE_RETRY_S, Outages
from da2ray.storage import Client, Store, open_store, printable, split_uri

MEMBERS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size", pa.int64()),
        pa.field("etag", pa.string()),
    ]
)
"""One row a sample, as it was listed: key within the source, absolute URI, size in bytes, etag (null where not
listed)."""

FOCAL = pa.field("focal", pa.float32())
"""A column more, of a source that knows focal lengths: in pixels of the image as displayed at full size, null where it does
not know."""

MOST_BYTES = 2 << 30
"""Of an image's file: above the 1.6 GB that the 200 megapixels of `--max-pixels` take uncompressed at 8 bytes each. A larger one
takes a machine's memory, and the run with it, each time it is read."""


@dataclass(frozen=True, slots=True)
class Member:
    """A row of MEMBERS, maybe with FOCAL. `size` (bytes) and `etag` are as listed: the object may have changed since."""

    key: str
    uri: str
    size: int | None
    etag: str | None
    focal: float | None = None


class Source(Protocol):
    """Can be pickled; holds no connection and no credential."""

    @property
    def kind(self) -> str:
        """The word for it in a plan: "prefix" or "manifest"."""
        ...

    @property
    def url(self) -> str:
        """Canonical."""
        ...

    @property
    def root(self) -> str:
        """The URL that most samples lie under: a plan leaves out the URI of a sample that is root + key."""
        ...

    def describe(self) -> dict[str, str]:
        """What identifies the source, for the plan's hash: the same for the same command tomorrow."""
        ...

    def samples(self, limit: int | None = None) -> Iterator[pa.RecordBatch]:
        """The samples, or the first `limit` of them, in batches of schema MEMBERS, all of them with FOCAL or none; in the
        same order every time.

        Raises:
            UserError: the source cannot be read, or two samples have one key.
        """
        ...

    def fetch(self, members: Iterable[Member], concurrency: int) -> Iterator[tuple[Member, bytes | SampleError]]:
        """Each member in order with its bytes, or with why there are none."""
        ...


def members_of(batch: pa.RecordBatch) -> list[Member]:
    """Rows of schema MEMBERS, maybe with FOCAL, as Python objects: for a shard, never for a whole source."""
    columns = (column.to_pylist() for column in batch.columns)
    return [Member(*row) for row in zip(*columns, strict=True)]


def fetch(
    members: Iterable[Member], concurrency: int, client: Client = "auto", allowed: Allowed | None = None
) -> Iterator[tuple[Member, bytes | SampleError]]:
    """Read members, `concurrency` GETs at a time, and give them in order.

    At most `concurrency` bodies are read ahead of the one that is given, so the memory is bounded by the largest ones.
    What fails for one member is that member's `SampleError`; the others go on. A store that is down fails for all.

    Args:
        members: taken as the results are; may be endless.
        concurrency: GETs in flight; 16 reach 2,400 a second of 100 kB from one process through obstore, 64 little more.
        client: as of `open_store`.
        allowed: what may be read, where others wrote the URIs. The rest is `forbidden`, and no request is made.

    Raises:
        OutageError: a store does not answer any more, nor about any other object; web servers never raise it.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}; it must be at least 1")
    stores = _Stores(client, allowed)
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="da2ray-fetch")
    ahead: deque[tuple[Member, Future[bytes | SampleError]]] = deque()
    try:
        for member in members:
            ahead.append((member, pool.submit(_read, stores, member)))
            if len(ahead) == concurrency:
                first, future = ahead.popleft()
                yield first, future.result()
        while ahead:
            first, future = ahead.popleft()
            yield first, future.result()
    finally:
        # A caller that stops early does not wait for what is in flight.
        pool.shutdown(wait=False, cancel_futures=True)


class _Stores:
    """A store for each root that members lie in: few buckets, millions of members."""

    def __init__(self, client: Client, allowed: Allowed | None) -> None:
        self._client = client
        self._allowed = allowed
        self._open: dict[tuple[str, float | None], Store] = {}
        self._outages = Outages()

    def get(self, member: Member) -> bytes:
        if self._allowed:
            self._allowed.check(member.uri)
        root, key = split_uri(member.uri)
        if root == "/":
            must_be_regular(f"/{key}")
        try:
            store, size = self._at(root), member.size
            if size is None and root == "/":  # elsewhere it would be a request more for each
                size = store.stat(key).size
            if size is not None and size > MOST_BYTES:
                raise SampleError(
                    Reason.OUT_OF_MEMORY, f"{size} bytes: files of more than {MOST_BYTES >> 30} GiB are not read"
                )
            return store.get(key)
        except UnavailableError as error:
            return self._outages.get_again(error, root, key, lambda: self._at(root, PROBE_RETRY_S))

    def _at(self, root: str, retry_s: float | None = None) -> Store:
        if (root, retry_s) not in self._open:
            # Two threads may both open one; the store that loses is dropped unused.
            self._open.setdefault((root, retry_s), self._opened(root, retry_s))
        return self._open[root, retry_s]

    def _opened(self, root: str, retry_s: float | None) -> Store:
        if self._allowed:
            return self._allowed.open(root, self._client, retry_s)
        return open_store(root, self._client, retry_s)


def _read(stores: _Stores, member: Member) -> bytes | SampleError:
    try:
        return stores.get(member)
    except OutageError:
        raise
    except SampleError as error:
        return error
    except FileNotFoundError as error:
        return SampleError(Reason.NOT_FOUND, printable(error))
    except PermissionError as error:
        return SampleError(Reason.FORBIDDEN, printable(error))
    except MemoryError:
        return SampleError(Reason.OUT_OF_MEMORY, "no memory for its bytes")
    except (OSError, ValueError, UserError) as error:
        # ValueError and UserError: a URI in a manifest that cannot be one, or of a scheme that nothing serves.
        return SampleError(Reason.UNREADABLE, printable(error))
