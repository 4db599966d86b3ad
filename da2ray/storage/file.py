"""An object as a seekable file, for readers that want one (Parquet, CSV)."""

import io

from da2ray.storage.base import Store

BLOCK_BYTES = 4 << 20
"""One GET of 4 MiB costs about what one of 100 kB costs; a footer and the row groups after it come in few."""


class StoreFile(io.RawIOBase):
    """Reads by ranges, keeping one block: a sequential reader costs a GET per `block` bytes, a jumping one a GET a
    jump.

    Not for several threads at once. Raises what `Store.stat` and `Store.get_range` raise.
    """

    def __init__(self, store: Store, key: str, block: int = BLOCK_BYTES) -> None:
        super().__init__()
        self._store = store
        self._key = key
        self._block = block
        self._size = store.stat(key).size
        self._position = 0
        self._start = 0
        self._data = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def size(self) -> int:
        """Of the object, in bytes."""
        return self._size

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int | None = -1) -> bytes:
        """Up to `size` bytes, less only at the end of the object."""
        left = max(0, self._size - self._position)
        length = left if size is None or size < 0 else min(size, left)
        if length == 0:
            return b""
        offset = self._position - self._start
        if not (offset >= 0 and offset + length <= len(self._data)):
            self._start = self._position
            self._data = self._store.get_range(self._key, self._position, min(max(length, self._block), left))
            offset = 0
        self._position += length
        return self._data[offset : offset + length]

    def readall(self) -> bytes:
        return self.read()
