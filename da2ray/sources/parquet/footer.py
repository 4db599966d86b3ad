"""The footer of a Parquet file: what the file says about itself, and where its column chunks lie."""

import struct
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from da2ray.sources.parquet.thrift import read_struct

MAGIC: Final = b"PAR1"
LENGTH: Final = struct.Struct("<I")
"""Lengths, of the footer and of values, are unsigned 32-bit integers."""

_ENCRYPTED: Final = b"PARE"
_TAIL_BYTES: Final = 256 << 10
"""Bytes at the end of a file that are read first: the footer of some hundred row groups."""
_KEPT: Final = 8

ReadRange = Callable[[int, int], bytes]
"""Reads (offset, length) of a file."""


@dataclass(slots=True)
class PageOffsets:
    """Where data pages lie: the first row of each, and its offset, both ascending."""

    rows: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)

    def before(self, row: int) -> tuple[int, int] | None:
        """The last known page that does not begin after the row: its first row, and its offset."""
        at = bisect_right(self.rows, row) - 1
        return (self.rows[at], self.offsets[at]) if at >= 0 else None

    def after(self, row: int) -> int | None:
        """The offset of the first known page that begins after the row."""
        at = bisect_right(self.rows, row)
        return self.offsets[at] if at < len(self.rows) else None

    def add(self, row: int, offset: int) -> None:
        if not self.rows or row > self.rows[-1]:
            self.offsets.append(offset)
            self.rows.append(row)


class Footer:
    """What a file says about itself.

    Attributes:
        metadata: as pyarrow reads it.
        starts: the first row of each row group, and the number of rows: int64.
    """

    def __init__(self, raw: bytes) -> None:
        """`raw`: the footer alone.

        Raises:
            pa.ArrowException: it is not a footer.
        """
        self._raw = raw
        self.metadata = pq.read_metadata(pa.BufferReader(raw + LENGTH.pack(len(raw)) + MAGIC))
        groups = range(self.metadata.num_row_groups)
        self.starts = np.cumsum([0, *(self.metadata.row_group(group).num_rows for group in groups)], dtype=np.int64)
        self.walked: dict[tuple[int, int], PageOffsets] = {}

    def leaf(self, path: str) -> int | None:
        """The number of the column with this dotted path; None if there is none."""
        schema = self.metadata.schema
        found = [number for number in range(len(schema.names)) if schema.column(number).path == path]
        return found[0] if found else None

    def raw_chunk(self, group: int, leaf: int) -> dict[int, Any]:
        """The struct ColumnChunk, of which pyarrow does not show all fields."""
        return self._fields[4][group][1][leaf]

    @cached_property
    def _fields(self) -> dict[int, Any]:
        # A microsecond a byte; so only for a part of a row group.
        return read_struct(self._raw)[0]


def read_footer(read_range: ReadRange, size: int) -> Footer:
    """Read the footer of a file of `size` bytes, with one GET or two.

    Raises:
        ValueError: the file is not a whole Parquet file, or it is encrypted.
        pa.ArrowException: its footer is damaged.
        OSError: as `read_range` does.
    """
    least = LENGTH.size + 2 * len(MAGIC)
    if size < least:
        raise ValueError(f"{size} bytes are not a Parquet file" if size else "it is empty")
    tail = read_range(size - min(size, _TAIL_BYTES), min(size, _TAIL_BYTES))
    if tail[-len(MAGIC) :] == _ENCRYPTED:
        raise ValueError("it is encrypted")
    if tail[-len(MAGIC) :] != MAGIC:
        raise ValueError("it has no footer: it is not a whole Parquet file")
    (length,) = LENGTH.unpack_from(tail, len(tail) - LENGTH.size - len(MAGIC))
    end = size - LENGTH.size - len(MAGIC)
    if length > end - len(MAGIC):
        raise ValueError(f"its footer would take {length} of {size} bytes")
    raw = tail[:-8][-length:] if length <= len(tail) - 8 else read_range(end - length, length)
    return Footer(raw)


class _Footers:
    """The footers that were read last, by file and version. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int, str], Footer] = OrderedDict()

    def get(self, uri: str, size: int, etag: str | None, read_range: ReadRange) -> Footer:
        if etag is None:
            return read_footer(read_range, size)
        key = (uri, size, etag)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        footer = read_footer(read_range, size)
        with self._lock:
            self._kept[key] = footer
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return footer


FOOTERS = _Footers()
"""Those of this process: its shards often are neighbours."""
