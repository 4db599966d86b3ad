"""The end of a CSV file. pyarrow takes all that follows an unclosed quotation mark for one value, and does not say so."""

import io
import secrets
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa


class OpenQuoteError(Exception):
    """A quotation mark is not closed before the end of the file. `row` counts from 1 and holds the mark."""

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.row = row


class EndedCsv(io.RawIOBase):
    """A CSV file with a last row of our own. The parser gives that row unless an unclosed quotation mark swallows it."""

    def __init__(self, file: Any, columns: int) -> None:
        """`file`: at its beginning. `columns`: how many it has."""
        self._file = file
        self._end = secrets.token_hex().encode()
        self._left = b"\n" + b",".join([self._end] * columns) + b"\n"

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        if not data:
            data, self._left = self._left[: len(buffer)], self._left[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)

    def rows(self, parsed: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The file's rows, in batches.

        Args:
            parsed: what a parser makes of this file, as bytes.

        Raises:
            OpenQuoteError: the file's last row has a quotation mark that is not closed. It is not yielded.
        """
        last, count = None, 0
        for batch in parsed:
            if batch.num_rows:
                if last is not None:
                    yield last
                yield batch.slice(0, batch.num_rows - 1)
                last = batch.slice(batch.num_rows - 1)
                count += batch.num_rows
        if last is None or last.column(0)[0].as_py() != self._end:
            raise OpenQuoteError(count)
