"""Parts: the files of an index. A part never changes; rows that are not live any more are listed beside it.

A part holds the rows of a fixed range of one plan's shards and is named after its content, so snapshots share the parts that did
not change. When a later plan replaces some of its rows, the next snapshot names a list of their positions with the part
(`index/<name>.retired.parquet`), and nothing else is written. A part is written anew, without the retired rows, once they are
more than RETIRED_SHARE of it.

Row groups are small and their first columns are what a refresh compares, so that it reads a tenth of a part.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from da2ray.errors import CorruptError
from da2ray.labels.commits import REPEATED, CommitEntry
from da2ray.labels.schema import INDEX, conform
from da2ray.labels.stored import Stored, intact
from da2ray.storage import Store

GROUP_ROWS: Final = 16_384
"""Rows of a row group: 2.8 MB stored. The footer of a part of 16 of them takes 70 kB."""
RETIRED_SHARE: Final = 0.2
FIRST_COLUMNS: Final = ("key", "etag", "version", "status", "reason", "fingerprint", "plan", "shard", "row")
"""They lie next to each other at the start of a row group: one range GET fetches all."""
RETIRED: Final = pa.schema([pa.field("row", pa.int32(), nullable=False)])
"""Positions in the part, ascending."""

Refs = tuple[tuple[str, int, int], ...]


class Folded(Stored):
    """A range of one plan's shards whose commits are in a snapshot.

    Attributes:
        plan, first_shard, last_shard: both ends included.
        commits: digest of the listing of the commits that were folded.
        superseded: number of their rows that are not live, because a later plan has their key or because they only say that a
            sample is gone.
        gone: number of their rows that say so.
    """

    plan: str
    first_shard: int
    last_shard: int
    commits: str
    superseded: int
    gone: int = 0


class Part(Folded):
    """A range with live rows: one file of the index.

    Attributes:
        name: the object is `index/<name>.parquet`; first 32 hexadecimal digits of its bytes' sha256.
        stored: number of rows in the file.
        retired: name of the list of those that are not live: `index/<retired>.retired.parquet`, named likewise; None if all are.
        rows, by_status, by_reason, by_fingerprint: counts of the live rows.
        first_key, last_key: the smallest and the largest key in the file.
        refs: (plan, first shard, last shard) of shards of other plans whose objects hold labels of these rows.
    """

    name: str = Field(pattern=r"^[0-9a-f]{32}$")
    stored: int = Field(ge=0)
    retired: str | None = Field(None, pattern=r"^[0-9a-f]{32}$")
    rows: int = Field(ge=0)
    by_status: dict[str, int]
    by_reason: dict[str, int]
    by_fingerprint: dict[str, int]
    first_key: str
    last_key: str
    refs: Refs = ()

    @property
    def key(self) -> str:
        return f"index/{self.name}.parquet"

    @property
    def retired_key(self) -> str | None:
        return None if self.retired is None else f"index/{self.retired}.retired.parquet"

    @property
    def keys(self) -> list[str]:
        """The objects that the part needs."""
        return [self.key] if self.retired_key is None else [self.key, self.retired_key]

    @property
    def is_whole(self) -> bool:
        """Whether the file has every row of its commits that can ever be live."""
        return self.stored + self.gone == self.rows + self.superseded


class PartWriter:
    """Writes parts and lists of retired rows to a dataset.

    An object that exists under a name has the same content: it is a leftover of another writer, or of one that was killed, and
    no snapshot may name it yet. Written again, it is whole, and too young for a `gc` that is about to remove it.
    """

    def __init__(self, store: Store, there: Iterable[str] = ()) -> None:
        """`there`: keys of objects that the parent snapshot names and the store has."""
        self._store = store
        self._there = set(there)

    def part(self, of: Folded, rows: pa.Table) -> Part:
        """Write the rows (INDEX) as a part of the range `of`, all of them live; `of.superseded` are others."""
        data = _serialise(rows)
        name = content_name(data)
        self._write(f"index/{name}.parquet", data)
        keys, counts = rows["key"], counts_of(rows)
        return Part(
            **of.model_dump(),
            name=name,
            stored=len(rows),
            rows=len(rows),
            by_status=counts["by_status"],
            by_reason=counts["by_reason"],
            by_fingerprint=counts["by_fingerprint"],
            first_key=pc.min(keys).as_py(),
            last_key=pc.max(keys).as_py(),
            refs=_refs(rows, of),
        )

    def retire(self, part: Part, positions: np.ndarray, counts: dict[str, dict[str, int]]) -> Part:
        """The part with rows retired.

        Args:
            part: a part.
            positions: of all its retired rows, those that were retired before among them; ascending.
            counts: `counts_of` the rows that remain live.
        """
        name = None
        if len(positions):
            data = _write_table(pa.table([pa.array(positions, pa.int32())], schema=RETIRED), {})
            name = content_name(data)
            self._write(f"index/{name}.retired.parquet", data)
        live = part.stored - len(positions)
        dead = part.superseded + part.rows - live
        return part.model_copy(update={"retired": name, "rows": live, "superseded": dead, **counts})

    def _write(self, key: str, data: bytes) -> None:
        if key not in self._there and not self._store.create(key, data):
            self._store.put(key, data)


def counts_of(rows: pa.Table) -> dict[str, dict[str, int]]:
    """The counts of a `Part`."""
    return {f"by_{name}": _counts(rows[name]) for name in ("status", "reason", "fingerprint")}


def read_part(store: Store, part: Part, columns: Sequence[str] | None = None, *, retired: bool = False) -> pa.Table:
    """The live rows of a part: INDEX, or the given columns of it. A column that an older release did not write is null.

    Args:
        retired: return the retired rows too, in their places.

    Raises:
        CorruptError: the part or its list is missing, or its bytes do not hash to its name.
        OSError: the store failed.
    """
    wanted = INDEX if columns is None else pa.schema([INDEX.field(name) for name in columns])
    data = _read(store, part.key, part.name)
    with intact(store, part.key, "a part of the index", _remedy(store)), pq.ParquetFile(pa.BufferReader(data)) as file:
        if file.metadata.num_rows != part.stored:
            raise ValueError(f"it has {file.metadata.num_rows} rows, the snapshot says {part.stored}")
        names = set(file.schema_arrow.names)  # made anew each time that it is asked for
        rows = conform(file.read(columns=[name for name in wanted.names if name in names]), wanted)
    return rows if retired else without(rows, retired_rows(store, part))


def retired_rows(store: Store, part: Part) -> np.ndarray:
    """The positions of a part's retired rows: int32, ascending.

    Raises:
        CorruptError: the list is missing or broken.
        OSError: the store failed.
    """
    if part.retired is None or part.retired_key is None:
        with intact(store, part.key, "this part of the index", _remedy(store)):
            if part.rows != part.stored:
                raise ValueError(f"it has {part.stored} rows, the snapshot says {part.rows}")
        return np.empty(0, np.int32)
    data = _read(store, part.retired_key, part.retired)
    with intact(store, part.retired_key, "a list of retired rows", _remedy(store)):
        positions = pq.read_table(pa.BufferReader(data), schema=RETIRED)["row"].to_numpy()
        if len(positions) + part.rows != part.stored or (len(positions) and positions[-1] >= part.stored):
            raise ValueError(f"it has {len(positions)} rows, the snapshot says {part.stored - part.rows}")
        return positions


def without(rows: pa.Table, positions: np.ndarray) -> pa.Table:
    """The rows but for those at these positions."""
    if not len(positions):
        return rows
    live = np.ones(len(rows), np.bool_)
    live[positions] = False
    return rows.filter(pa.array(live))


def is_whole(store: Store, key: str) -> bool:
    """Whether the bytes of an object of the index hash to its name; True also if it was removed meanwhile.

    Raises:
        OSError: the store failed.
    """
    try:
        return key.removeprefix("index/").partition(".")[0] == content_name(store.get(key))
    except FileNotFoundError:
        return True


def commits_digest(entries: Sequence[CommitEntry]) -> str:
    """The value of `Folded.commits`: 32 hexadecimal digits that change when one of the commits does."""
    lines = "".join(f"{entry.shard} {entry.version}\n" for entry in entries)
    return hashlib.sha256(lines.encode()).hexdigest()[:32]


def content_name(data: bytes) -> str:
    """The name of an object of the index."""
    return hashlib.sha256(data).hexdigest()[:32]


def _read(store: Store, key: str, name: str) -> bytes:
    try:
        with intact(store, key, "an object of the index", _remedy(store)):
            data = store.get(key)
            if content_name(data) != name:
                raise ValueError("its bytes do not hash to its name")
            return data
    except FileNotFoundError as error:
        raise CorruptError(f"{store.url}/{key} is missing, a part of the index: {_remedy(store)}") from error


def _remedy(store: Store) -> str:
    return f"run `da2ray repair {store.url}`"


def _serialise(rows: pa.Table) -> bytes:
    # Chunks show in the file's pages. With one chunk, the same rows give the same bytes however they were read.
    rows = rows.select([*FIRST_COLUMNS, *(name for name in INDEX.names if name not in FIRST_COLUMNS)]).combine_chunks()
    plain = {name: "none" if name == "sha256" else "zstd" for name in rows.column_names}
    return _write_table(rows, plain)


def _write_table(rows: pa.Table, compression: dict[str, str]) -> bytes:
    """A table as Parquet. In each column chunk all values are one page, those of sha256 uncompressed: `HashReader`."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        rows,
        sink,
        compression=compression or "zstd",
        use_dictionary=[name for name in REPEATED if name in rows.column_names],
        write_statistics=[name for name in ("key", "sha256") if name in rows.column_names],
        write_page_checksum=True,
        row_group_size=GROUP_ROWS,
        data_page_version="1.0",
        data_page_size=(1 << 31) - 1,
        write_batch_size=GROUP_ROWS,
    )
    return sink.getvalue().to_pybytes()


def _refs(rows: pa.Table, of: Folded) -> Refs:
    """The shards of other plans, from the names of their objects: `shards/<plan>/<shard>-<attempt>.<format>`."""
    found: dict[str, list[int]] = {}
    for key in pc.unique(pc.drop_null(rows["object"])).to_pylist():
        _, plan, name = key.split("/")
        if plan != of.plan or not of.first_shard <= int(name.partition("-")[0]) <= of.last_shard:
            found.setdefault(plan, []).append(int(name.partition("-")[0]))
    return tuple((plan, min(shards), max(shards)) for plan, shards in sorted(found.items()))


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    return dict(sorted(Counter(pc.drop_null(column).to_pylist()).items()))
