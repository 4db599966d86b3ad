"""Measure what a refresh reads and writes: `--refresh-rows`. The dataset and its source are simulated, without images.

The rows of the index are a function of their numbers, so a dataset of any size needs no disk: parts are made when they are read.
A refresh runs on it as on any other, but that rows are committed without labels.
"""

import resource
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from da2ray.labels import fold
from da2ray.labels.commits import REPLACES, CommitEntry, Update, commit_key, commit_shard
from da2ray.labels.live_rows import LiveRows
from da2ray.labels.parts import Folded, Part, PartWriter, commits_digest
from da2ray.labels.schema import INDEX, SCORE_COLUMNS
from da2ray.labels.shards.base import ShardFormat
from da2ray.labels.shards.formats import build_shard
from da2ray.labels.snapshots import Snapshot, create_snapshot, open_snapshot, snapshot_key
from da2ray.plan.changes import compare, listing_of
from da2ray.plan.plan import make_plan
from da2ray.plan.refresh import RefreshSource, commit_gone
from da2ray.plan.update import Purpose, unpack
from da2ray.sources import members
from da2ray.sources.base import Member, Sample
from da2ray.sources.members import MEMBERS, MemberSource
from da2ray.storage import LIST_SCHEMA, Fetched, Stat, Store

PLAN: Final = "0" * 16
FINGERPRINT: Final = "f" * 16
SHARD_ROWS: Final = 256
LIST_ROWS: Final = 16_384
"""Rows of a batch of the listing; etags of so many rows come from one seed."""
FOLDER_ROWS: Final = 10_000
HASHES: Final = 32


@dataclass(frozen=True, slots=True)
class Measured:
    """What a refresh took, in bytes of the dataset's store.

    Attributes:
        index: bytes of all parts of the snapshot before.
        read, written: by folder.
    """

    name: str
    changes: int
    index: int
    read: Counter[str]
    written: Counter[str]
    seconds: float

    @property
    def read_share(self) -> float:
        return self.read.total() / self.index

    @property
    def written_share(self) -> float:
        """What is written to the index and for the refresh itself; labels and the rows of what changed are in `shards`."""
        return (self.written.total() - self.written["shards"]) / self.index


