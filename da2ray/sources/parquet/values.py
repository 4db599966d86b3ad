"""Single values of a Parquet column.

pyarrow decodes a column of a row group from its beginning. Here a shard may be a part of a row group, and one image may be
wanted of it. So only the pages that hold wanted rows are read, and pyarrow decodes each as a tiny Parquet file of its own: the
dictionary that it may need, the page, and a footer. A damaged page costs its own rows.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from da2ray.errors import Reason, SampleError
from da2ray.sources.parquet.footer import LENGTH, MAGIC, Footer, ReadRange
from da2ray.sources.parquet.pages import Chunk, Page
from da2ray.sources.parquet.thrift import BINARY, I32, I64, LIST, STRUCT, write_struct
from da2ray.storage import printable

BATCH_BYTES: Final = 8 << 20
"""Bytes of values that are decoded at a time."""

_PLAIN, _DELTA_LENGTH = 0, 6
_DICTIONARIES: Final = (2, 8)
_BYTE_ARRAY: Final = 6


@dataclass(frozen=True, slots=True)
class Value:
    """A value as it was read: its bytes, None for null, or why it cannot be read.

    Attributes:
        offset: of the bytes in the file; None if they are compressed or encoded there.
    """

    body: bytes | SampleError | None
    offset: int | None = None


def read_values(
    footer: Footer, read_range: ReadRange, path: str, group: int, rows: np.ndarray, concurrency: int = 1
) -> Iterator[Value]:
    """The values of a column of byte arrays in some rows of a row group, one for each row.

    Args:
        path: of the column, dotted; it does not repeat.
        rows: int64, ascending, from 0 in the row group.
        concurrency: reads in flight. With 1, nothing is read ahead of the page that the next row lies in.

    Raises:
        OSError: as `read_range` does.
    """
    chunk = Chunk(footer, read_range, path, group)
    taken = 0
    for page in chunk.pages(rows, concurrency):
        if isinstance(page, SampleError):
            yield from (Value(page) for _ in rows[taken:])
            return
        here = rows[taken : np.searchsorted(rows, page.row + page.rows)] - page.row
        taken += len(here)
        yield from _page_values(chunk, page, here)


def _page_values(chunk: Chunk, page: Page, rows: np.ndarray) -> Iterator[Value]:
    """The values of a page in some of its rows, counted from 0 in the page. If decoding fails, the rest is `corrupt`."""
    data = memoryview(page.data)
    done = begin = 0
    try:
        dictionary = chunk.dictionary if page.encoding in _DICTIONARIES else b""
    except ValueError as error:
        yield from (Value(SampleError(Reason.CORRUPT, f"dictionary: {printable(error)}")) for _ in rows)
        return
    try:
        offsets = _Offsets(page, chunk.levels) if chunk.codec == 0 and page.encoding == _PLAIN else None
        for values in _decoded(chunk, page, dictionary):
            stop = int(np.searchsorted(rows, begin + len(values)))
            places = rows[done:stop] - begin
            starts = offsets.of(values)[places].tolist() if offsets else [None] * len(places)
            # Slices are not copied.
            together = len(places) and places[-1] - places[0] + 1 == len(places)
            wanted = values[places[0] : places[-1] + 1] if together else values.take(pa.array(places))
            for body, start in zip(wanted.to_pylist(), starts, strict=True):
                found = start is not None and body is not None and data[start : start + len(body)] == body
                yield Value(body, page.offset + start if found else None)
                done += 1
            begin += len(values)
            if done == len(rows):
                return
        wrong: Exception = ValueError(f"it holds {begin} values instead of {page.rows}")
    except (ValueError, OSError, struct.error, pa.ArrowException) as error:
        wrong = error
    message = f"page at byte {page.offset}: {printable(wrong)}"
    yield from (Value(SampleError(Reason.CORRUPT, message)) for _ in rows[done:])


class _Offsets:
    """Where the values of an uncompressed page begin in it: a length of four bytes stands before each."""

    def __init__(self, page: Page, levels: int) -> None:
        self._at = page.values_at(levels)

    def of(self, values: pa.Array) -> np.ndarray:
        """Of the next values, int64; a null takes no bytes."""
        sizes = pc.add(pc.binary_length(values).cast(pa.int64()), LENGTH.size)
        ends = self._at + np.cumsum(pc.fill_null(sizes, 0).to_numpy(zero_copy_only=False), dtype=np.int64)
        starts = np.concatenate([[self._at], ends[:-1]]) + LENGTH.size
        self._at = int(ends[-1])
        return starts


def _decoded(chunk: Chunk, page: Page, dictionary: bytes) -> Iterator[pa.Array]:
    """The values of a page, a batch after another.

    A value of a dictionary, or one that shares its beginning with the one before, may be longer than the page, so these are
    decoded one at a time: more than 2 GiB at a time cannot be.
    """
    data = b"".join([MAGIC, dictionary, page.data, _footer_of(chunk, page, len(dictionary))])
    size = page.plain_bytes // max(1, page.rows)
    most = max(1, BATCH_BYTES // max(1, size)) if page.encoding in (_PLAIN, _DELTA_LENGTH) else 1
    file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    for batch in file.iter_batches(most, use_threads=False):
        values = batch.column(0)
        while pa.types.is_struct(values.type):
            values = pc.struct_field(values, [0])
        yield values


def _footer_of(chunk: Chunk, page: Page, dictionary: int) -> bytes:
    """The footer, its length and the magic number of a file that holds just this page, after a dictionary page of that size.

    The column lies as deep as in the real file, because its levels are stored in so many bits.
    """
    names = [b"v"] * max(1, chunk.levels)
    schema = [[(4, BINARY, b"root"), (5, I32, 1)]]
    schema += [[(3, I32, 1), (4, BINARY, name), (5, I32, 1)] for name in names[:-1]]
    schema.append([(1, I32, _BYTE_ARRAY), (3, I32, min(1, chunk.levels)), (4, BINARY, names[-1])])
    size = dictionary + len(page.data)
    column = [
        (1, I32, _BYTE_ARRAY),
        (2, LIST, (I32, [page.encoding])),
        (3, LIST, (BINARY, names)),
        (4, I32, chunk.codec),
        (5, I64, page.rows),
        (6, I64, size),
        (7, I64, size),
        (9, I64, len(MAGIC) + dictionary),
        *([(11, I64, len(MAGIC))] if dictionary else []),
    ]
    group = [
        (1, LIST, (STRUCT, [[(2, I64, len(MAGIC)), (3, STRUCT, column)]])),
        (2, I64, size),
        (3, I64, page.rows),
    ]
    fields = [(1, I32, 1), (2, LIST, (STRUCT, schema)), (3, I64, page.rows), (4, LIST, (STRUCT, [group]))]
    footer = write_struct(fields)
    return footer + LENGTH.pack(len(footer)) + MAGIC
