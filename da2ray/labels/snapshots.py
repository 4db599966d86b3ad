"""Snapshots: numbered, immutable versions of a dataset, made by folding commits into index parts.

A part holds the live rows of a fixed range of one plan's shards and is named after its content, so snapshots share the parts that
did not change. Plans are ordered: a row is live unless a later plan has a row of the same key.

Memory: the rows of one part, and the keys of all plans but the oldest. Requests: one GET for each commit, but only in ranges
whose commits changed since the parent snapshot; the listing says which.
"""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from da2ray.errors import CorruptError, UserError
from da2ray.labels.commits import CommitEntry, list_commits, read_commit, write_rows
from da2ray.labels.schema import FORMAT_VERSION, INDEX, conform
from da2ray.labels.stored import Stored, intact, read_versioned
from da2ray.storage import Store

SHARDS_PER_PART: Final = 1024
"""About 260,000 rows at 256 rows a shard: few parts for 62M rows (240), and little to rewrite for one more shard."""

THREADS: Final = 32
"""GETs in flight: obstore serves 2,442 small objects a second at 16 and 2,765 at 64 (measured, 2 cores)."""

_KEY: Final = re.compile(r"snapshots/([0-9]{6}|[1-9][0-9]{6,17})\.json")

OnProgress = Callable[[int, int], None]


class Part(Stored):
    """One file of the index.

    Attributes:
        name: the object is `index/<name>.parquet`; first 32 hexadecimal digits of its bytes' sha256.
        plan, first_shard, last_shard: the shards that its rows come from, both ends included.
        rows, by_status, by_reason: counts of its live rows.
        superseded: number of rows of its shards that are not live because a later plan has their key.
        fingerprints: of its live rows.
        commits: digest of the listing of the commits that it was folded from.
    """

    name: str = Field(pattern=r"^[0-9a-f]{32}$")
    plan: str
    first_shard: int
    last_shard: int
    rows: int = Field(ge=0)
    by_status: dict[str, int]
    by_reason: dict[str, int]
    superseded: int
    fingerprints: tuple[str, ...]
    commits: str

    @property
    def key(self) -> str:
        return f"index/{self.name}.parquet"


class Snapshot(Stored):
    """A version of the dataset. `number` counts from 1; `parent` is None for the first.

    Attributes:
        created: UTC, ISO 8601.
        fingerprint: of the run that made it; `fingerprints` are those of the live rows.
        plans: ids, oldest first.
        rows, by_status, by_reason: counts of the live rows.
        superseded: number of committed rows that are not live. Shards without any live row count too, though no part has them.
        parts: in the order of rows: plans as in `plans`, then shards.
    """

    format_version: int = FORMAT_VERSION
    number: int
    parent: int | None
    created: str
    fingerprint: str
    fingerprints: tuple[str, ...]
    plans: tuple[str, ...]
    rows: int
    by_status: dict[str, int]
    by_reason: dict[str, int]
    superseded: int = 0
    parts: tuple[Part, ...]

    def same_state(self, other: "Snapshot") -> bool:
        """Whether both hold the same rows, whatever their numbers and times and whoever made them."""
        return [(part.plan, part.name) for part in self.parts] == [(part.plan, part.name) for part in other.parts]


def snapshot_key(number: int) -> str:
    return f"snapshots/{number:06d}.json"


def list_snapshots(store: Store) -> list[int]:
    """Numbers of all snapshots, ascending. Other files in the folder are not ours."""
    keys = (key for batch in store.list("snapshots") for key in batch["key"].to_pylist())
    return sorted(int(named[1]) for key in keys if (named := _KEY.fullmatch(key)))


def open_snapshot(store: Store, number: int | None = None) -> Snapshot:
    """A snapshot by number, or the newest.

    Raises:
        UserError: there is no snapshot, or none of this number, or it is of a later format version.
        CorruptError: the object is not this snapshot.
        OSError: the store failed.
    """
    if number is None:
        numbers = list_snapshots(store)
        if not numbers:
            raise UserError(f"{store.url} has no snapshot yet: make one with `da2ray snapshots {store.url} --create`")
        number = numbers[-1]
    key = snapshot_key(number)
    remedy = f"delete it; the next run, or `da2ray snapshots {store.url} --create`, makes one of what is committed"
    try:
        snapshot = read_versioned(store, key, Snapshot, "a snapshot", remedy)
    except FileNotFoundError as error:
        raise UserError(f"{store.url} has no snapshot {number}: `da2ray snapshots {store.url}` lists them") from error
    with intact(store, key, "this snapshot", remedy):
        if snapshot.number != number:
            raise ValueError(f"its number is {snapshot.number}")
        if snapshot.rows != sum(part.rows for part in snapshot.parts):
            raise ValueError("its rows do not match its parts")
    return snapshot


