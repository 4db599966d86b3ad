"""S3 by bucket and key, for keys that obstore and s3fs's paths cannot name.

S3 takes any text for a key: `a//b.jpg`, `/a.jpg`, `a.jpg/`, `a/./b.jpg`, control characters. obstore refuses some of these and
takes others for another key (`a.jpg/` for `a.jpg`), so it would list a key twice and read the bytes of another object. s3fs cuts
its paths in a similar way, but sends a bucket and a key unchanged.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from da2ray.storage.base import Fetched, Stat
from da2ray.storage.objects import ObjectStore

if TYPE_CHECKING:
    from da2ray.storage.s3_fsspec import S3FsspecStore

_ODD: Final = re.compile(r"(^|/)\.{0,2}(/|$)|[\x00-\x1f\x7f]")
"""An empty, `.` or `..` part, or a control character: obstore cannot name such keys."""


class S3ObjectStore(ObjectStore):
    """S3 through obstore. Listings, and the objects that obstore cannot name, go through s3fs."""

    def __reduce__(self) -> "tuple[type[S3ObjectStore], tuple[str, float]]":
        return S3ObjectStore, (self.url, self._retry_s)

    def fetch(self, key: str) -> Fetched:
        return self._by_name.fetch(key) if is_odd(key) else super().fetch(key)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        return self._by_name.get_range(key, offset, length) if is_odd(key) else super().get_range(key, offset, length)

    def stat(self, key: str) -> Stat:
        return self._by_name.stat(key) if is_odd(key) else super().stat(key)

    def list(self, prefix: str = "") -> Iterator[pa.RecordBatch]:
        return self._by_name.list(prefix)

    def delete(self, keys: Iterable[str]) -> None:
        every = list(keys)
        super().delete([key for key in every if not is_odd(key)])
        if odd := [key for key in every if is_odd(key)]:
            self._by_name.delete(odd)

    @cached_property
    def _by_name(self) -> "S3FsspecStore":
        from da2ray.storage.s3_fsspec import S3FsspecStore  # noqa: PLC0415 - 0.2 s, which workers seldom need

        return S3FsspecStore(self.url, self._retry_s)


def is_odd(key: str) -> bool:
    """Whether obstore cannot name this key."""
    return bool(key and _ODD.search(key))
