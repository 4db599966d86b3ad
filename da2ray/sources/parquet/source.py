"""Parquet files with image bytes in a column."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from da2ray.errors import NothingReadError, Reason, SampleError, UnavailableError, UserError
from da2ray.parallel import look_ahead
from da2ray.sources.allowed import Allowed, must_be_regular
from da2ray.sources.base import Cut, Member, Place, Sample
from da2ray.sources.fetch import Stores, fetch, outcome
from da2ray.sources.manifest import absolute, part_keys
from da2ray.sources.parquet.columns import ImageColumns, is_bytes
from da2ray.sources.parquet.footer import FOOTERS, Footer, ReadRange, read_footer
from da2ray.sources.parquet.plan import File, Group, Rows, chosen, cut_groups, groups_of, joined, pack, unpack
from da2ray.sources.parquet.values import Value, read_values
from da2ray.sources.table import ID, TEXT, Column, read_rows
from da2ray.sources.unique import UniqueKeys
from da2ray.storage import Client, Stat, Store, StoreFile, join, open_store, printable, split_uri

PLAN_THREADS: Final = 16
"""Files that are looked at while a run is planned; each takes a GET or two, and one for each row group with a column of keys."""
KEY_READ_BYTES: Final = 16 << 10
"""Least bytes of a GET of a column of keys, which lies beside columns of image bytes."""
SUCCESS: Final = "success"
"""What img2dataset writes into the column `status` of an image that it could download."""

Read = TypeVar("Read")


@dataclass(frozen=True, slots=True)
class _Planned:
    """What planning knows of a file: its footer, its samples, and the number of rows that are not samples."""

    footer: Footer
    rows: Rows
    failed: int


@dataclass(frozen=True, slots=True)
class _Opened:
    """A file that is read: its footer, its version, and how to read ranges of it."""

    footer: Footer
    stat: Stat
    read_range: ReadRange


class ParquetSource:
    """The rows of Parquet files with image bytes: one file, or those of a folder in the order of their names.

    The key is the column of keys, else the file and the row. Bytes may be missing where a path beside them says where the image
    lies, as in datasets of Hugging Face; it may be relative to the file's folder, and reach what a manifest there may name.

    Without a column of keys a sample is what the file has in its row when it is read. With one the plan knows which row had the
    key, so rows of a file that has changed since are `unreadable`.
    """

    kind = "parquet"
    looks_for = "rows with images"

    def __init__(
        self,
        url: str,
        columns: ImageColumns,
        client: Client = "auto",
        allowed: Allowed | None = None,
        *,
        is_folder: bool,
    ) -> None:
        """`url`: canonical, without a signature, of a file or of a folder of files that have `columns`."""
        self.url = url
        self.root = url if is_folder else url.rpartition("/")[0] or "/"
        self.columns = columns
        self.passed_over: Counter[str] = Counter()
        self._client: Client = client
        self._allowed = allowed or Allowed.of(url)
        self._is_folder = is_folder

    def describe(self) -> dict[str, str]:
        """The URL and the columns: files are looked at once, when the plan is made."""
        return {
            "kind": self.kind,
            "url": self.url,
            "image_column": self.columns.image,
            "key_column": self.columns.key or "",
        }

    def shards(self, cut: Cut) -> Iterator[pa.RecordBatch]:
        """See `Source.shards`; counts are exact, and bytes are those of the column of images, divided evenly."""
        self.passed_over = Counter()
        return cut_groups(self._groups(cut.limit), cut)

    def read(self, spec: bytes, *, concurrency: int, skip: int = 0) -> Iterator[Sample]:
        """See `Source.read`."""
        pieces = list(joined(unpack(spec)))
        reading = _Reading(self, concurrency, pieces)
        for rows in pieces:
            count = len(rows.numbers)
            if skip < count:
                yield from reading.samples(rows.slice(skip))
            skip = max(0, skip - count)

    def member(self, spec: bytes, row: int) -> Member | None:
        """See `Source.member`."""
        for rows in unpack(spec):
            if row < len(rows.numbers):
                return self.member_at(rows, row)
            row -= len(rows.numbers)
        return None

    def select(self, places: Iterable[tuple[bytes, Sequence[Place]]]) -> bytes:
        """See `Source.select`."""
        return pack(joined(chosen(places)))

    def member_at(self, rows: Rows, place: int) -> Member:
        """The sample at a place of some rows."""
        uri = join(self.root, rows.file.key)
        return Member(rows.key(place), uri, etag=rows.file.etag, image_row=int(rows.numbers[place]))

    def stores(self) -> Stores:
        """What reads the files, and judges whether a failure is a file's own."""
        return Stores(self._client, None)

    def elsewhere(self, members: Sequence[Member], concurrency: int) -> Iterator[Sample]:
        """Images that lie outside the Parquet files."""
        return fetch(members, concurrency, self._client, self._allowed)

    def _groups(self, limit: int | None) -> Iterator[Group]:
        unique = UniqueKeys()
        left = limit
        for planned in self._planned():
            rows = planned.rows if left is None else planned.rows.slice(0, left)
            self.passed_over["failed_downloads"] += planned.failed
            if rows.keys is not None:
                unique.add(rows.keys)
            yield from groups_of(rows, planned.footer, self.columns.image)
            left = None if left is None else left - len(rows.numbers)
            if left == 0:
                break
        unique.check(self.url, partial(self._keys, limit), "choose another column with --key-column, or none")

    def _keys(self, limit: int | None) -> Iterator[tuple[Sequence[str], Callable[[int], str]]]:
        left = limit
        for planned in self._planned():
            rows = planned.rows if left is None else planned.rows.slice(0, left)
            yield rows.keys or (), partial(_row_name, rows)
            left = None if left is None else left - len(rows.numbers)
            if left == 0:
                return

    def _planned(self) -> Iterator[_Planned]:
        """What is known of each file.

        Raises:
            UserError: a file cannot be read, or has other columns than the first one.
        """
        store = open_store(self.root, self._client)
        with contextlib.closing(
            look_ahead(
                partial(self._look_at, store),
                self._files(store),
                PLAN_THREADS,
                "da2ray-footers",
                ahead=PLAN_THREADS,
                wait=False,
            )
        ) as files:
            yield from files

    def _files(self, store: Store) -> Iterator[File]:
        if not self._is_folder:
            key = split_uri(self.url)[1].rpartition("/")[2]
            stat = store.stat(key)
            yield File(key, stat.size, stat.etag)
            return
        for listed in store.list():
            kept = listed.filter(pc.is_in(listed.column("key"), pa.array(part_keys(listed.column("key")), pa.string())))
            yield from (File(*row) for row in zip(*(column.to_pylist() for column in kept.columns), strict=True))

    def _look_at(self, store: Store, file: File) -> _Planned:
        url = join(self.root, file.key)
        footer = open_footer(partial(store.get_range, file.key), file.size or 0, url)
        leaf = footer.leaf(self.columns.image)
        schema = footer.metadata.schema
        if leaf is None or not is_bytes(schema.column(leaf)) or schema.column(leaf).max_repetition_level:
            raise UserError(f"{url} has no column of bytes {self.columns.image}, as the first file of {self.url} has")
        _check_chunks(footer, leaf, url)
        numbers = np.arange(footer.metadata.num_rows)
        names = [name for name in (self.columns.key, self.columns.status) if name]
        if not names or not len(numbers):
            return _Planned(footer, Rows(file, numbers), 0)
        columns = [Column(name, (name,), ID if name == self.columns.key else TEXT, required=False) for name in names]
        try:
            batches = list(read_rows(StoreFile(store, file.key, KEY_READ_BYTES), url, columns))
        except UnavailableError:
            raise
        except OSError as error:
            raise UserError(f"cannot read {url}: {printable(error)}") from error
        read = pa.Table.from_batches(batches, pa.schema([(name, pa.string()) for name in names]))
        if self.columns.status:
            kept = pc.equal(read[self.columns.status], SUCCESS)
            read, numbers = read.filter(kept), numbers[pc.fill_null(kept, fill_value=False).to_numpy()]
        rows = Rows(file, numbers)
        if self.columns.key:
            keys = read[self.columns.key].to_pylist()
            rows = Rows(file, numbers, [rows.key(at) if key is None else key for at, key in enumerate(keys)])
        return _Planned(footer, rows, footer.metadata.num_rows - len(numbers))