def create_snapshot(
    store: Store,
    plans: Sequence[str] | Callable[[], Sequence[str]],
    fingerprint: str,
    on_progress: OnProgress | None = None,
) -> Snapshot:
    """Fold what is committed now, finished or not, into the next snapshot.

    Args:
        store: of the dataset.
        plans: ids, oldest first: rows of a later plan replace earlier plans' rows of the same key. If others may make plans
            meanwhile, pass a function that lists them; it is called again if another writer took the snapshot's number.
        fingerprint: of the run that makes the snapshot.
        on_progress: called with (shards folded, shards committed) as parts are done.

    Returns:
        The new snapshot, or the newest existing one if that holds the same rows.

    Raises:
        UserError: the newest snapshot is of a later format version.
        OSError: the store failed, or a commit or part is corrupt (the message names it).
    """
    while True:
        numbers = list_snapshots(store)
        parent = open_snapshot(store, numbers[-1]) if numbers else None
        # Listed after the parent is read: a plan that the parent has and this list lacks would be dropped.
        listed = plans() if callable(plans) else plans
        snapshot = _assemble(_fold(store, listed, parent, on_progress), listed, fingerprint, parent)
        if parent is not None and parent.same_state(snapshot):
            return parent
        data = f"{snapshot.model_dump_json(indent=1)}\n".encode()
        # If it exists, it may still be ours: the answer was lost.
        if store.create(snapshot_key(snapshot.number), data) or store.get(snapshot_key(snapshot.number)) == data:
            return snapshot
        # Another writer took this number and may have seen commits that we have not: fold again on top of its snapshot.


def refold(store: Store, plans: Sequence[str], parent: Snapshot) -> None:
    """Write the missing parts that a snapshot made now would name. This is `create_snapshot` without its last step.

    A part of `parent` that was lost gets its name back if its commits are still the same and this pyarrow writes the same bytes.

    Raises:
        OSError: the store failed, or a commit or part is corrupt (the message names it).
    """
    _fold(store, plans, parent, None)


