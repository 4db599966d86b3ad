"""Rows of a CSV, JSON lines or Parquet file, as columns that the caller declares.

Every format goes through the same steps. `Column.find` finds a declared column among the names in the file. `Kind.read` turns its
values into one Arrow type, or refuses the first value that does not fit and names its row.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from da2ray.errors import UserError
from da2ray.sources.csv_end import EndedCsv, OpenQuoteError
from da2ray.storage import StoreFile, printable

BLOCK_BYTES = 8 << 20
"""Bytes of text that are parsed at a time. A line must fit into them."""
PARQUET_ROWS = 16_384

_SHOWN_CHARS: Final = 200
_NUMBER: Final = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_JSON_TYPES: Final = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number"}


@dataclass(frozen=True, slots=True)
class Kind:
    """What the values of a column must be.

    Attributes:
        words: the same in words, for messages.
        arrow: the Arrow type that `read` returns.
        accepts: whether a column of this Arrow type may be read.
        json_types: Python types that a value in JSON lines may have besides text.
        read: turns an array of an accepted type, of the column that is named, into one of `arrow`.
    """

    words: str
    arrow: pa.DataType
    accepts: Callable[[pa.DataType], bool]
    json_types: frozenset[type]
    read: Callable[[pa.Array, str], pa.Array]


@dataclass(frozen=True, slots=True)
class Column:
    """A column that a file may have. Case does not count in its name, nor do blanks around it.

    Attributes:
        name: the column's name in the rows that are read.
        names: its names in files. The first of these that a file has is read.
        kind: TEXT, ID, SIZE, ETAG or FOCAL.
        required: whether each row must have a value.
    """

    name: str
    names: tuple[str, ...]
    kind: Kind
    required: bool = False

    def find(self, names: Sequence[str]) -> str | None:
        """The column's name as the file spells it; None if the file does not have the column.

        Raises:
            _FileError: the file has two columns of this name, or does not have the required column.
        """
        for wanted in self.names:
            spelled = [name for name in names if same_name(name, wanted)]
            if len(spelled) > 1:
                shown = " and ".join(repr(printable(name, _SHOWN_CHARS)) for name in spelled)
                raise _FileError(f"has more than one column {wanted} ({shown}): remove all but one")
            if spelled:
                return spelled[0]
        if self.required:
            found = printable(", ".join(names), _SHOWN_CHARS)
            raise _FileError(f"has no column {', '.join(self.names)}; its columns are {found}")
        return None

    def check(self, spelled: str, type_: pa.DataType) -> None:
        """Check that a column of an Arrow type may be read.

        Raises:
            _FileError: it may not.
        """
        if not (pa.types.is_null(type_) or self.kind.accepts(_decoded(type_))):
            shown = printable(type_, _SHOWN_CHARS)
            raise _FileError(f"has the column {spelled!r} of type {shown}; it must be {self.kind.words}")

    def read(self, values: pa.Array) -> pa.Array:
        """The values as an array of the kind's type.

        Raises:
            _RowError: a value does not fit, a text is blank, or the column is required and a value is missing.
        """
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        null = pa.types.is_null(values.type)
        values = pa.nulls(len(values), self.kind.arrow) if null else self.kind.read(values, self.name)
        if self.kind in (TEXT, ID):
            blank = pc.equal(pc.utf8_trim_whitespace(values), "")
            _refuse_any(pc.fill_null(blank, fill_value=self.required), f"has no {self.name} {_COUNTING}")
        return values


def read_rows(
    file: StoreFile, url: str, columns: Sequence[Column], limit: int | None = None
) -> Iterator[pa.RecordBatch]:
    """The first `limit` rows of a file, in batches with one column for each of `columns`. Rows beyond them need not be right.

    A column that the file does not have is null; so is a value that an object in JSON lines does not have.

    Args:
        file: at its beginning.
        url: of the file, for messages. Its suffix decides the format.
        columns: the first is required.
        limit: None for all.

    Raises:
        UserError: the file is empty or not of its format, a column is missing, repeated or of an unfit type, or a value does not
            fit. The message names the column or the row.
    """
    if file.size() == 0:
        raise UserError(f"{url} is empty")
    schema = pa.schema([(column.name, column.kind.arrow) for column in columns])
    row = 0
    try:
        for arrays in _FORMATS[url.lower().rpartition(".")[2]](file, columns, limit):
            taken = [array if limit is None else array.slice(0, limit - row) for array in arrays]
            if len(taken[0]):
                yield pa.record_batch([column.read(each) for column, each in zip(columns, taken, strict=True)], schema)
            row += len(taken[0])
            if row == limit:
                return
    except _RowError as error:
        raise UserError(f"{url}: row {row + error.place + 1} {error}") from None
    except _FileError as error:
        raise UserError(f"{url} {error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{url} is not UTF-8: the names of its columns cannot be read") from None
    except pa.ArrowException as error:
        raise UserError(f"cannot read {url} after row {row}: {printable(error)}") from None


class _FileError(Exception):
    """The columns of a file do not fit. The message goes on the sentence "FILE …"."""


class _RowError(Exception):
    """A value does not fit. The message goes on the sentence "row N …"; `place` counts from the first row not yet yielded."""

    def __init__(self, place: int, message: str) -> None:
        super().__init__(message)
        self.place = place


_COUNTING: Final = "(the first row after any header is row 1)"


def same_name(one: str, other: str) -> bool:
    """Whether two names of columns are the same, as far as case and blanks around them do not count."""
    return _plain(one) == _plain(other)


def _plain(name: str) -> str:
    # Blanks that nobody sees count too: no-break spaces, byte order marks.
    return "".join(char if char.isprintable() else " " for char in name).strip().lower()


def _decoded(type_: pa.DataType) -> pa.DataType:
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def _refuse_any(wrong: pa.Array, message: str) -> None:
    if pc.any(wrong).as_py():
        raise _RowError(pc.index(wrong, value=True).as_py(), message)


# ------------------------------------------------------------------------------------------------------------------ kinds


def _is_text(type_: pa.DataType) -> bool:
    # Old writers of Parquet do not mark text, so it looks like bytes.
    return any(
        test(type_)
        for test in (
            *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
            *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
        )
    )


def _read_text(values: pa.Array, name: str) -> pa.Array:
    if pa.types.is_integer(values.type):
        return values.cast(pa.string())
    raw = values.cast(pa.binary())
    try:
        return raw.cast(pa.string())
    except pa.ArrowInvalid:
        for place, value in enumerate(raw.to_pylist()):
            if value is not None and not _is_utf8(value):
                raise _RowError(
                    place, f"has text in column {name!r} that is not UTF-8: {printable(value[:_SHOWN_CHARS])}"
                ) from None
        raise


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _cells(values: pa.Array, name: str) -> pa.Array:
    """The cells, null if one is empty."""
    if not _is_text(values.type):
        return values
    cells = pc.utf8_trim_whitespace(_read_text(values, name))
    return pc.if_else(pc.equal(cells, ""), pa.scalar(None, pa.string()), cells)


def _parsed(cells: pa.Array, pattern: str, type_: pa.DataType) -> pa.Array:
    """The numbers in cells of text, null if the pattern does not match; other cells are converted."""
    if not pa.types.is_string(cells.type):
        return cells.cast(type_, safe=False)
    fits = pc.fill_null(pc.match_substring_regex(cells, pattern), fill_value=False)
    read = int if pa.types.is_integer(type_) else float
    pairs = zip(cells.to_pylist(), fits.to_pylist(), strict=True)
    return pa.array([read(text) if fit else None for text, fit in pairs], type_)


def _refuse_wrong(cells: pa.Array, right: pa.Array, what: str) -> None:
    """Refuse the first cell with a value that is not right. `what` has a place for the value."""
    wrong = pc.and_not(cells.is_valid(), pc.fill_null(right, fill_value=False))
    if pc.any(wrong).as_py():
        place = pc.index(wrong, value=True).as_py()
        raise _RowError(place, what.format(printable(cells[place].as_py(), _SHOWN_CHARS)))


def _read_focal(values: pa.Array, name: str) -> pa.Array:
    """The focal lengths, null if the cell is empty. NaN is refused: whoever computed it has a mistake elsewhere."""
    cells = _cells(values, name)
    numbers = _parsed(cells, _NUMBER, pa.float64()).cast(pa.float32(), safe=False)
    _refuse_wrong(
        cells,
        pc.and_(pc.greater(numbers, 0), pc.is_finite(numbers)),
        f"has the focal length {{}} in column {name!r}; it must be a positive number of pixels, or empty if unknown",
    )
    return numbers


def _read_size(values: pa.Array, name: str) -> pa.Array:
    """The sizes, null if the cell is empty. Some libraries make fractions of a column that has empty cells."""
    cells = _cells(values, name)
    numbers = _parsed(cells, "^[0-9]{1,15}$", pa.float64())
    right = pc.and_(pc.equal(pc.floor(numbers), numbers), pc.and_(pc.greater_equal(numbers, 0), pc.less(numbers, 1e15)))
    _refuse_wrong(
        cells, right, f"has the size {{}} in column {name!r}; it must be a number of bytes, or empty if unknown"
    )
    return numbers.cast(pa.int64())


def _read_etag(values: pa.Array, name: str) -> pa.Array:
    cells = _cells(values, name)
    return pc.replace_substring(cells, '"', "")


def _is_number(type_: pa.DataType) -> bool:
    return pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_)


TEXT: Final = Kind("text", pa.string(), _is_text, frozenset(), _read_text)
ID: Final = Kind(
    "text or integers",
    pa.string(),
    lambda type_: _is_text(type_) or pa.types.is_integer(type_),
    frozenset({int}),
    _read_text,
)
SIZE: Final = Kind(
    "whole numbers", pa.int64(), lambda type_: _is_text(type_) or _is_number(type_), frozenset({int, float}), _read_size
)
ETAG: Final = Kind("text", pa.string(), _is_text, frozenset(), _read_etag)
FOCAL: Final = Kind(
    "numbers", pa.float32(), lambda type_: _is_text(type_) or _is_number(type_), frozenset({int, float}), _read_focal
)


# ---------------------------------------------------------------------------------------------------------------- formats


def _parquet(file: Any, columns: Sequence[Column], _: int | None) -> Iterator[list[pa.Array]]:
    parquet = pq.ParquetFile(file)
    schema = parquet.schema_arrow
    spelled = [column.find(schema.names) for column in columns]
    for column, name in zip(columns, spelled, strict=True):
        if name is not None:
            column.check(name, schema.field(name).type)
    found = [name for name in spelled if name is not None]
    yield from _aligned(parquet.iter_batches(PARQUET_ROWS, columns=found), spelled)


def _csv(file: Any, columns: Sequence[Column], _: int | None) -> Iterator[list[pa.Array]]:
    options = {
        "read_options": pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES),
        # Another column may be a caption with line breaks in it.
        "parse_options": pyarrow.csv.ParseOptions(newlines_in_values=True),
    }
    # The names of the columns, as the parser that reads the rows sees them.
    names = pyarrow.csv.open_csv(file, **options).schema.names
    spelled = [column.find(names) for column in columns]
    found = [name for name in spelled if name is not None]
    file.seek(0)
    convert = pyarrow.csv.ConvertOptions(
        include_columns=found,
        # As bytes, so that `Kind.read` judges every value and names the row.
        column_types=dict.fromkeys(found, pa.binary()),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    ended = EndedCsv(file, len(names))
    try:
        yield from _aligned(ended.rows(pyarrow.csv.open_csv(ended, convert_options=convert, **options)), spelled)
    except OpenQuoteError as error:
        raise _FileError(f'has a quotation mark (") in row {error.row} {_COUNTING} that is never closed') from None


def _aligned(batches: Iterable[pa.RecordBatch], spelled: Sequence[str | None]) -> Iterator[list[pa.Array]]:
    """The columns of each batch in the order of `spelled`, null if the file does not have one."""
    for batch in batches:
        yield [pa.nulls(batch.num_rows) if name is None else batch.column(name) for name in spelled]


def _json_lines(file: StoreFile, columns: Sequence[Column], limit: int | None) -> Iterator[list[pa.Array]]:
    """One object a line, each with names of its own. The rows before a wrong one are yielded first."""
    objects = _JsonObjects(columns)
    rows = 0
    while line := file.readline(BLOCK_BYTES + 1):
        try:
            objects.add(line)
        except _RowError:
            if len(objects):
                yield objects.take()
            raise
        if len(objects) and (objects.bytes >= BLOCK_BYTES or rows + len(objects) == limit):
            rows += len(objects)
            yield objects.take()
    if len(objects):
        yield objects.take()


class _JsonObjects:
    """Collects the values of the columns from objects."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns
        self._values: list[list[str | None]] = [[] for _ in columns]
        self._names: tuple[str, ...] | None = None
        self._spelled: list[str | None] = []
        self._first: str | None = None
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._values[0])

    def add(self, line: bytes) -> None:
        """Add the object in a line. A blank line is not a row.

        Raises:
            _RowError: the line does not hold an object, or a value does not fit; its place is 0.
        """
        self.bytes += len(line)
        if not line.strip():
            return
        row = _json_object(line)
        names = tuple(row)
        if names != self._names:
            self._spelled = self._find(names)
            self._names = names
        texts = [self._text(column, row, name) for column, name in zip(self._columns, self._spelled, strict=True)]
        for values, text in zip(self._values, texts, strict=True):
            values.append(text)

    def take(self) -> list[pa.Array]:
        """The columns, which are then empty."""
        arrays = [pa.array(values, pa.string()) for values in self._values]
        self._values, self.bytes = [[] for _ in self._columns], 0
        return arrays

    def _find(self, names: tuple[str, ...]) -> list[str | None]:
        try:
            spelled = [column.find(names) for column in self._columns]
        except _FileError as error:
            raise _RowError(0, str(error)) from None
        first = _plain(spelled[0] or "")
        if self._first not in (None, first):
            raise _RowError(0, f"has the column {first}, and the rows before it have {self._first}: use one of them")
        self._first = first
        return spelled

    @staticmethod
    def _text(column: Column, row: dict[str, Any], name: str | None) -> str | None:
        value = None if name is None else row[name]
        if type(value) is str:
            try:
                value.encode()
            except UnicodeEncodeError:
                raise _RowError(0, f"has half a character in {name!r} (a lone surrogate)") from None
            return value
        if value is None:
            return None
        if type(value) not in column.kind.json_types:
            raise _RowError(0, f"has {_JSON_TYPES[type(value)]} in {name!r}; it must be {column.kind.words}")
        return repr(value)


def _json_object(line: bytes) -> dict[str, Any]:
    if len(line) > BLOCK_BYTES:
        raise _RowError(0, f"is longer than {BLOCK_BYTES >> 20} MiB")
    try:
        row = json.loads(line.decode().lstrip("\ufeff"))
    except RecursionError:
        raise _RowError(0, "is not JSON that can be read: it is nested too deep") from None
    except ValueError as error:
        raise _RowError(0, f"is not JSON: {printable(error, _SHOWN_CHARS)}") from None
    if not isinstance(row, dict):
        raise _RowError(0, "is not a JSON object")
    return row


_FORMATS: Final[dict[str, Callable[[Any, Sequence[Column], int | None], Iterator[list[pa.Array]]]]] = {
    "csv": _csv,
    "jsonl": _json_lines,
    "ndjson": _json_lines,
    "parquet": _parquet,
}
SUFFIXES: Final = frozenset(f".{name}" for name in _FORMATS)
"""What the names of the files end in."""
