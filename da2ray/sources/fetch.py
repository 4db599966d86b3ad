"""Reading members by their URIs: what sources of loose files share."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from typing import Final, TypeVar

from da2ray.errors import NothingReadError, OutageError, Reason, SampleError, UserError
from da2ray.parallel import look_ahead
from da2ray.sources.allowed import Allowed, must_be_regular
from da2ray.sources.base import Member, Sample
from da2ray.sources.outage import EVIDENCE, Failure, Judge
from da2ray.storage import Client, Fetched, Store, open_store, printable, split_uri

Body = TypeVar("Body")

MOST_BYTES: Final = 2 << 30
"""Largest file that is read: above the 1.6 GB that the 200 megapixels of `--max-pixels` take uncompressed at 8 bytes each. A
larger one would take a machine's memory, and the run with it, each time it is read."""


def fetch(
    members: Iterable[Member], concurrency: int, client: Client = "auto", allowed: Allowed | None = None
) -> Iterator[Sample]:
    """Read members, `concurrency` GETs at a time, and yield them in order.

    At most `concurrency` bodies are held, the yielded one among them, so the largest bodies bound the memory. If one member
    fails, its body is a `SampleError` and the others go on. If a store is down or refuses access that it gave before, the
    reading ends. Until a first object is read, failures wait for it with the bodies of other roots: up to `concurrency` more. A
    caller that stops early does not wait for GETs in flight.

    Args:
        members: taken as the results are; may be endless.
        concurrency: GETs in flight; 16 reach 2,400 a second of 100 kB from one process through obstore, 64 little more.
        client: see `open_store`.
        allowed: what may be read, if others wrote the URIs. Any other URI is `forbidden`, and no request is made.

    Raises:
        UserError: a store cannot be used with this process's configuration.
        OutageError: a store is down, or refuses access that it gave before. Web servers never raise it.
        NothingReadError: a store failed for all members so far, and this process has read nothing of it before.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1; got {concurrency}")
    stores = Stores(client, allowed)
    read = look_ahead(
        lambda member: (member, _read(stores, member)),
        members,
        concurrency,
        "da2ray-fetch",
        ahead=concurrency - 1,
        wait=False,
    )
    return _settled(stores, read, concurrency)


def _settled(
    stores: "Stores", read: Generator[tuple[Member, Fetched | SampleError | Failure[Fetched]]], most: int
) -> Iterator[Sample]:
    """The samples in order. A failure that nothing could explain when it happened waits until an object of its store is read.

    Raises:
        NothingReadError: no object was read when `most` samples waited, or when the samples ended.
    """
    waiting: deque[tuple[Member, Fetched | SampleError | Failure[Fetched]]] = deque()
    with contextlib.closing(read):
        for each in read:
            waiting.append(each)
            try:
                while waiting:
                    yield _sample(stores, *waiting[0])
                    waiting.popleft()
            except NothingReadError:
                if len(waiting) >= most:
                    raise
        for each in waiting:
            yield _sample(stores, *each)


def _sample(stores: "Stores", member: Member, read: Fetched | SampleError | Failure[Fetched]) -> Sample:
    settled = outcome(partial(stores.judge.read_again, read)) if isinstance(read, Failure) else read
    return Sample(member, settled) if isinstance(settled, SampleError) else Sample(member, *settled)


class Stores:
    """A store for each root that members lie under: few buckets, millions of members. Threads may share it."""

    def __init__(self, client: Client, allowed: Allowed | None) -> None:
        self._client = client
        self._allowed = allowed
        self._open: dict[tuple[str, float | None], Store] = {}
        self.judge = Judge(self._at)

    def read_part(self, root: str, key: str, read: Callable[[Store], Body]) -> Body:
        """What `read` reads of a part of an object: its size, a range.

        Raises:
            UserError, OutageError, NothingReadError: as for `fetch`.
            OSError: the store works, but does not give this object.
        """
        try:
            body = read(self._at(root))
        except OSError as error:
            if not self.judge.concerns(root, error):
                raise
            return self.judge.read_again(Failure(root, key, read, True, error, time.monotonic()))
        EVIDENCE.add(root, key, in_part=True)
        return body

    def fetch(self, member: Member) -> Fetched | Failure[Fetched]:
        """A member's bytes with their etag, or a failure that cannot be judged yet."""
        try:
            if self._allowed:
                self._allowed.check(member.uri)
            root, key = split_uri(member.uri)
            store = self._at(root)
        except (ValueError, UserError) as error:  # not a URI, or of a scheme that nothing serves
            raise SampleError(Reason.UNREADABLE, printable(error)) from error
        if root == "/":
            must_be_regular(f"/{key}")
        try:
            size = member.size
            if size is None and root == "/":  # elsewhere it would cost one more request for each member
                size = store.stat(key).size
            if size is not None and size > MOST_BYTES:
                raise SampleError(
                    Reason.OUT_OF_MEMORY, f"{size} bytes: files of more than {MOST_BYTES >> 30} GiB are not read"
                )
            fetched = store.fetch(key)
        except OSError as error:
            if not self.judge.concerns(root, error):
                raise
            failure = Failure(root, key, lambda store: store.fetch(key), False, error, time.monotonic())
            try:
                return self.judge.read_again(failure)
            except NothingReadError:
                return failure
        EVIDENCE.add(root, key)
        return fetched

    def _at(self, root: str, retry_s: float | None = None) -> Store:
        if (root, retry_s) not in self._open:
            # Two threads may both open one; the store that loses is dropped unused.
            self._open.setdefault((root, retry_s), self._opened(root, retry_s))
        return self._open[root, retry_s]

    def _opened(self, root: str, retry_s: float | None) -> Store:
        if self._allowed:
            return self._allowed.open(root, self._client, retry_s)
        return open_store(root, self._client, retry_s)


def _read(stores: Stores, member: Member) -> Fetched | SampleError | Failure[Fetched]:
    return outcome(partial(stores.fetch, member))


def outcome(read: Callable[[], Body]) -> Body | SampleError:
    """What a call reads, or the error that becomes its sample's row.

    Raises:
        OutageError, UserError: as the call does; neither is about one sample.
    """
    try:
        return read()
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
    except (OSError, ValueError) as error:  # ValueError: a key that no object can have
        return SampleError(Reason.UNREADABLE, printable(error))