def open_footer(read_range: ReadRange, size: int, url: str) -> Footer:
    """The footer of a file that is planned.

    Raises:
        UserError: there is none.
        UnavailableError: the store does not answer.
    """
    try:
        return read_footer(read_range, size)
    except UnavailableError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"cannot read {url}: {printable(error)}") from error


def read_image(store: Store, key: str, column: str, row: int) -> bytes:
    """The image in one row of a file, as it is now: of the file only the footer and the row's page are read.

    Raises:
        SampleError: the row has no bytes, or they are damaged.
        ValueError: the file has no such column or row, or is not a Parquet file.
        OSError: the store failed.
    """
    read_range: ReadRange = partial(store.get_range, key)
    stat = store.stat(key)
    footer = FOOTERS.get(join(store.url, key), stat.size, stat.etag, read_range)
    if not 0 <= row < footer.starts[-1]:
        raise ValueError(f"{key} has {footer.starts[-1]} rows now")
    group = int(np.searchsorted(footer.starts, row, side="right")) - 1
    (value,) = read_values(footer, read_range, column, group, np.array([row]) - footer.starts[group])
    if not isinstance(value.body, bytes):
        raise value.body or SampleError(Reason.EMPTY, "null in place of image bytes")
    return value.body


def _check_chunks(footer: Footer, leaf: int, url: str) -> None:
    """Check that each row group tells where its images lie.

    Raises:
        UserError: the column is encrypted, or it lies in another file.
    """
    try:
        for group in range(footer.metadata.num_row_groups):
            if footer.metadata.row_group(group).column(leaf).file_path:
                raise UserError(f"cannot read {url}: its columns lie in other files")
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"cannot read {url}: {printable(error)}") from error


