"""Fold commits into the parts of an index.

Plans are ordered. A row is live unless a later plan has a row of the same key; a row of status GONE is never live.

What a plan was made from a snapshot for, it says with pointers: each of its rows names the row that it replaces. So a snapshot
that only adds commits of such plans to its parent costs these commits and some lists of retired rows; no key is looked up but in
the parts that the plan could not know. Otherwise (a plan that knows nothing of the dataset, a commit that was removed) the keys
of all later plans are held against each part.

Memory: the rows of one part, and the keys of all plans but the oldest, or of what is added. Requests: one GET for each commit,
but only in ranges whose commits changed since the parent snapshot; the listing says which.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from da2ray.labels.commits import Commit, CommitEntry, list_commits, read_commit
from da2ray.labels.listing import VERSIONS
from da2ray.labels.parts import (
    RETIRED_SHARE,
    Folded,
    Part,
    PartWriter,
    commits_digest,
    counts_of,
    read_part,
    retired_rows,
    without,
)
from da2ray.labels.schema import GONE
from da2ray.storage import Store

SHARDS_PER_PART: Final = 1024
"""About 260,000 rows at 256 rows a shard: few parts for 62M rows (240), and little to rewrite for one more shard."""
THREADS: Final = 32
"""GETs in flight: obstore serves 2,442 small objects a second at 16 and 2,765 at 64 (measured, 2 cores)."""

OnProgress = Callable[[int, int], None]
Ranges = dict[str, list[list[CommitEntry]]]
_COUNTED: Final = ["key", "status", "reason", "fingerprint"]


@dataclass(slots=True)
class Delta:
    """The samples (VERSIONS) that a snapshot has more and less than its parent."""

    added: list[pa.Table] = field(default_factory=list)
    removed: list[pa.Table] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """How many keys are new, gone, and in both."""
        added, removed = (
            pa.concat_tables([VERSIONS.empty_table(), *tables])["key"].combine_chunks()
            for tables in (self.added, self.removed)
        )
        both = pc.sum(pc.is_in(added, value_set=removed)).as_py() or 0
        return {"new": len(added) - both, "gone": len(removed) - both, "changed": both}


@dataclass(frozen=True, slots=True)
class State:
    """What a snapshot is made of.

    Attributes:
        entries: in the order of plans, then of shards; those without a live row are not `Part`s.
        delta: what differs from the parent; None if the parent does not tell.
    """

    entries: list[Folded]
    delta: Delta | None = None


def fold(
    store: Store,
    plans: Sequence[str],
    parent: Sequence[Folded],
    parts_of: Callable[[int], set[str] | None],
    on_progress: OnProgress | None,
) -> State:
    """Fold all commits of these plans, oldest plan first. Parts that are not there yet are written.

    Args:
        parent: the entries of the snapshot before; empty if there is none.
        parts_of: gives the names of the parts of a snapshot, by its number; None if that snapshot does not exist any more.
        on_progress: called with (shards folded, shards committed).

    Raises:
        OSError: the store failed, or a commit or part is corrupt (the message names it).
    """
    # A part that is missing (or that `repair` found broken and removed) is folded anew; one listing shows which.
    there = {key for batch in store.list("index") for key in batch["key"].to_pylist()} if parent else set()
    known = [entry for entry in parent if not isinstance(entry, Part) or there.issuperset(entry.keys)]
    named = {key for entry in known if isinstance(entry, Part) for key in entry.keys}
    ranges: Ranges = {plan: _ranges(list_commits(store, plan)) for plan in plans}
    with ThreadPoolExecutor(THREADS, thread_name_prefix="fold") as pool:
        work = _Fold(store, plans, ranges, pool, PartWriter(store, named), on_progress)
        if len(known) == len(parent) and (state := work.onto(known, parts_of)) is not None:
            return state
        return State(work.all(known))


class _Fold:
    def __init__(
        self,
        store: Store,
        plans: Sequence[str],
        ranges: Ranges,
        pool: ThreadPoolExecutor,
        writer: PartWriter,
        on_progress: OnProgress | None,
    ) -> None:
        self._store = store
        self._plans = plans
        self._ranges = ranges
        self._pool = pool
        self._writer = writer
        self._on_progress = on_progress
        self._total = sum(len(entries) for listed in ranges.values() for entries in listed)
        self._done = 0

    # ------------------------------------------------------------------------------------------------------ by keys

    def all(self, known: Sequence[Folded]) -> list[Folded]:
        """The entries, found by the keys of all plans."""
        parts = {(part.plan, part.commits): part for part in known if isinstance(part, Part) and part.is_whole}
        folded: dict[str, list[Folded]] = {}
        later_keys: list[pa.Array] = []
        # Newest first, because a plan's keys decide which rows of the plans before it are live.
        for plan in reversed(self._plans):
            later = pa.chunked_array(later_keys, pa.string())
            folded[plan] = []
            for entries in self._ranges[plan]:
                digest = commits_digest(entries)
                part = parts.get((plan, digest))
                # A part that says nothing of what is gone does not say all that its commits do.
                part = None if part is not None and part.gone else part
                alone = not len(later) and plan == self._plans[0]
                if part is not None and alone and part.retired is None:
                    folded[plan].append(part)
                else:
                    entry, keys = self._by_keys(plan, entries, digest, part, later)
                    folded[plan].append(entry)
                    later_keys += keys if plan != self._plans[0] else []
                self._tick(len(entries))
        return [entry for plan in self._plans for entry in folded[plan]]

    def _by_keys(
        self, plan: str, entries: Sequence[CommitEntry], digest: str, part: Part | None, later: pa.ChunkedArray
    ) -> tuple[Folded, list[pa.Array]]:
        """The entry of a range, and all its keys."""
        if part is not None:
            rows = read_part(self._store, part, _COUNTED, retired=True)
            return self._known(part, in_any(rows["key"], later), rows), rows["key"].chunks
        every = pa.concat_tables(commit.rows for commit in self._commits(plan, entries))
        rows = every.filter(pc.not_equal(every["status"], GONE))
        of = _folded(plan, entries, digest, len(every) - len(rows))
        return self._made(of, rows, in_any(rows["key"], later)), every["key"].chunks

    def _made(self, of: Folded, rows: pa.Table, dead: np.ndarray) -> Folded:
        """The entry of a range that the parent lacks: all its rows (INDEX), and the positions of those that are not live."""
        if len(dead) == len(rows):
            return _spent(of, of.gone + len(dead))
        if len(dead) > RETIRED_SHARE * len(rows):
            return self._writer.part(_spent(of, of.gone + len(dead)), without(rows, dead))
        part = self._writer.part(of, rows)
        return self._writer.retire(part, dead, counts_of(without(rows, dead))) if len(dead) else part

    def _known(self, part: Part, retired: np.ndarray, rows: pa.Table) -> Folded:
        """A part of the parent with these rows retired. `rows`: _COUNTED of all rows."""
        if np.array_equal(retired, retired_rows(self._store, part)):
            return part
        return self._settled(part, retired, counts_of(without(rows, retired)))

    def _settled(self, part: Part, retired: np.ndarray, counts: dict[str, dict[str, int]]) -> Folded:
        """A part of the parent with these rows retired, and the counts of the others."""
        superseded = part.superseded + part.rows - (part.stored - len(retired))
        if len(retired) == part.stored:
            return _spent(part, superseded)
        if len(retired) > RETIRED_SHARE * part.stored:
            live = without(read_part(self._store, part, retired=True), retired)
            return self._writer.part(_spent(part, superseded), live)
        return self._writer.retire(part, retired, counts)

    # -------------------------------------------------------------------------------------------------- by pointers

    def onto(self, known: Sequence[Folded], parts_of: Callable[[int], set[str] | None]) -> State | None:
        """The entries if commits were only added to the parent's; None if keys must be looked up in all of them."""
        added = {(plan, commits_digest(entries)): entries for plan in self._plans for entries in self._ranges[plan]}
        for entry in known:
            if added.pop((entry.plan, entry.commits), None) is None:
                return None
        place = {plan: number for number, plan in enumerate(self._plans)}
        if not known:
            return None
        oldest = min(place[entry.plan] for entry in known)
        onto = _Onto(self._store, known, place)
        for (plan, digest), entries in sorted(added.items(), key=lambda item: (place[item[0][0]], item[1][0].shard)):
            parent = read_commit(self._store, plan, entries[0].shard).parent
            if parent is None and place[plan] > oldest:
                return None
            oldest = min(oldest, place[plan])
            commits = self._commits(plan, entries)
            every = pa.concat_tables(commit.rows for commit in commits)
            replaces = [commit.replaces for commit in commits if commit.replaces is not None]
            live = np.ones(len(every), np.bool_)
            live[in_any(every["key"], self._keys_after(known, place, place[plan]))] = False
            mask = pa.array(live)
            if parent is not None and live.any():
                onto.replace(plan, every["key"].filter(mask), pa.concat_tables(replaces).filter(mask), parts_of(parent))
            is_row = pc.not_equal(every["status"], GONE)
            rows = every.filter(is_row)
            lives = live[np.asarray(is_row)]
            of = _folded(plan, entries, digest, len(every) - len(rows))
            onto.add(self._made(of, rows, np.flatnonzero(~lives)), rows.filter(pa.array(lives)))
            self._tick(len(entries))
        self._tick(self._total - self._done)
        return onto.finish(self._settled)

    def _keys_after(self, known: Sequence[Folded], place: dict[str, int], plan: int) -> pa.ChunkedArray:
        """The keys of the plans after one that are in the parent."""
        chunks: list[pa.Array] = []
        for entry in known:
            if place[entry.plan] > plan:
                if isinstance(entry, Part) and entry.is_whole and not entry.gone:
                    chunks += read_part(self._store, entry, ["key"], retired=True)["key"].chunks
                else:
                    (entries,) = (each for each in self._ranges[entry.plan] if commits_digest(each) == entry.commits)
                    chunks += [
                        chunk for commit in self._commits(entry.plan, entries) for chunk in commit.rows["key"].chunks
                    ]
        return pa.chunked_array(chunks, pa.string())

    def _commits(self, plan: str, entries: Sequence[CommitEntry]) -> list[Commit]:
        return list(self._pool.map(lambda entry: read_commit(self._store, plan, entry.shard), entries))

    def _tick(self, shards: int) -> None:
        self._done += shards
        if self._on_progress and shards:
            self._on_progress(self._done, self._total)