def read_part(store: Store, part: Part, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a part: INDEX, or the given columns of it. A column that an older release did not write is null.

    Raises:
        CorruptError: the part is missing, or its bytes do not hash to its name.
        OSError: the store failed.
    """
    wanted = INDEX if columns is None else pa.schema([INDEX.field(name) for name in columns])
    remedy = f"run `da2ray repair {store.url}`"
    try:
        with intact(store, part.key, "a part of the index", remedy):
            data = store.get(part.key)
            if _content_name(data) != part.name:
                raise ValueError("its bytes do not hash to its name")
            with pq.ParquetFile(pa.BufferReader(data)) as file:
                if file.metadata.num_rows != part.rows:
                    raise ValueError(f"it has {file.metadata.num_rows} rows, the snapshot says {part.rows}")
                names = set(file.schema_arrow.names)  # made anew each time that it is asked for
                return conform(file.read(columns=[name for name in wanted.names if name in names]), wanted)
    except FileNotFoundError as error:
        raise CorruptError(f"{store.url}/{part.key} is missing, a part of the index: {remedy}") from error


def is_whole(store: Store, key: str) -> bool:
    """Whether the bytes of an object of the index hash to its name; True also if it was removed meanwhile.

    Raises:
        OSError: the store failed.
    """
    try:
        return key == f"index/{_content_name(store.get(key))}.parquet"
    except FileNotFoundError:
        return True


def _assemble(parts: Sequence[Part], plans: Sequence[str], fingerprint: str, parent: Snapshot | None) -> Snapshot:
    return Snapshot(
        number=parent.number + 1 if parent else 1,
        parent=parent.number if parent else None,
        created=datetime.now(UTC).isoformat(),
        fingerprint=fingerprint,
        fingerprints=tuple(sorted({found for part in parts for found in part.fingerprints})),
        plans=tuple(plans),
        rows=sum(part.rows for part in parts),
        by_status=_sum(part.by_status for part in parts),
        by_reason=_sum(part.by_reason for part in parts),
        superseded=sum(part.superseded for part in parts),
        parts=tuple(part for part in parts if part.rows),
    )


def _fold(store: Store, plans: Sequence[str], parent: Snapshot | None, on_progress: OnProgress | None) -> list[Part]:
    """The parts of all plans, oldest plan first; parts without a live row are not written."""
    # A part that is missing (or that `repair` found broken and removed) is folded anew; one listing shows which.
    listed_keys = {key for batch in store.list("index") for key in batch["key"].to_pylist()} if parent else set()
    there = [part for part in parent.parts if part.key in listed_keys] if parent else []
    known = {(part.plan, part.commits): part for part in there}
    names = {part.name for part in there}
    listed = {plan: _ranges(list_commits(store, plan)) for plan in plans}
    total = sum(len(entries) for ranges in listed.values() for entries in ranges)
    done = 0
    folded: dict[str, list[Part]] = {}
    later_keys: list[pa.Array] = []
    with ThreadPoolExecutor(THREADS, thread_name_prefix="fold") as pool:
        # Newest first, because a plan's keys decide which rows of the plans before it are live.
        for plan in reversed(plans):
            later = pa.chunked_array(later_keys, pa.string())
            folded[plan] = []
            for entries in listed[plan]:
                digest = commits_digest(entries)
                part = known.get((plan, digest))
                if part is not None and part.superseded:
                    # The rows that superseded its rows may have changed, so it is folded anew. A part that lost no row is all
                    # that its commits say, and costs one GET instead of a thousand.
                    part = None
                if part is None or len(later) or plan != plans[0]:
                    rows = read_part(store, part) if part else _read_commits(store, plan, entries, pool)
                    if plan != plans[0]:
                        later_keys += rows["key"].chunks
                    live = _without(rows, later)
                    if part is None or live.num_rows < rows.num_rows:
                        part, data = _make_part(plan, entries, live, rows.num_rows - live.num_rows)
                        if part.rows and part.name not in names:
                            _write_part(store, part, data)
                folded[plan].append(part)
                done += len(entries)
                if on_progress:
                    on_progress(done, total)
    return [part for plan in plans for part in folded[plan]]


def _without(rows: pa.Table, later: pa.ChunkedArray) -> pa.Table:
    """The rows whose key is not among the later plans' keys, which are in chunks of any total size.

    The set that is searched has the part's keys: a set of 60 million keys would take more than the 2 GiB that Arrow allows.
    """
    if not len(later):
        return rows
    superseding = later.filter(pc.is_in(later, value_set=rows["key"].combine_chunks()))
    return rows.filter(pc.invert(pc.is_in(rows["key"], value_set=superseding))) if len(superseding) else rows


def _ranges(entries: Iterable[CommitEntry]) -> list[list[CommitEntry]]:
    """Commits by range of shard numbers, ascending. The ranges are fixed, so one more commit changes one part."""
    ordered = sorted(entries, key=lambda entry: entry.shard)
    return [list(group) for _, group in itertools.groupby(ordered, key=lambda entry: entry.shard // SHARDS_PER_PART)]


def commits_digest(entries: Sequence[CommitEntry]) -> str:
    """The value of `Part.commits`: 32 hexadecimal digits that change when one of the commits does."""
    lines = "".join(f"{entry.shard} {entry.version}\n" for entry in entries)
    return hashlib.sha256(lines.encode()).hexdigest()[:32]


def _content_name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _read_commits(store: Store, plan: str, entries: Sequence[CommitEntry], pool: ThreadPoolExecutor) -> pa.Table:
    return pa.concat_tables(pool.map(lambda entry: read_commit(store, plan, entry.shard).rows, entries))


def _make_part(plan: str, entries: Sequence[CommitEntry], live: pa.Table, superseded: int) -> tuple[Part, bytes]:
    # Chunks show in the file's pages. With one chunk, the same rows give the same bytes however they were read.
    data = write_rows(live.combine_chunks())
    part = Part(
        name=_content_name(data),
        plan=plan,
        first_shard=entries[0].shard,
        last_shard=entries[-1].shard,
        rows=live.num_rows,
        by_status=_counts(live["status"]),
        by_reason=_counts(live["reason"]),
        superseded=superseded,
        fingerprints=tuple(sorted(pc.unique(live["fingerprint"]).to_pylist())),
        commits=commits_digest(entries),
    )
    return part, data


def _write_part(store: Store, part: Part, data: bytes) -> None:
    if not store.create(part.key, data):
        # The same name means the same content: a leftover of another writer, or of one that was killed, which no snapshot names
        # yet. Written again, it is whole, and too young for a `gc` that is about to remove it.
        store.put(part.key, data)


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    return dict(sorted(Counter(pc.drop_null(column).to_pylist()).items()))


def _sum(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(sorted(total.items()))
