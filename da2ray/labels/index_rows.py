"""The index rows of a snapshot, or the rows of it that a view keeps, read part by part on demand."""

import bisect
import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from da2ray.labels.parts import read_part
from da2ray.labels.schema import INDEX
from da2ray.labels.snapshots import Snapshot
from da2ray.parallel import look_ahead
from da2ray.storage import Store

THREADS: Final = 4
"""Parts that `tables` reads at once. A part is 40 MB stored and about 130 MB in memory (256,000 rows of 150 and 510 bytes,
measured with scores and masks)."""
BATCH: Final = 256
"""Rows that are turned into Python objects at once, in a tenth of the time that one by one takes."""
REPEATED: Final = ("object", "status", "reason", "kind")
"""Columns of few distinct values; as strings they are a quarter of a row's bytes."""


class IndexRows:
    """Index rows by their position, from 0. Threads may share an instance.

    Args:
        store, snapshot: what to read.
        positions: the rows of the snapshot to take, int64, ascending; None for all.
        columns: the columns of INDEX that `row` and `rows` return.
    """

    def __init__(
        self,
        store: Store,
        snapshot: Snapshot,
        positions: np.ndarray | None = None,
        columns: Sequence[str] = INDEX.names,
    ) -> None:
        self._store = store
        self._parts = snapshot.parts
        self._positions = positions
        self._columns = list(columns)
        # For each part, and for the end: its first row in the snapshot, and the number of rows taken before it.
        self._firsts = [0, *itertools.accumulate(part.rows for part in snapshot.parts)]
        self._starts = self._firsts if positions is None else np.searchsorted(positions, self._firsts).tolist()
        self._held: dict[int, pa.Table] = {}
        self._locks = [threading.Lock() for _ in snapshot.parts]

    def __len__(self) -> int:
        return self._starts[-1]

    def row(self, position: int) -> dict[str, Any]:
        """One row. Its part stays in memory, so asking for rows at random ends with all parts in memory."""
        part = self._part_of(position)
        with self._locks[part]:
            if part not in self._held:
                self._held[part] = _compact(self._read(part, self._columns))
        return self._held[part].slice(position - self._starts[part], 1).to_pylist()[0]

    def rows(self, positions: Iterable[int]) -> Iterator[dict[str, Any]]:
        """The rows at these positions, in this order, with one part in memory at a time if positions ascend or descend."""
        for part, group in itertools.groupby(positions, self._part_of):
            held = self._held.get(part)
            table = self._read(part, self._columns) if held is None else held
            while batch := list(itertools.islice(group, BATCH)):
                yield from table.take(np.array(batch) - self._starts[part]).to_pylist()

    def tables(self, columns: Sequence[str] = INDEX.names) -> Iterator[pa.Table]:
        """All rows in order, one table for each part that has any, a few parts in memory at a time."""
        there = [part for part in range(len(self._parts)) if self._starts[part] < self._starts[part + 1]]
        return look_ahead(lambda part: self._read(part, columns), there, THREADS, "index")

    def _part_of(self, position: int) -> int:
        return bisect.bisect_right(self._starts, position) - 1

    def _read(self, part: int, columns: Sequence[str]) -> pa.Table:
        """The rows of a part, in one chunk because they are looked up one by one."""
        table = read_part(self._store, self._parts[part], columns).combine_chunks()
        if self._positions is None:
            return table
        return table.take(self._positions[self._starts[part] : self._starts[part + 1]] - self._firsts[part])


def _compact(table: pa.Table) -> pa.Table:
    for place, name in enumerate(table.column_names):
        if name in REPEATED:
            table = table.set_column(place, name, table[name].dictionary_encode())
    return table