class _Onto:
    """The parent's entries while rows are added and retired."""

    def __init__(self, store: Store, known: Sequence[Folded], place: dict[str, int]) -> None:
        self._store = store
        self._place = place
        self._entries: list[Folded] = list(known)
        self._parts = {part.name: part for part in known if isinstance(part, Part)}
        self._retired: dict[str, np.ndarray] = {}
        self._counts: dict[str, dict[str, Counter[str]]] = {}
        self._delta = Delta()

    def add(self, entry: Folded, live: pa.Table) -> None:
        """Add the entry of a new range, whose live rows (INDEX) are given."""
        self._entries.append(entry)
        if isinstance(entry, Part):
            self._parts[entry.name] = entry
        self._delta.added.append(versions_of(live))

    def replace(self, plan: str, keys: pa.ChunkedArray, replaces: pa.Table, seen: set[str] | None) -> None:
        """Retire what rows of a plan replace.

        Args:
            keys, replaces: of the plan's rows that are live or gone.
            seen: names of the parts that the plan was made from; None if they are not known any more.
        """
        named = replaces.append_column("key", keys)
        for name in pc.unique(pc.drop_null(named["part"])).to_pylist():
            if name in self._parts:
                of_part = named.filter(pc.equal(named["part"], name))
                order = pc.sort_indices(of_part["position"])
                self._retire(name, of_part.take(order))
        # What other writers added since the plan was made, and what was written anew.
        first, last = (choose(keys).as_py() for choose in (pc.min, pc.max))
        values = keys.combine_chunks()
        for part in list(self._parts.values()):
            earlier = self._place[part.plan] < self._place[plan]
            if (
                earlier
                and (seen is None or part.name not in seen)
                and part.first_key <= last
                and part.last_key >= first
            ):
                rows = read_part(self._store, part, [*_COUNTED, "etag", "version"], retired=True)
                positions = np.flatnonzero(pc.is_in(rows["key"], value_set=values).to_numpy())
                found = rows.take(pa.array(positions))
                versions = versions_of(found)["version"]
                columns = {"part": pa.repeat(part.name, len(found)), "position": pa.array(positions, pa.int32())}
                columns |= {"version": versions} | {name: found[name] for name in _COUNTED}
                self._retire(part.name, pa.table({name: columns[name] for name in named.column_names}))

    def _retire(self, name: str, rows: pa.Table) -> None:
        """Retire rows of a part (REPLACES and `key`, positions ascending), but for those that are retired already."""
        if name not in self._retired:
            self._retired[name] = retired_rows(self._store, self._parts[name])
            part = self._parts[name]
            self._counts[name] = {
                each: Counter(getattr(part, f"by_{each}")) for each in ("status", "reason", "fingerprint")
            }
        positions = rows["position"].to_numpy()
        rows = rows.filter(pa.array(~np.isin(positions, self._retired[name])))
        self._retired[name] = np.union1d(self._retired[name], rows["position"].to_numpy()).astype(np.int32)
        for each, counter in self._counts[name].items():
            counter.subtract(pc.drop_null(rows[each]).to_pylist())
        self._delta.removed.append(rows.select(VERSIONS.names).cast(VERSIONS))

    def finish(self, settled: Callable[[Part, np.ndarray, dict[str, dict[str, int]]], Folded]) -> State:
        """The entries in order. `settled` makes an entry of a part, its retired rows, and the counts of the others."""
        entries = []
        for entry in self._entries:
            if isinstance(entry, Part) and len(self._retired.get(entry.name, ())) > entry.stored - entry.rows:
                counts = {
                    f"by_{each}": {name: count for name, count in sorted(counter.items()) if count}
                    for each, counter in self._counts[entry.name].items()
                }
                entry = settled(entry, self._retired[entry.name], counts)  # noqa: PLW2901
            entries.append(entry)
        entries.sort(key=lambda entry: (self._place[entry.plan], entry.first_shard))
        return State(entries, self._delta)


