"""DuckDB databases on the local disk, for rows that do not fit into memory."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa

MEMORY: Final = "512MB"
"""The memory that a database may use before it spills to the disk."""


@contextmanager
def scratch_database() -> Iterator[duckdb.DuckDBPyConnection]:
    """Open an empty database below TMPDIR, which is deleted when the context ends. It uses MEMORY and two threads."""
    with (
        tempfile.TemporaryDirectory(prefix="da2ray-scratch-") as folder,
        duckdb.connect(str(Path(folder) / "scratch.duckdb")) as database,
    ):
        database.execute(f"SET memory_limit = '{MEMORY}'")
        database.execute("SET threads = 2")
        yield database


def load(
    database: duckdb.DuckDBPyConnection, table: str, schema: pa.Schema, rows: Iterable[pa.Table | pa.RecordBatch]
) -> None:
    """Make a table of rows of this schema. `table` is a name that our own code chose."""
    database.register("rows", schema.empty_table())
    database.execute(f"CREATE TABLE {table} AS FROM rows")
    database.unregister("rows")
    for each in rows:
        append(database, table, each)


def append(database: duckdb.DuckDBPyConnection, table: str, rows: pa.Table | pa.RecordBatch) -> None:
    """Add rows to a table that `load` made."""
    database.register("rows", rows)
    database.execute(f"INSERT INTO {table} FROM rows")
    database.unregister("rows")
