"""A DuckDB database of one snapshot's labelled rows, on the local disk, so that queries may span more rows than fit in memory."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from da2ray.console import OnProgress
from da2ray.errors import Status, UserError
from da2ray.labels.parts import Part, read_part
from da2ray.labels.schema import INDEX
from da2ray.labels.snapshots import Snapshot
from da2ray.parallel import look_ahead
from da2ray.storage import Store

TABLE: Final = "labels"
THREADS: Final = 2
"""Index parts read at a time: each as a whole, since its name is the hash of its bytes. Only the wanted columns are decoded."""

MEMORY: Final = "4GB"
"""The memory that DuckDB may use before it spills to the disk."""

FULL: Final = (duckdb.IOException, duckdb.OutOfMemoryException)
"""What DuckDB raises if neither memory nor the disk has room."""


@contextmanager
def open_catalog(
    store: Store, snapshot: Snapshot, columns: Iterable[str], on_progress: OnProgress | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a table `labels`: these columns of the snapshot's labelled rows, and `row`, a row's position in the index.

    NaN becomes NULL, because SQL sorts NaN above all numbers. The connection reaches neither files nor Python variables.
    The table lives in a temporary folder (below TMPDIR), which is deleted when the context ends.

    Raises:
        UserError: no row is labelled; or the disk is full, which may also be raised from within the context.
        OSError: the store failed, or an index part is corrupt.
    """
    if not snapshot.by_status.get(Status.LABELLED.value):
        raise UserError(f"snapshot {snapshot.number} of {store.url} has no labelled rows to choose from")
    fields = [INDEX.field(name) for name in INDEX.names if name in set(columns) and name != "row"]
    with (
        tempfile.TemporaryDirectory(prefix="da2ray-catalog-") as folder,
        duckdb.connect(str(Path(folder) / "labels.duckdb")) as connection,
    ):
        connection.execute(f"SET temp_directory = '{folder.replace(chr(39), 2 * chr(39))}'")
        connection.execute(f"SET memory_limit = '{MEMORY}'")
        connection.execute("SET preserve_insertion_order = false")
        _create(connection, pa.schema([pa.field("row", pa.int64()), *fields]))
        _lock(connection)
        try:
            _load(connection, store, snapshot, [field.name for field in fields], on_progress)
            yield connection
        except FULL as error:
            said = " ".join(str(error).split())[:200]
            raise UserError(f"no room below {folder} ({said}): set TMPDIR to a folder on a larger disk") from None


@contextmanager
def blank_catalog() -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a table `labels` with all columns of the index and one row of NULLs, to check expressions before anything is read.

    The row makes DuckDB notice literals that should be numbers and are not.
    """
    with duckdb.connect() as connection:
        _create(connection, INDEX)
        connection.execute(f"INSERT INTO {TABLE} (key) VALUES (NULL)")  # noqa: S608
        _lock(connection)
        yield connection


def _create(connection: duckdb.DuckDBPyConnection, schema: pa.Schema) -> None:
    connection.register("empty", schema.empty_table())
    connection.execute(f"CREATE TABLE {TABLE} AS FROM empty")
    connection.unregister("empty")


def _lock(connection: duckdb.DuckDBPyConnection) -> None:
    # Users write the expressions, and a service may run this with rights that its users do not have.
    connection.execute("SET enable_external_access = false")
    connection.execute("SET python_enable_replacements = false")
    connection.execute("SET lock_configuration = true")


def _load(
    connection: duckdb.DuckDBPyConnection,
    store: Store,
    snapshot: Snapshot,
    names: list[str],
    on_progress: OnProgress | None,
) -> None:
    done = 0
    for part, rows in zip(
        snapshot.parts,
        look_ahead(lambda part: _labelled(store, part, names), snapshot.parts, THREADS, "catalog"),
        strict=True,
    ):
        places = pc.add(rows["row"], done)
        connection.register("part", rows.set_column(0, "row", places))
        connection.execute(f"INSERT INTO {TABLE} FROM part")
        connection.unregister("part")
        done += part.rows
        if on_progress:
            on_progress(done, snapshot.rows)


def _labelled(store: Store, part: Part, names: list[str]) -> pa.Table:
    """The labelled rows of an index part; `row` is a row's position in the part."""
    rows = read_part(store, part, list({"status", *names}))
    columns = {"row": pa.array(np.arange(len(rows)))}
    for name in names:
        column = rows[name]
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        columns[name] = column
    return pa.table(columns).filter(pc.equal(rows["status"], Status.LABELLED.value))