def is_folded(entries: Iterable[Folded], commits: dict[str, list[CommitEntry]]) -> bool:
    """Whether a snapshot with these entries was made of exactly these commits."""
    folded = {(entry.plan, entry.commits) for entry in entries}
    return folded == {(plan, commits_digest(each)) for plan, found in commits.items() for each in _ranges(found)}


def versions_of(rows: pa.Table) -> pa.Table:
    """The keys and listed versions (VERSIONS) of index rows."""
    return pa.table([rows["key"], pc.coalesce(rows["version"], rows["etag"])], schema=VERSIONS)


def in_any(keys: pa.ChunkedArray, others: pa.ChunkedArray) -> np.ndarray:
    """The positions of the keys that are among `others`, which are in chunks of any total size.

    The set that is searched has the part's keys: a set of 60 million keys would take more than the 2 GiB that Arrow allows.
    """
    if not len(others) or not len(keys):
        return np.empty(0, np.int64)
    found = others.filter(pc.is_in(others, value_set=keys.combine_chunks()))
    return np.flatnonzero(pc.is_in(keys, value_set=found)) if len(found) else np.empty(0, np.int64)


def _folded(plan: str, entries: Sequence[CommitEntry], digest: str, gone: int) -> Folded:
    return Folded(
        plan=plan,
        first_shard=entries[0].shard,
        last_shard=entries[-1].shard,
        commits=digest,
        superseded=gone,
        gone=gone,
    )


def _spent(of: Folded, superseded: int) -> Folded:
    """The range without its part."""
    return Folded(**of.model_dump(include=set(Folded.model_fields) - {"superseded"}), superseded=superseded)


def range_of(entries: Iterable[CommitEntry], shard: int) -> list[CommitEntry]:
    """The commits of a plan in the range of a shard."""
    return [entry for entry in entries if entry.shard // SHARDS_PER_PART == shard // SHARDS_PER_PART]


def _ranges(entries: Iterable[CommitEntry]) -> list[list[CommitEntry]]:
    """Commits by range of shard numbers, ascending. The ranges are fixed, so one more commit changes one part."""
    ordered = sorted(entries, key=lambda entry: entry.shard)
    return [list(group) for _, group in itertools.groupby(ordered, key=lambda entry: entry.shard // SHARDS_PER_PART)]
