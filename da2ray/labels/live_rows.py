"""The keys and versions of a snapshot's rows in the order of keys, read by ranges: what a refresh compares with its source.

Of a part only the first columns of the row groups in question are read, one range GET each. Where keys are not in order in the
parts, as those of a manifest, all of them are sorted first, by DuckDB on the local disk.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from da2ray.labels.fold import versions_of
from da2ray.labels.listing import SEGMENT_ROWS, VERSIONS, Listing, digest
from da2ray.labels.parts import FIRST_COLUMNS, Part, retired_rows
from da2ray.labels.schema import INDEX, conform
from da2ray.labels.scratch import load, scratch_database
from da2ray.labels.snapshots import Snapshot
from da2ray.labels.stored import intact
from da2ray.parallel import look_ahead
from da2ray.storage import ObjectRanges, Store

_AS_STORED: Final = ("status", "reason", "fingerprint", "plan", "shard", "row")
LIVE: Final = pa.schema(
    [
        *VERSIONS,
        *(INDEX.field(name) for name in _AS_STORED),
        pa.field("part", pa.int32(), nullable=False),  # number in the snapshot
        pa.field("position", pa.int32(), nullable=False),  # in the part's file
    ]
)
HASH_BYTES: Final = 32
POINTS: Final = 64
"""Hashes of a row group that are read one by one at most; for more the whole column is read, 0.5 MB."""
THREADS: Final = 16
MOST_OVER: Final = 256
"""Parts over one key at most, with a row group of each in memory: 0.5 GB. They are those of so many refreshes."""
_DEPTH: Final = 8
"""Row groups of one part over one key at most. In a part that is sorted there are two."""


@dataclass(frozen=True, slots=True)
class _Group:
    """A row group of a part, with its first and last key."""

    part: int
    number: int
    start: int
    rows: int
    first_key: str
    last_key: str


class PartFile:
    """A part, read by ranges. Page checksums show damage; nobody has hashed the whole file."""

    def __init__(self, store: Store, part: Part) -> None:
        self._store = store
        self._part = part
        with self._intact():
            self._ranges = ObjectRanges(store, part.key)
            self._file = pq.ParquetFile(self._ranges, page_checksum_verification=True, pre_buffer=True)
            if self._file.metadata.num_rows != part.stored:
                raise ValueError(f"it has {self._file.metadata.num_rows} rows, the snapshot says {part.stored}")

    @cached_property
    def retired(self) -> np.ndarray:
        return retired_rows(self._store, self._part)

    def groups(self, number: int) -> list[_Group]:
        """The row groups; `number` is that of the part."""
        found, start = [], 0
        with self._intact():
            column = self._file.schema_arrow.get_field_index("key")
            for group in range(self._file.num_row_groups):
                chunk = self._file.metadata.row_group(group)
                keys = chunk.column(column).statistics
                found.append(_Group(number, group, start, chunk.num_rows, keys.min, keys.max))
                start += chunk.num_rows
        return found

    def live(self, group: _Group) -> pa.Table:
        """The live rows of a row group (LIVE), in the order of the file."""
        with self._intact():
            names = set(self._file.schema_arrow.names)
            columns = [name for name in FIRST_COLUMNS if name in names]
            rows = conform(
                self._file.read_row_group(group.number, columns=columns),
                pa.schema([INDEX.field(name) for name in FIRST_COLUMNS]),
            )
        positions = np.arange(group.start, group.start + group.rows, dtype=np.int32)
        live = ~np.isin(positions, self.retired)
        versions = versions_of(rows)
        table = pa.table(
            [
                *versions.columns,
                *(rows[name] for name in _AS_STORED),
                pa.repeat(pa.scalar(group.part, pa.int32()), len(rows)),
                pa.array(positions),
            ],
            schema=LIVE,
        )
        return table if live.all() else table.filter(pa.array(live))

    def hashes(self, positions: np.ndarray) -> list[bytes | None]:
        """`sha256` at these positions, which ascend.

        A few hashes of a row group are read one by one. They lie uncompressed in one page (`parts._write_table`), so if there
        is one for each row, they end where the column chunk ends. No checksum covers such a read: a hash that is wrong is that
        of no image, and costs a label made again.
        """
        found: list[bytes | None] = []
        start = 0
        with self._intact():
            column = self._file.schema_arrow.get_field_index("sha256")
            for group in range(self._file.num_row_groups):
                metadata = self._file.metadata.row_group(group)
                here = positions[(positions >= start) & (positions < start + metadata.num_rows)] - start
                start += metadata.num_rows
                chunk = metadata.column(column)
                whole = chunk.is_stats_set and chunk.statistics.null_count == 0 and chunk.compression == "UNCOMPRESSED"
                if len(here) > POINTS or not whole:
                    values = (
                        self._file.read_row_group(group, columns=["sha256"])["sha256"] if len(here) else pa.array([])
                    )
                    found += values.take(pa.array(here)).to_pylist() if len(here) else []
                    continue
                first = chunk.data_page_offset + chunk.total_compressed_size - HASH_BYTES * metadata.num_rows
                found += look_ahead(
                    lambda offset: self._store.get_range(self._part.key, offset, HASH_BYTES),
                    (first + HASH_BYTES * here).tolist(),
                    THREADS,
                    "hashes",
                )
        return found

    def _intact(self) -> AbstractContextManager[None]:
        return intact(self._store, self._part.key, "a part of the index", f"run `da2ray repair {self._store.url}`")


class LiveRows:
    """The live rows of a snapshot. A context manager; ask for intervals in ascending order."""

    def __init__(self, store: Store, snapshot: Snapshot) -> None:
        self._store = store
        self.snapshot = snapshot
        self._files: dict[int, PartFile] = {}
        self._groups: dict[int, list[_Group]] = {}
        self._tables: dict[tuple[int, int], pa.Table] = {}
        self._stack = ExitStack()
        self._sorted: duckdb.DuckDBPyConnection | None = None

    def __enter__(self) -> "LiveRows":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def file(self, part: int) -> PartFile:
        """The file of a part, by its number in the snapshot."""
        if part not in self._files:
            self._files[part] = PartFile(self._store, self.snapshot.parts[part])
        return self._files[part]

    def between(self, after: str | None, last: str | None) -> pa.Table:
        """The rows with keys in (after, last] in the order of keys (LIVE). None stands for the first or the last key."""
        if self._sorted is None and self._is_scattered:
            self._sorted = self._sort()
        if self._sorted is not None:
            where = "(? IS NULL OR key > ?) AND (? IS NULL OR key <= ?)"
            query = f"SELECT * FROM live WHERE {where} ORDER BY key"  # noqa: S608 - fixed
            found: pa.Table = self._sorted.sql(query, params=[after, after, last, last]).to_arrow_table()
            return found.cast(LIVE)
        tables = [LIVE.empty_table()]
        for number, part in enumerate(self.snapshot.parts):
            if (last is not None and part.first_key > last) or (after is not None and part.last_key <= after):
                continue
            for group in self._groups_of(number):
                if after is not None and group.last_key <= after:
                    self._tables.pop((number, group.number), None)
                elif last is None or group.first_key <= last:
                    tables.append(self._between(group, after, last))
        found = pa.concat_tables(tables)
        return found.sort_by("key") if sum(map(bool, map(len, tables))) > 1 else found

    def every(self) -> Iterator[pa.Table]:
        """All rows, a row group at a time, in the order of the index."""
        for number in range(len(self.snapshot.parts)):
            file = self.file(number)
            for group in self._groups_of(number):
                yield file.live(group)

    def listing(self) -> Listing:
        """The listing of the snapshot, made anew."""
        if self._is_scattered:
            self._sorted = self._sorted or self._sort()
            numbered = "SELECT key, row_number() OVER (ORDER BY key) AS place FROM live"
            query = f"SELECT key FROM ({numbered}) WHERE place % {SEGMENT_ROWS} = 0 ORDER BY key"  # noqa: S608
            bounds = [key for (key,) in self._sorted.execute(query).fetchall()]
        else:
            groups = [group for number in range(len(self.snapshot.parts)) for group in self._groups_of(number)]
            bounds = sorted({group.last_key for group in groups})
        return digest(bounds, (rows.select(VERSIONS.names) for rows in self.every()))

    def _groups_of(self, number: int) -> list[_Group]:
        if number not in self._groups:
            self._groups[number] = self.file(number).groups(number)
        return self._groups[number]

    def _between(self, group: _Group, after: str | None, last: str | None) -> pa.Table:
        place = group.part, group.number
        if place not in self._tables:
            self._tables[place] = self.file(group.part).live(group)
        rows = self._tables[place]
        keys = rows["key"]
        if after is not None and group.first_key <= after:
            rows = rows.filter(pc.greater(keys, after))
        if last is not None and group.last_key > last:
            rows = rows.filter(pc.less_equal(rows["key"], last))
        else:
            del self._tables[place]  # nothing of it is beyond this interval
        return rows

    @cached_property
    def _is_scattered(self) -> bool:
        """Whether so many row groups lie over one key that they do not fit into memory together."""
        if _depth([(part.first_key, part.last_key) for part in self.snapshot.parts]) > MOST_OVER:
            return True
        largest = max(
            range(len(self.snapshot.parts)), key=lambda number: self.snapshot.parts[number].stored, default=None
        )
        if largest is None:
            return False
        return _depth([(group.first_key, group.last_key) for group in self._groups_of(largest)]) > _DEPTH

    def _sort(self) -> duckdb.DuckDBPyConnection:
        connection = self._stack.enter_context(scratch_database())
        connection.execute("SET preserve_insertion_order = false")
        load(connection, "loaded", LIVE, self.every())
        connection.execute("SET preserve_insertion_order = true")
        connection.execute("CREATE TABLE live AS FROM loaded ORDER BY key")
        connection.execute("DROP TABLE loaded")
        return connection


def _depth(spans: Sequence[tuple[str, str]]) -> int:
    """The largest number of spans (first, last) over one key."""
    edges = sorted([(first, 0) for first, _ in spans] + [(last, 1) for _, last in spans])
    depth = most = 0
    for _, is_end in edges:
        depth += -1 if is_end else 1
        most = max(most, depth)
    return most