def _row_name(rows: Rows, place: int) -> str:
    return f"{rows.numbers[place] + 1} of {rows.file.key}"


class _Reading:
    """One reading of a shard."""

    def __init__(self, source: ParquetSource, concurrency: int, pieces: Sequence[Rows]) -> None:
        self._source = source
        self._concurrency = concurrency
        self._pieces = pieces
        self._stores = source.stores()

    def samples(self, rows: Rows) -> Iterator[Sample]:
        """The samples of a file."""
        opened = _outcome(partial(self._open_with_evidence, rows))
        if isinstance(opened, SampleError):
            yield from self._failed(rows, opened)
            return
        starts = opened.footer.starts
        for group in range(int(np.searchsorted(starts, rows.numbers[0], side="right")) - 1, len(starts) - 1):
            begin, end = np.searchsorted(rows.numbers, starts[group : group + 2]).tolist()
            if begin < end:
                yield from self._group(opened, rows.slice(begin, end), group)
        beyond = int(np.searchsorted(rows.numbers, starts[-1]))
        error = SampleError(Reason.NOT_FOUND, f"{rows.file.key} has {starts[-1]} rows now")
        yield from self._failed(rows.slice(beyond), error)

    def _group(self, opened: _Opened, rows: Rows, group: int) -> Iterator[Sample]:
        """The samples of a row group."""
        missing: list[int] = []
        for place, value in enumerate(self._values(opened, self._source.columns.image, rows, group)):
            if value.body is None:
                missing.append(place)
                continue
            if missing:
                yield from self._elsewhere(opened, rows, group, missing)
                missing = []
            member = self._source.member_at(rows, place)
            if isinstance(value.body, bytes) and value.offset is not None:
                member = replace(member, image_offset=value.offset, image_length=len(value.body))
            yield Sample(member, value.body, None if isinstance(value.body, SampleError) else opened.stat.etag)
        if missing:
            yield from self._elsewhere(opened, rows, group, missing)

    def _elsewhere(self, opened: _Opened, rows: Rows, group: int, places: Sequence[int]) -> Iterator[Sample]:
        """The samples at places that have no bytes: their paths say where the images lie."""
        path = self._source.columns.path
        some = Rows(rows.file, rows.numbers[places], [rows.key(place) for place in places])
        if path is None:
            yield from self._failed(some, SampleError(Reason.EMPTY, "null in place of image bytes"))
            return
        values = list(self._values(opened, path, some, group))
        folder = join(self._source.root, rows.file.key).rpartition("/")[0]
        members: list[Member] = []
        for place, value in enumerate(values):
            uri = value.body.decode(errors="replace") if isinstance(value.body, bytes) else None
            members.append(
                Member(some.key(place), absolute(folder, uri)) if uri else self._source.member_at(some, place)
            )
        found = self._source.elsewhere([each for each in members if each.image_row is None], self._concurrency)
        for value, member in zip(values, members, strict=True):
            if member.image_row is None:
                yield next(found)
            else:
                empty = SampleError(Reason.EMPTY, "neither bytes nor a path")
                yield Sample(member, value.body if isinstance(value.body, SampleError) else empty)

    def _values(self, opened: _Opened, path: str, rows: Rows, group: int) -> Iterator[Value]:
        """A value for each row; once the file cannot be read any more, the same error for all."""
        numbers = rows.numbers - opened.footer.starts[group]
        values = read_values(opened.footer, opened.read_range, path, group, numbers, self._concurrency)
        for place in range(len(rows.numbers)):
            value = _outcome(partial(next, values))
            if isinstance(value, SampleError):
                yield from (Value(value) for _ in rows.numbers[place:])
                return
            yield value

    def _failed(self, rows: Rows, error: SampleError) -> Iterator[Sample]:
        return (Sample(self._source.member_at(rows, place), error) for place in range(len(rows.numbers)))

    def _open_with_evidence(self, rows: Rows) -> _Opened:
        """Open a file. If nothing was read before, another file of the shard shows whether the store works."""
        try:
            return self._open(rows)
        except NothingReadError:
            for other in self._pieces:
                with contextlib.suppress(NothingReadError):
                    if other.file != rows.file and not isinstance(_outcome(partial(self._open, other)), SampleError):
                        return self._open(rows)
            raise

    def _open(self, rows: Rows) -> _Opened:
        root, key = split_uri(join(self._source.root, rows.file.key))
        if root == "/":
            must_be_regular(f"/{key}")
        stat = self._stores.read_part(root, key, lambda store: store.stat(key))
        versions = ((rows.file.size, stat.size), (rows.file.etag, stat.etag))
        if rows.keys is not None and any(None not in each and each[0] != each[1] for each in versions):
            raise SampleError(
                Reason.UNREADABLE,
                f"{rows.file.key} has changed since it was planned: which row has which key is not known",
            )

        def read_range(offset: int, length: int) -> bytes:
            return self._stores.read_part(root, key, lambda store: store.get_range(key, offset, length))

        return _Opened(FOOTERS.get(join(root, key), stat.size, stat.etag, read_range), stat, read_range)


def _outcome(read: Callable[[], Read]) -> Read | SampleError:
    """As `outcome`; damage that pyarrow finds is the file's."""
    try:
        return outcome(read)
    except pa.ArrowException as error:
        return SampleError(Reason.CORRUPT, printable(error))
