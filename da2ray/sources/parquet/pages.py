"""The pages of a Parquet column, found without reading those before them.

The offset index tells where pages lie if the file has one. Otherwise page headers are read one after another, each of which tells
where the next one lies. A column chunk may hold gigabytes, and a page is the smallest piece of it that can be decoded.

Thrift structs and enums: https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from da2ray.errors import Reason, SampleError
from da2ray.parallel import look_ahead
from da2ray.sources.parquet.footer import LENGTH, Footer, PageOffsets, ReadRange
from da2ray.sources.parquet.thrift import ShortError, read_struct
from da2ray.storage import printable

BLOCK_BYTES: Final = 4 << 20
"""One GET of a page or of several. See `da2ray.storage.file`."""
BLOCKS_AHEAD: Final = 3
"""Blocks that are read ahead, at most: 12 MiB, which a part of a row group may read in vain if the file has no offset index."""
HEADER_BYTES: Final = 64 << 10
"""The first GET for a page that is alone: its header, and maybe all of it."""
MOST_HEADER_BYTES: Final = 16 << 20
"""Old writers put the smallest and the largest value of a page into its header."""

_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_V2 = 0, 2, 3
_CODECS: Final = {"UNCOMPRESSED": 0, "SNAPPY": 1, "GZIP": 2, "LZO": 3, "BROTLI": 4, "ZSTD": 6}


@dataclass(frozen=True, slots=True)
class Page:
    """A page. Only data pages have rows and an encoding.

    Attributes:
        offset: of its header in the file.
        row: its first one in the row group.
        header: the struct PageHeader, which takes `header_bytes`.
        data: header and body; empty as long as it is not known whether the page is wanted.
    """

    offset: int
    row: int
    header: dict[int, Any]
    header_bytes: int
    data: bytes = b""

    @property
    def has_values(self) -> bool:
        """Whether it is a data page."""
        return self.header[1] in (_DATA_PAGE, _DATA_PAGE_V2)

    @property
    def is_dictionary(self) -> bool:
        return self.header[1] == _DICTIONARY_PAGE

    @property
    def _of_values(self) -> dict[int, Any]:
        return self.header[5 if self.header[1] == _DATA_PAGE else 8]

    @property
    def rows(self) -> int:
        return self._of_values[1]

    @property
    def encoding(self) -> int:
        return self._of_values[2 if self.header[1] == _DATA_PAGE else 4]

    @property
    def plain_bytes(self) -> int:
        """After decompression."""
        return self.header[2]

    @property
    def end(self) -> int:
        """Where the page ends in the file."""
        return self.offset + self.header_bytes + self.header[3]

    def values_at(self, levels: int) -> int:
        """Where the values begin in an uncompressed page, after the definition levels."""
        at = self.header_bytes
        if self.header[1] == _DATA_PAGE_V2:
            return at + self.header[8][5] + self.header[8][6]
        return at + LENGTH.size + LENGTH.unpack_from(self.data, at)[0] if levels else at


class Chunk:
    """A column of a row group."""

    def __init__(self, footer: Footer, read_range: ReadRange, path: str, group: int) -> None:
        leaf = footer.leaf(path)
        if leaf is None:
            raise ValueError(f"no column {path}")
        self._footer, self._leaf, self._group = footer, leaf, group
        self.read_range = read_range
        self.chunk = footer.metadata.row_group(group).column(leaf)
        self.levels = footer.metadata.schema.column(leaf).max_definition_level
        dictionary = self.chunk.dictionary_page_offset
        # Some writers leave 0 where there is no dictionary.
        self.start = min(dictionary, self.chunk.data_page_offset) if dictionary else self.chunk.data_page_offset
        self.end = self.start + self.chunk.total_compressed_size
        self.rows = footer.metadata.row_group(group).num_rows
        self._dictionary: bytes | None = None

    @property
    def codec(self) -> int:
        """The enum CompressionCodec."""
        name = self.chunk.compression
        # pyarrow has one name for two codecs.
        return self._footer.raw_chunk(self._group, self._leaf)[3][4] if name == "LZ4" else _CODECS[name]

    @property
    def dictionary(self) -> bytes:
        """The dictionary page with its header; empty if the column begins with another page.

        Raises:
            ValueError: it is damaged.
        """
        if self._dictionary is None:
            source = _Bytes(self.read_range, self.start, self.end, HEADER_BYTES)
            page = source.page(0)
            self._dictionary = source.take(page.end - page.offset) if page.is_dictionary else b""
        return self._dictionary

    def pages(self, rows: np.ndarray, concurrency: int) -> Generator[Page | SampleError]:
        """The pages that hold `rows`, with their data. If one of them cannot be found, the damage, which ends the walk."""
        index = self._index() if len(rows) < self.rows else None
        walked = index or self._footer.walked.setdefault((self._group, self._leaf), PageOffsets())
        row, offset = walked.before(int(rows[0])) or (0, self.start)
        end = self.end if index is None else index.after(int(rows[-1])) or self.end
        # Rows that follow each other are read in one go, from the first page that is wanted: headers before it are hopped over.
        dense = len(rows) == rows[-1] - rows[0] + 1
        ahead = min(concurrency - 1, BLOCKS_AHEAD)
        streams = dense and (index is not None or row == rows[0])
        source = _Bytes(self.read_range, offset, end, *((BLOCK_BYTES, ahead) if streams else (HEADER_BYTES, 0)))
        taken = 0
        try:
            while taken < len(rows):
                page = source.page(row)
                if not page.has_values:
                    if page.is_dictionary and streams:
                        self._dictionary = source.take(page.end - page.offset)
                    source.seek(page.end)
                    continue
                if index is None:
                    walked.add(row, page.offset)
                row += page.rows
                following = int(np.searchsorted(rows, row))
                if following == taken:
                    source.seek(page.end)
                    continue
                if dense and not streams:
                    source.close()
                    source = _Bytes(self.read_range, page.offset, end, BLOCK_BYTES, ahead)
                    streams = True
                yield replace(page, data=source.take(page.end - page.offset))
                taken = following
                if index is not None and taken < len(rows):
                    row, offset = index.before(int(rows[taken])) or (0, self.start)
                    source.seek(offset)
        except ValueError as error:
            yield SampleError(Reason.CORRUPT, f"page at byte {source.at}: {printable(error)}")
        finally:
            source.close()

    def _index(self) -> PageOffsets | None:
        """Where the pages lie, by the offset index; None if the file has none, or one that cannot be right."""
        if not self.chunk.has_offset_index:
            return None
        try:
            chunk = self._footer.raw_chunk(self._group, self._leaf)
            locations = read_struct(self.read_range(chunk[4], chunk[5]))[0][1]
            walked = PageOffsets([each[3] for each in locations], [each[1] for each in locations])
        except (ValueError, KeyError, TypeError):
            return None
        ordered = all(np.all(np.diff(each) > 0) for each in (walked.rows, walked.offsets))
        inside = walked.rows[:1] == [0] and self.start <= walked.offsets[0] and walked.offsets[-1] < self.end
        return walked if ordered and inside and walked.rows[-1] < self.rows else None


def _is_page(header: dict[int, Any]) -> bool:
    """Whether a struct is a PageHeader that makes sense."""
    numbers = [header.get(number) for number in (1, 2, 3)]
    if header.get(1) == _DATA_PAGE and isinstance(header.get(5), dict):
        numbers += [header[5].get(number) for number in (1, 2)]
    elif header.get(1) == _DATA_PAGE_V2 and isinstance(header.get(8), dict):
        numbers += [header[8].get(number) for number in (1, 4, 5, 6)]
    elif header.get(1) in (_DATA_PAGE, _DATA_PAGE_V2):
        return False
    return all(type(number) is int and number >= 0 for number in numbers)


class _Bytes:
    """A part of a file, from one byte to another, that is read in blocks."""

    def __init__(self, read_range: ReadRange, at: int, end: int, block: int, ahead: int = 0) -> None:
        """`ahead`: blocks that are read while others are used."""
        self._read_range = read_range
        self._end = end
        self._block = block
        self._ahead = ahead
        self._have: deque[bytes] = deque()
        self._size = 0
        self._blocks: Generator[bytes] | None = None
        self._next = at
        self.at = at
        """Where the next byte that is taken lies in the file."""

    def page(self, row: int) -> Page:
        """The page here, whose first row this is. Its header is looked at, and not taken.

        Raises:
            ValueError: it is damaged.
        """
        most = HEADER_BYTES
        while True:
            try:
                header, length = read_struct(self._peek(min(most, self._end - self.at)))
                break
            except ShortError:
                if most >= min(MOST_HEADER_BYTES, self._end - self.at):
                    raise
                most *= 8
        if not _is_page(header):
            raise ValueError("its header is damaged")
        page = Page(self.at, row, header, length)
        if page.end > self._end:
            raise ValueError("its header is damaged")
        return page

    def take(self, length: int) -> bytes:
        """The next bytes."""
        if length > self._end - self.at:
            raise ShortError("it ends early")
        if not self._ahead and length > self._size:
            # The rest in one read.
            self._have.append(self._read_range(self._next, length - self._size))
            self._next += length - self._size
            self._size = length
        self._fill(length)
        parts = []
        left = length
        while left:
            part = self._have.popleft()
            if len(part) > left:
                self._have.appendleft(part[left:])
                part = part[:left]
            parts.append(part)
            left -= len(part)
        self._size -= length
        self.at += length
        return b"".join(parts)

    def seek(self, at: int) -> None:
        """Go to a byte, which is not before this one unless it was not taken."""
        if self.at <= at <= self.at + self._size:
            self.take(at - self.at)
        elif at != self.at:
            self.close()
            self._have.clear()
            self._size = 0
            self._next = self.at = at

    def close(self) -> None:
        """Leave what is being read ahead."""
        if self._blocks:
            self._blocks.close()
            self._blocks = None

    def _peek(self, length: int) -> bytes:
        self._fill(length)
        if len(self._have) > 1 and len(self._have[0]) < length:
            self._have = deque([b"".join(self._have)])
        return self._have[0] if self._have else b""

    def _fill(self, length: int) -> None:
        """Have so many bytes, if the part of the file does."""
        while self._size < length and self._next < self._end:
            if self._ahead:
                if self._blocks is None:
                    offsets = range(self._next, self._end, self._block)
                    self._blocks = look_ahead(
                        self._read, offsets, self._ahead + 1, "da2ray-parquet", ahead=self._ahead, wait=False
                    )
                block = next(self._blocks)
            else:
                block = self._read(self._next)
            self._have.append(block)
            self._size += len(block)
            self._next += len(block)

    def _read(self, offset: int) -> bytes:
        return self._read_range(offset, min(self._block, self._end - offset))