@dataclass
class SimulatedStore:
    """A store in memory, in which the parts and the commits of the first plan are made when they are read."""

    rows: int
    url: str = "/simulated"
    read: Counter[str] = field(default_factory=Counter)
    written: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)
    _objects: dict[str, bytes] = field(default_factory=dict)
    _parts: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Key of a part -> its number and its size."""
    _made: tuple[str, bytes] = ("", b"")

    def prepare(self) -> Snapshot:
        """Make the first snapshot, and its listing."""
        shards = -(-self.rows // SHARD_ROWS)
        parts: list[Part] = []
        for number, first in enumerate(range(0, shards, fold.SHARDS_PER_PART)):
            last = min(first + fold.SHARDS_PER_PART, shards) - 1
            entries = [CommitEntry(shard, "1") for shard in range(first, last + 1)]
            of = Folded(plan=PLAN, first_shard=first, last_shard=last, commits=commits_digest(entries), superseded=0)
            part = PartWriter(self).part(of, self._rows_of(number))
            self._parts[part.key] = (number, len(self._objects[part.key]))
            self._made = (part.key, self._objects.pop(part.key))
            parts.append(part)
        snapshot = Snapshot(
            number=1,
            parent=None,
            created="",
            fingerprint=FINGERPRINT,
            fingerprints=(FINGERPRINT,),
            plans=(PLAN,),
            rows=self.rows,
            by_status={"rejected": self.rows},
            by_reason={},
            parts=tuple(parts),
        )
        self._objects[snapshot_key(1)] = snapshot.model_dump_json().encode()
        with LiveRows(self, snapshot) as rows:
            listing_of(self, rows)
        return snapshot

    @property
    def index_bytes(self) -> int:
        return sum(size for _, size in self._parts.values())

    def reset(self) -> None:
        """Forget what a refresh wrote, and count anew."""
        kept = (snapshot_key(1), "listings/")
        self._objects = {key: data for key, data in self._objects.items() if key.startswith(kept)}
        self.read.clear()
        self.written.clear()

    def _rows_of(self, part: int) -> pa.Table:
        size = fold.SHARDS_PER_PART * SHARD_ROWS
        return index_rows(part * size, min(size, self.rows - part * size))

    def _data(self, key: str) -> bytes:
        if key in self._objects:
            return self._objects[key]
        if key not in self._parts:
            raise FileNotFoundError(key)
        if self._made[0] != key:
            number, _ = self._parts[key]
            writer = SimulatedStore(self.rows)
            of = Folded(plan=PLAN, first_shard=0, last_shard=1 << 60, commits="", superseded=0)
            PartWriter(writer).part(of, self._rows_of(number))
            self._made = (key, writer._objects[key])
        return self._made[1]

    def get(self, key: str) -> bytes:
        data = self._data(key)
        self.read[key.partition("/")[0]] += len(data)
        return data

    def fetch(self, key: str) -> Fetched:
        return Fetched(self.get(key), None)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        self.read[key.partition("/")[0]] += length
        return self._data(key)[offset : offset + length]

    def stat(self, key: str) -> Stat:
        size = self._parts[key][1] if key in self._parts else len(self._data(key))
        return Stat(size, None)

    def put(self, key: str, data: bytes) -> None:
        self.written[key.partition("/")[0]] += len(data)
        self._objects[key] = data

    def put_file(self, key: str, path: Path) -> None:
        self.put(key, path.read_bytes())

    def create(self, key: str, data: bytes) -> bool:
        if key in self._objects or key in self._parts:
            return False
        self.put(key, data)
        return True

    def create_file(self, key: str, path: Path) -> bool:
        return self.create(key, path.read_bytes())

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._objects.pop(key, None)

    def list(self, prefix: str = "") -> Iterator[pa.RecordBatch]:
        listed = [(key, len(data)) for key, data in self._objects.items()]
        listed += [(key, size) for key, (_, size) in self._parts.items()]
        if "commits".startswith(prefix.partition("/")[0]) and prefix in ("", "commits", f"commits/{PLAN}"):
            listed += [(commit_key(PLAN, shard), 1) for shard in range(-(-self.rows // SHARD_ROWS))]
        listed = sorted(each for each in listed if not prefix or each[0].startswith(f"{prefix}/"))
        for start in range(0, len(listed), 10_000):
            keys, sizes = zip(*listed[start : start + 10_000], strict=True)
            yield pa.record_batch([list(keys), list(sizes), pa.nulls(len(keys), pa.string())], schema=LIST_SCHEMA)


@dataclass
class SimulatedSource(MemberSource):
    """The listing: all rows, a third of the chosen ones with another etag, a third missing, and a new key behind each other one.

    Attributes:
        chosen: numbers of rows, ascending.
    """

    rows: int
    chosen: np.ndarray
    root: str = "s3://simulated/images"
    kind: str = "prefix"
    url: str = "s3://simulated/images"
    looks_for: str = "rows"
    in_key_order = True

    def describe(self) -> dict[str, str]:
        return {"kind": self.kind, "url": self.url}

    def members(self, limit: int | None = None) -> Iterator[pa.RecordBatch]:  # noqa: ARG002
        for start in range(0, self.rows, LIST_ROWS):
            numbers = np.arange(start, min(start + LIST_ROWS, self.rows))
            keys, etags = _keys(numbers), _etags(numbers)
            here = self.chosen[np.searchsorted(self.chosen, start) : np.searchsorted(self.chosen, start + LIST_ROWS)]
            if len(here):
                which = np.searchsorted(self.chosen, start) + np.arange(len(here))
                changed = pa.array(np.isin(numbers, here[which % 3 == 0]))
                gone = np.isin(numbers, here[which % 3 == 1])
                new = pc.binary_join_element_wise(_keys(here[which % 3 == 2]), "b.jpg", ".")
                etags = pc.if_else(changed, pc.utf8_reverse(etags), etags)
                keep = pa.array(~gone)
                table = pa.table({"key": pa.concat_arrays([keys.filter(keep), new])})
                made = pa.array([f"{number:032x}" for number in range(start, start + len(new))])
                table = table.append_column("etag", pa.concat_arrays([etags.filter(keep), made])).sort_by("key")
                keys, etags = (table[name].combine_chunks() for name in ("key", "etag"))
            uris = pc.binary_join_element_wise(self.root, keys, "/")
            sizes = pa.array(np.full(len(keys), 100_000))
            nothing = (pa.nulls(len(keys), MEMBERS.field(name).type) for name in MEMBERS.names[4:])
            yield pa.record_batch([keys, uris, sizes, etags, *nothing], schema=MEMBERS)

    def fetch(self, members: Iterable[Member], concurrency: int) -> Iterator[Sample]:
        raise NotImplementedError("the simulation reads no image")


def measure_refresh(rows: int, console: Console) -> int:
    """Measure a refresh of so many rows of which one in a thousand changed, in one folder and scattered, and print a table."""
    console.print(f"making the index of {rows:,} rows")
    table = Table("changes", "read", "of the index", "written", "of the index", "seconds", box=None)
    for each in refreshes(rows):
        written = each.written.total() - each.written["shards"]
        cells = [f"{each.read.total():,}", f"{each.read_share:.2%}", f"{written:,}", f"{each.written_share:.2%}"]
        table.add_row(f"{each.changes:,} {each.name}", *cells, f"{each.seconds:.0f}")
    console.print(table)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    console.print(f"memory: {peak / 1e9:.2f} GB at most")
    return 0


def refreshes(rows: int) -> Iterator[Measured]:
    """The same dataset refreshed: with nothing changed, with rows / 1000 changes in one folder, and with as many scattered."""
    store = SimulatedStore(rows)
    snapshot = store.prepare()
    changes = rows // 1000
    for name, chosen in (
        ("", np.empty(0, np.int64)),
        ("in one folder", np.arange(changes) + rows // 2),
        ("scattered", np.arange(changes) * 1000 + 7),
    ):
        store.reset()
        began = time.monotonic()
        _refresh(SimulatedSource(rows, chosen), store, snapshot)
        yield Measured(
            name, len(chosen), store.index_bytes, Counter(store.read), Counter(store.written), time.monotonic() - began
        )


def _refresh(source: SimulatedSource, store: SimulatedStore, snapshot: Snapshot) -> None:
    as_store: Store = store
    with compare(source, as_store, snapshot) as changes:
        if changes.summary.is_empty:
            return
        plan = make_plan(
            RefreshSource(source, as_store, snapshot.number, changes),
            as_store,
            shard_size=SHARD_ROWS,
            limit=None,
            fingerprint=FINGERPRINT,
            purpose=Purpose.REFRESH,
            parent=snapshot.number,
        )
    for shard, spec in plan.specs(plan.remaining(as_store, gone=False)):
        inner, before = unpack(spec)
        listed = members.unpack(inner, source.root)
        rows = index_rows(shard.number * SHARD_ROWS, len(listed))
        own = {"key": listed.column("key"), "uri": listed.column("uri"), "etag": listed.column("etag")}
        own |= {"plan": pa.repeat(plan.id, len(rows)), "shard": pa.repeat(shard.number, len(rows))}
        for column, values in own.items():
            rows = rows.set_column(INDEX.get_field_index(column), INDEX.field(column), values)
        built = build_shard(rows, [None] * len(rows), ShardFormat.PARQUET)
        update = Update(snapshot.number, before.select(REPLACES.names), INDEX.empty_table())
        commit_shard(as_store, plan.id, shard.number, built, FINGERPRINT, update=update)
    commit_gone(as_store, plan, ShardFormat.PARQUET, FINGERPRINT)
    made = create_snapshot(as_store, [PLAN, plan.id], FINGERPRINT)
    thirds = [len(source.chosen[start::3]) for start in range(3)]
    assert made.rows == source.rows - thirds[1] + thirds[2], made.rows  # noqa: S101
    assert open_snapshot(as_store).number == made.number == snapshot.number + 1  # noqa: S101


def index_rows(first: int, count: int) -> pa.Table:
    """Rows of the index (INDEX) with as many values as real ones: 137 bytes a row at 600,000 rows, where real ones take 174."""
    numbers = np.arange(first, first + count)
    keys = _keys(numbers)
    random = np.random.default_rng(first)
    columns: dict[str, pa.Array] = {
        "key": keys,
        "uri": pc.binary_join_element_wise("s3://simulated/images", keys, "/"),
        "etag": _etags(numbers),
        "sha256": pa.Array.from_buffers(pa.binary(HASHES), count, [None, pa.py_buffer(random.bytes(HASHES * count))]),
        "status": pa.repeat("rejected", count),
        "plan": pa.repeat(PLAN, count),
        "shard": pa.array(numbers // SHARD_ROWS),
        "row": pa.array((numbers % SHARD_ROWS).astype(np.int32)),
        "byte_crc32": pa.array(random.integers(0, 1 << 32, count, dtype=np.uint32)),
        "scale": pa.array(random.random(count, dtype=np.float32)),
        "fingerprint": pa.repeat(FINGERPRINT, count),
    }
    columns |= {name: pa.array(random.random(count, dtype=np.float32)) for name in SCORE_COLUMNS.names[:SCORES]}
    return pa.table(
        [columns[each.name].cast(each.type) if each.name in columns else pa.nulls(count, each.type) for each in INDEX],
        schema=INDEX,
    )


SCORES: Final = 22
"""Scores that a row has; the others are null."""


def _keys(numbers: np.ndarray) -> pa.Array:
    folders = pc.utf8_lpad(pa.array(numbers // FOLDER_ROWS).cast(pa.string()), 6, "0")
    names = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 10, "0")
    return pc.binary_join_element_wise(folders, pc.binary_join_element_wise(names, "jpg", "."), "/")


def _etags(numbers: np.ndarray) -> pa.Array:
    """Consecutive rows' etags: 32 hexadecimal digits each, a function of the row alone."""
    blocks = range(int(numbers[0]) // LIST_ROWS, int(numbers[-1]) // LIST_ROWS + 1)
    digits = [np.random.default_rng((1, block)).bytes(16 * LIST_ROWS).hex() for block in blocks]
    start = 32 * (int(numbers[0]) % LIST_ROWS)
    text = "".join(digits)[start : start + 32 * len(numbers)].encode()
    offsets = pa.py_buffer(np.arange(0, 32 * len(numbers) + 1, 32, dtype=np.int32))
    return pa.Array.from_buffers(pa.string(), len(numbers), [None, offsets, pa.py_buffer(text)])
