"""An object as a seekable file, for readers that want one (Parquet, CSV)."""

import io

from da2ray.storage.base import Store

BLOCK_BYTES = 4 << 20
"""One GET of 4 MiB costs about as much as one of 100 kB; a footer and the row groups after it come in few GETs."""


class StoreFile(io.BufferedReader):
    """A buffered file over ranges of an object: a sequential reader costs one GET for each `block` bytes, a jump one GET.

    A file that is read to its end, or in pieces of many blocks, costs fewer. Methods raise what `Store.stat` and
    `Store.get_range` raise.
    """

    def __init__(self, store: Store, key: str, block: int = BLOCK_BYTES) -> None:
        self._object = ObjectRanges(store, key)
        super().__init__(self._object, block)

    def size(self) -> int:
        """The size of the object in bytes."""
        return self._object.size


class ObjectRanges(io.RawIOBase):
    """The unbuffered file: each read is one GET of just these bytes."""

    def __init__(self, store: Store, key: str) -> None:
        super().__init__()
        self._store = store
        self._key = key
        self._position = 0
        self.size = store.stat(key).size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return self._read(self.size)

    def _read(self, most: int) -> bytes:
        length = min(most, max(0, self.size - self._position))
        if length == 0:
            return b""
        data = self._store.get_range(self._key, self._position, length)
        self._position += length
        return data
