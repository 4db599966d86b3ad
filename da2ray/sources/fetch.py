"""Reading members by their URIs: what sources of loose files share."""

from collections.abc import Iterable, Iterator
from typing import Final

from da2ray.errors import OutageError, Reason, SampleError, UnavailableError, UserError
from da2ray.parallel import look_ahead
from da2ray.sources.allowed import Allowed, must_be_regular
from da2ray.sources.base import Member, Sample
from da2ray.sources.outage import PROBE_RETRY_S, Outages
from da2ray.storage import Client, Store, open_store, printable, split_uri

MOST_BYTES: Final = 2 << 30
"""Largest file that is read: above the 1.6 GB that the 200 megapixels of `--max-pixels` take uncompressed at 8 bytes each. A
larger one would take a machine's memory, and the run with it, each time it is read."""


def fetch(
    members: Iterable[Member], concurrency: int, client: Client = "auto", allowed: Allowed | None = None
) -> Iterator[Sample]:
    """Read members, `concurrency` GETs at a time, and yield them in order.

    At most `concurrency` bodies are held, the yielded one among them, so the largest bodies bound the memory. If one member
    fails, its body is a `SampleError` and the others go on. If a store is down, all of them fail. A caller that stops early does
    not wait for GETs in flight.

    Args:
        members: taken as the results are; may be endless.
        concurrency: GETs in flight; 16 reach 2,400 a second of 100 kB from one process through obstore, 64 little more.
        client: see `open_store`.
        allowed: what may be read, if others wrote the URIs. Any other URI is `forbidden`, and no request is made.

    Raises:
        OutageError: a store does not answer any more, not about any object. Web servers never raise it.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1; got {concurrency}")
    stores = _Stores(client, allowed)
    return look_ahead(
        lambda member: Sample(member, _read(stores, member)),
        members,
        concurrency,
        "da2ray-fetch",
        ahead=concurrency - 1,
        wait=False,
    )


class _Stores:
    """A store for each root that members lie under: few buckets, millions of members."""

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
            if size is None and root == "/":  # elsewhere it would cost one more request for each member
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
        # ValueError and UserError: text in a manifest that cannot be a URI, or a scheme that nothing serves.
        return SampleError(Reason.UNREADABLE, printable(error))
