"""The list of a view's rows. It is Parquet, the same rows give the same bytes, and it is written and read a row group at a time.

Memory: one row group while a list is written, 8 bytes a row while it is read.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from da2ray.errors import CorruptError
from da2ray.labels.stored import intact
from da2ray.storage import Store, StoreFile

KEPT: Final = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
    ]
)
"""A kept row: its position in the snapshot's index, from 0, ascending; its key; its split, "train" or "val"."""

_REMEDY: Final = "open the view again if it was replaced, else make it again with jobs/curate.py --replace"

ROWS_PER_GROUP: Final = 1 << 20
"""Writing takes 280 MB on top of the process's start, at 6.2M rows and at 12.4M alike. 62M rows are 60 groups, and a reader
fetches two columns of each."""


def write_kept(path: Path, kept: pa.Table | Iterable[pa.RecordBatch], rows: int) -> Counter[str]:
    """Write the list and count its splits.

    Args:
        path: of the file to write.
        kept: KEPT, ascending, in batches of any size; batches do not show in the bytes.
        rows: number of rows of the snapshot.

    Raises:
        ValueError: rows are not ascending positions below `rows`, or a value is missing.
    """
    by_split: Counter[str] = Counter()
    last = -1
    with pq.ParquetWriter(
        path,
        KEPT,
        compression="zstd",
        use_dictionary=["split"],
        column_encoding={"row": "DELTA_BINARY_PACKED"},
        write_statistics=["row"],
        write_page_checksum=True,
    ) as writer:
        for group in _groups(kept.to_batches() if isinstance(kept, pa.Table) else kept):
            if any(column.null_count for column in group.columns):
                raise ValueError("a kept row lacks its position, its key or its split")
            last = _check_ascending(group["row"].to_numpy(), last, rows)
            by_split.update(_by_split(group))
            writer.write_table(group, row_group_size=ROWS_PER_GROUP)
    return by_split


def read_kept(store: Store, key: str, split: str | None, count: int, rows: int) -> np.ndarray:
    """The positions in the list, or those of one split: int64, ascending.

    Args:
        key: of the list.
        split: None for all.
        count: the number of positions that the view states.
        rows: number of rows of the snapshot.

    Raises:
        CorruptError: the list is missing, broken, or not what the view says.
        OSError: the store failed.
    """
    try:
        with intact(store, key, "the list of its view", _REMEDY):
            return _read(pq.ParquetFile(StoreFile(store, key), page_checksum_verification=True), split, count, rows)
    except FileNotFoundError as error:
        raise CorruptError(f"{store.url}/{key} is missing, the list of its view: {_REMEDY}") from error


def count_kept(store: Store, key: str) -> Counter[str]:
    """The number of rows of each split in a list whose bytes are known to be right.

    Raises:
        CorruptError: the bytes are not a list.
        OSError: the store failed.
    """
    counts: Counter[str] = Counter()
    with intact(store, key, "the list of its view", _REMEDY):
        file = pq.ParquetFile(StoreFile(store, key))
        for group in range(file.num_row_groups):
            counts.update(_by_split(file.read_row_group(group, columns=["split"])))
    return counts


def _by_split(kept: pa.Table) -> dict[str, int]:
    return {each["values"]: each["counts"] for each in pc.value_counts(kept["split"]).to_pylist()}


def _read(file: pq.ParquetFile, split: str | None, count: int, rows: int) -> np.ndarray:
    there = file.metadata.num_rows
    if there < count or (split is None and there > count):  # before memory is taken for them
        raise ValueError(f"it has {there} rows, the view says {count}")
    found = np.empty(count, dtype=np.int64)
    done = 0
    for group in range(file.num_row_groups):
        kept = file.read_row_group(group, columns=["row", "split"])
        if split is not None:
            kept = kept.filter(pc.equal(kept["split"], split))
        if done + len(kept) <= count:
            found[done : done + len(kept)] = kept["row"].to_numpy()
        done += len(kept)
    if done != count:
        raise ValueError(f"it has {done} rows, the view says {count}")
    _check_ascending(found, -1, rows)
    return found


def _groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Tables of schema KEPT in one chunk each, of ROWS_PER_GROUP rows but for the last."""
    waiting: list[pa.Table] = []
    rows = 0
    for batch in batches:
        waiting.append(pa.Table.from_batches([batch]).select(KEPT.names).cast(KEPT))
        rows += len(batch)
        while rows >= ROWS_PER_GROUP:
            together = pa.concat_tables(waiting)
            yield together.slice(0, ROWS_PER_GROUP).combine_chunks()
            waiting, rows = [together.slice(ROWS_PER_GROUP)], rows - ROWS_PER_GROUP
    if rows:
        yield pa.concat_tables(waiting).combine_chunks()


def _check_ascending(positions: np.ndarray, last: int, rows: int) -> int:
    """The last of the positions, or `last` if there are none.

    Raises:
        ValueError: a position is not above the one before it, the first is not above `last`, or one is not below `rows`.
    """
    if not len(positions):
        return last
    if positions[0] <= last or positions[-1] >= rows or (np.diff(positions) <= 0).any():
        raise ValueError(f"kept rows must be ascending positions below {rows}")
    return int(positions[-1])
