"""The bytes of an archive, read forwards in bounded memory: ranges of an object, or the stream in a compressed one."""

import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any, Final, Protocol

import zstandard

from da2ray.errors import Reason, SampleError
from da2ray.parallel import look_ahead

CHUNK: Final = 4 << 20
"""Bytes of one GET. It costs about as much as one of 100 kB, and eight in flight fill a network link."""
MOST_AHEAD: Final = 8
BEHIND: Final = 16 << 20
"""Bytes of one GET behind the range, where just a member's rest is fetched."""
GZIP: Final = b"\x1f\x8b"
ZSTD: Final = b"\x28\xb5\x2f\xfd"

GetRange = Callable[[int, int], bytes]
"""From offset and length to just these bytes of an object."""


class ArchiveBytes(Protocol):
    """The bytes of an archive. Offsets must not go back."""

    def take(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, or fewer at the end of the archive."""
        ...

    @property
    def size(self) -> int | None:
        """The bytes of the archive; None if that is not known yet."""
        ...

    def close(self) -> None:
        """Stop reading ahead."""
        ...


class Ranges:
    """Bytes of an object by ranges.

    What is asked for is taken from chunks, which are fetched ahead up to `stop`. Bytes behind `stop` are fetched as they are
    asked for. Memory: the chunks in flight, and what `take` returns.
    """

    def __init__(self, get: GetRange, size: int, start: int, stop: int, ahead: int, chunk: int = CHUNK) -> None:
        """`size`: of the object. `ahead`: GETs in flight besides the one that is waited for; 0 for none."""
        self._get = get
        self.size = size
        self._stop = min(stop, size)
        self._ahead = min(ahead, MOST_AHEAD)
        self._chunk = chunk
        self._held: deque[tuple[int, bytes]] = deque()
        self._next = start
        self._stream: Generator[bytes] | None = None

    def take(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self.size)
        if end <= offset:
            return b""
        self._drop_before(offset)
        if not self._held and offset > self._next:
            self._skip_to(offset)
        while self._next < end:
            self._held.append((self._next, self._fetch(end)))
            self._next += len(self._held[-1][1])
            self._drop_before(offset)
        start, first = self._held[0]
        if end <= start + len(first):
            return first[offset - start : end - start]
        parts = [first[offset - start :]]
        parts += [data if at + len(data) <= end else data[: end - at] for at, data in list(self._held)[1:] if at < end]
        return b"".join(parts)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _drop_before(self, offset: int) -> None:
        while self._held and self._held[0][0] + len(self._held[0][1]) <= offset:
            self._held.popleft()

    def _skip_to(self, offset: int) -> None:
        """Go on at `offset`, unless the chunk with it is on its way already."""
        if self._stream is None or offset - self._next >= (self._ahead + 1) * self._chunk or offset >= self._stop:
            self.close()
            self._next = offset

    def _fetch(self, end: int) -> bytes:
        """The next chunk; behind `stop` what is missing up to `end`."""
        if self._next >= self._stop:
            self.close()
            return self._get(self._next, min(end - self._next, BEHIND))
        if self._stream is None:
            self._stream = look_ahead(
                lambda at: self._get(at, min(self._chunk, self._stop - at)),
                range(self._next, self._stop, self._chunk),
                self._ahead + 1,
                "da2ray-tar",
                ahead=self._ahead,
                wait=False,
            )
        return next(self._stream)


class Unpacked:
    """The stream in a compressed object, from its beginning. Memory: some chunks of it, and what `take` returns."""

    def __init__(self, packed: Ranges, size: int, magic: bytes) -> None:
        """`packed`: the object from its beginning; `size`: its bytes; `magic`: its first bytes."""
        self._packed = packed
        self._stream = _gunzip(_chunks(packed, size)) if magic.startswith(GZIP) else _unzstd(_chunks(packed, size))
        self._held = bytearray()
        self._at = 0
        self.size: int | None = None

    def take(self, offset: int, length: int) -> bytes:
        """As `ArchiveBytes.take`.

        Raises:
            SampleError: the stream breaks off, or is damaged. What came before it was given.
        """
        while offset > self._at + len(self._held):
            self._at += len(self._held)
            self._held.clear()
            if not self._more():
                return b""
        del self._held[: offset - self._at]
        self._at = offset
        while len(self._held) < length and self._more():
            pass
        return bytes(self._held[:length])

    def close(self) -> None:
        self._packed.close()

    def _more(self) -> bool:
        data = next(self._stream, b"")
        self._held += data
        if not data:
            self.size = self._at + len(self._held)
        return bool(data)


def is_compressed(magic: bytes) -> bool:
    """Whether the first bytes of a file are those of gzip or zstd."""
    return magic.startswith((GZIP, ZSTD))


def _chunks(packed: Ranges, size: int) -> Iterator[bytes]:
    for at in range(0, size, CHUNK):
        yield packed.take(at, CHUNK)


_OUT: Final = 1 << 20
"""Bytes that are unpacked at once, so that a bomb takes no memory."""


def _gunzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """gzip, of any number of members."""
    stream, ended = zlib.decompressobj(31), False
    try:
        for chunk in chunks:
            data = chunk
            while data:
                if ended:
                    data = data.lstrip(b"\0")  # padding between members, or behind the last
                    if not data:
                        break
                    stream, ended = zlib.decompressobj(31), False
                if unpacked := stream.decompress(data, _OUT):
                    yield unpacked
                data, ended = (stream.unused_data, True) if stream.eof else (stream.unconsumed_tail, False)
    except zlib.error as error:
        raise SampleError(Reason.CORRUPT, f"gzip: {error}") from None
    while not ended and (unpacked := stream.decompress(b"", _OUT)):
        yield unpacked
    if not ended:
        raise SampleError(Reason.TRUNCATED, "gzip: the stream breaks off")


def _unzstd(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """zstd, of any number of frames."""
    stream, ended = _frame(), False
    try:
        for chunk in chunks:
            data = chunk
            while data:
                if ended:
                    stream, ended = _frame(), False
                # In slices: a slice unpacks to at most some thousand times its length.
                part, data = data[:_SLICE], data[_SLICE:]
                if unpacked := stream.decompress(part):
                    yield unpacked
                if stream.eof:
                    data, ended = stream.unused_data + data, True
    except zstandard.ZstdError as error:
        raise SampleError(Reason.CORRUPT, f"zstd: {error}") from None
    if not ended:
        raise SampleError(Reason.TRUNCATED, "zstd: the stream breaks off")


_SLICE: Final = 16 << 10


def _frame() -> Any:
    # 2 GiB, as `zstd --long=31` writes at most, would be too much memory: 128 MiB is what `zstd -d` takes by itself.
    return zstandard.ZstdDecompressor(max_window_size=128 << 20).decompressobj()
