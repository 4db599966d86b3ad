"""`da2ray verify`: check every live shard against its commit, the newest snapshot against the commits, and that all other stored
state can be read: older snapshots, views, plans, runs and leases.

Memory: one part of the index, and THREADS objects at a time. Requests: the commit and the whole object of each shard, once; the
parts of the newest snapshot; the list of rows of each view.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from da2ray.console import OnProgress
from da2ray.errors import CorruptError, UserError
from da2ray.labels.commits import Commit, CommitEntry, commit_key, list_all_commits, read_commit
from da2ray.labels.fold import range_of
from da2ray.labels.leases import broken_leases
from da2ray.labels.parts import Part, commits_digest, is_whole, read_part
from da2ray.labels.runs import broken_runs
from da2ray.labels.shards.base import ShardFormat
from da2ray.labels.snapshots import Snapshot, list_snapshots, open_snapshot, snapshot_key
from da2ray.labels.upkeep.check import Fault, Wrong, check_commit, check_object, check_values, differing_columns
from da2ray.labels.upkeep.garbage import named_by_snapshots
from da2ray.labels.views import check_view, list_views, view_key
from da2ray.parallel import look_ahead
from da2ray.plan.joints import misplaced
from da2ray.plan.plan import Plan, correction_key, corrections_of, plan_ids, plan_key, read_correction
from da2ray.storage import Store

FOLDERS: Final = ("commits", "index", "leases", "listings", "plans", "runs", "shards", "snapshots", "tags", "views")
OURS: Final = re.compile(
    r"(commits/[^/]+/([0-9]{8}|[1-9][0-9]{8,17})|index/[0-9a-f]{32}(\.retired)?|listings/[0-9a-f]{32}|plans/[0-9a-f]{16}|views/[A-Za-z0-9_-][A-Za-z0-9._-]*)\.parquet"
    r"|plans/[0-9a-f]{16}/([0-9]{8}|[1-9][0-9]{8,17})\.spec"
    r"|shards/[^/]+/[0-9]{8,18}-[0-9a-f]{16}\.(parquet|zarr\.zip)"
    r"|(leases/[^/]+/[^/]+|runs/[^/]+/(config|progress)|snapshots/([0-9]{6}|[1-9][0-9]{6,17})|tags/[A-Za-z0-9_-][A-Za-z0-9._-]*|views/[A-Za-z0-9_-][A-Za-z0-9._-]*)\.json"
)
"""Keys of the objects that a dataset's folders hold (FORMAT.md)."""

THREADS: Final = 8
"""Objects in memory at a time, of about 50 MB and as much again for what they hold. Four threads already keep two cores busy."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong.

    Attributes:
        plan, shard: which shard; `shard` is None for a plan and a part of the index, both are None for other objects.
        object: key of the broken object.
        what, detail: what is wrong, in a word and for people.
        snapshot: number of the snapshot if only that is concerned: it names an object that no commit names any more, so
            labelling the shard again would not help. Else None.
    """

    plan: str | None
    shard: int | None
    object: str
    what: Wrong
    detail: str
    snapshot: int | None = None


@dataclass(slots=True)
class Report:
    """What `verify` checked and found.

    Attributes:
        shards, parts: how many there are: shards in all plans, parts in the newest snapshot.
        shards_checked, parts_checked: how many were checked, which is fewer with `--sample`.
        views: how many views were checked: all, even with `--sample`, because their lists are small.
        bytes: bytes read from shards' objects and views' lists.
        foreign: keys of files in the dataset's folders that da2ray did not name. Nothing reads them.
    """

    shards: int = 0
    shards_checked: int = 0
    parts: int = 0
    parts_checked: int = 0
    views: int = 0
    bytes: int = 0
    foreign: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def broken_shards(self) -> list[tuple[str, int]]:
        """The shards to label again: (plan, shard), ascending."""
        return sorted(
            {
                (found.plan, found.shard)
                for found in self.findings
                if found.plan is not None and found.shard is not None and found.snapshot is None
            }
        )


@dataclass(frozen=True, slots=True)
class _Indexed:
    """A shard's live rows in the newest snapshot.

    Attributes:
        unchanged: the commits are still those that the part was folded from.
        whole: no later plan superseded a row.
    """

    rows: pa.Table
    snapshot: int
    unchanged: bool
    whole: bool


@dataclass(frozen=True, slots=True)
class _Task:
    plan: str
    shard: int
    committed: bool
    indexed: _Indexed | None


def verify(store: Store, format: ShardFormat, sample: float = 1.0, on_progress: OnProgress | None = None) -> Report:  # noqa: A002
    """Check every shard, or a share of them.

    Args:
        store: of a dataset.
        format: of its shards.
        sample: share of the shards and of the index's parts, above 0 and at most 1. The same ones are checked each time, and at
            least one of each.
        on_progress: called with (shards checked, shards to check).

    Raises:
        OSError: the store failed. That says nothing about the dataset, so it is not a finding.
    """
    commits = list_all_commits(store)
    shards = [(plan, entry.shard) for plan, entries in commits.items() for entry in entries]
    chosen = set(_share(shards, sample))
    report = Report(shards=len(shards), shards_checked=len(chosen))
    tasks = _tasks(store, commits, chosen, sample, report)
    check = partial(_check, store, format)
    for done, (findings, size) in enumerate(look_ahead(check, tasks, THREADS, "verify"), start=1):
        report.findings += findings
        report.bytes += size
        if on_progress:
            # Shards that only the snapshot has become known when its parts are read, and are too few to count.
            on_progress(min(done, len(chosen)), len(chosen))
    _drop_collected(store, commits, report)
    _check_views(store, report)
    _check_older(store, sample, report)
    _check_others(store, report)
    report.findings.sort(key=lambda found: (found.plan or "", -1 if found.shard is None else found.shard, found.what))
    return report


def _drop_collected(store: Store, commits: dict[str, list[CommitEntry]], report: Report) -> None:
    """Drop the findings about objects that `gc --keep` removed: a commit names them, but no row of a snapshot does any more."""
    missing = {
        found.object: (found.plan or "", found.shard or 0)
        for found in report.findings
        if found.what is Wrong.OBJECT_MISSING and found.snapshot is None
    }
    if not missing:
        return
    try:
        snapshots = [open_snapshot(store, number) for number in list_snapshots(store)]
    except CorruptError:
        return
    folded = {(entry.plan, entry.commits) for each in snapshots[-1:] for entry in (*each.parts, *each.spent)}
    names = named_by_snapshots(store, snapshots, set(missing.values()))
    gone = {
        key
        for key, (plan, shard) in missing.items()
        if key not in names.objects
        and not names.unreadable
        and (plan, commits_digest(range_of(commits.get(plan, ()), shard))) in folded
    }
    report.findings = [found for found in report.findings if found.object not in gone]


def _check_views(store: Store, report: Report) -> None:
    for name in list_views(store):
        report.views += 1
        try:
            report.bytes += check_view(store, name)
        except (UserError, CorruptError) as error:
            report.findings.append(Finding(None, None, view_key(name), Wrong.VIEW, str(error)))


def _check_older(store: Store, sample: float, report: Report) -> None:
    """Check that the snapshots before the newest can be read, and the parts that the newest does not name.

    Such a part may be missing: `repair` has said that it is lost for good.
    """
    *older, newest = list_snapshots(store) or [0]
    if newest and sample >= 1:
        try:
            named = {key for part in open_snapshot(store, newest).parts for key in part.keys}
        except CorruptError:
            named = set()
        keys = [key for batch in store.list("index") for key in batch["key"].to_pylist()]
        for key in sorted(key for key in keys if OURS.fullmatch(key) and key not in named):
            if not is_whole(store, key):
                report.findings.append(Finding(None, None, key, Wrong.PART, "its bytes do not hash to its name"))
    for number in older:
        try:
            open_snapshot(store, number)
        except CorruptError as error:
            report.findings.append(Finding(None, None, snapshot_key(number), Wrong.SNAPSHOT, str(error), number))


def _check_others(store: Store, report: Report) -> None:
    """Check plans, leases and the files of runs, and note files that are not ours."""
    for plan in plan_ids(store):
        try:
            (opened := Plan(store, plan)).check()
        except FileNotFoundError:
            continue
        except CorruptError as error:
            report.findings.append(Finding(plan, None, plan_key(plan), Wrong.PLAN, str(error)))
        else:
            _check_ranges(store, opened, report)
    for key, detail in broken_runs(store).items():
        report.findings.append(Finding(None, None, key, Wrong.RUN, detail))
    for key, detail in broken_leases(store).items():
        report.findings.append(Finding(None, None, key, Wrong.LEASE, detail))
    keys = (key for folder in FOLDERS for batch in store.list(folder) for key in batch["key"].to_pylist())
    report.foreign += sorted(key for key in keys if not OURS.fullmatch(key))


def _check_ranges(store: Store, plan: Plan, report: Report) -> None:
    """Check that shards which are ranges of files meet, and what was stored beside the plan to make them meet."""
    if not plan.info.ranged:
        return
    for number in corrections_of(store, plan.id):
        try:
            read_correction(store, plan.id, number)
        except CorruptError as error:
            report.findings.append(Finding(plan.id, None, correction_key(plan.id, number), Wrong.PLAN, str(error)))
    with suppress(CorruptError):  # of a commit, which is a finding already
        report.findings += [
            Finding(
                plan.id,
                number,
                commit_key(plan.id, number),
                Wrong.EXTENT,
                "it does not begin where the shard before ended",
            )
            for number in misplaced(store, plan)
        ]


def _share(shards: Iterable[tuple[str, int]], sample: float) -> list[tuple[str, int]]:
    """The shards with the lowest hashes: they are spread evenly, and a larger sample contains each smaller one."""
    ordered = list(shards)
    if sample >= 1:
        return ordered
    ordered.sort(key=lambda shard: hashlib.sha256(f"{shard[0]}/{shard[1]}".encode()).digest())
    return ordered[: math.ceil(sample * len(ordered))]


def _tasks(
    store: Store, commits: dict[str, list[CommitEntry]], chosen: set[tuple[str, int]], sample: float, report: Report
) -> Iterator[_Task]:
    """One task for each shard: first those in the newest snapshot, with one part in memory at a time, then all others."""
    left = set(chosen)
    snapshot = _newest(store, report)
    if snapshot:
        report.parts = len(snapshot.parts)
        parts = {(part.plan, part.first_shard): part for part in snapshot.parts}
        wanted = _share(parts, sample)
        report.parts_checked = len(wanted)
        committed = {plan: {entry.shard for entry in entries} for plan, entries in commits.items()}
        for plan, first in sorted(wanted):
            part = parts[plan, first]
            entries = [entry for entry in commits.get(plan, []) if part.first_shard <= entry.shard <= part.last_shard]
            for shard, indexed in _indexed(store, snapshot, part, entries, report):
                if (plan, shard) in left:
                    left.discard((plan, shard))
                    yield _Task(plan, shard, committed=True, indexed=indexed)
                elif shard not in committed.get(plan, set()):
                    yield _Task(plan, shard, committed=False, indexed=indexed)
    for plan, shard in sorted(left):
        yield _Task(plan, shard, committed=True, indexed=None)


def _newest(store: Store, report: Report) -> Snapshot | None:
    numbers = list_snapshots(store)
    if not numbers:
        return None
    key = snapshot_key(numbers[-1])
    try:
        snapshot = open_snapshot(store, numbers[-1])
    except CorruptError as error:
        report.findings.append(Finding(None, None, key, Wrong.SNAPSHOT, str(error), numbers[-1]))
        return None
    return snapshot


def _indexed(
    store: Store, snapshot: Snapshot, part: Part, entries: list[CommitEntry], report: Report
) -> Iterator[tuple[int, _Indexed | None]]:
    """The shards of a part's range: those with rows in the part, and those of `entries`."""

    def wrong(detail: str) -> None:
        report.findings.append(Finding(part.plan, None, part.key, Wrong.PART, detail, snapshot.number))

    slices: dict[int, pa.Table] = {}
    nothing: pa.Table | None = None
    try:
        rows = read_part(store, part).combine_chunks()
    except CorruptError as error:
        wrong(str(error))
    else:
        nothing = rows.slice(0, 0)
        numbers, starts = np.unique(rows["shard"].to_numpy(), return_index=True)
        ends = np.append(starts, len(rows))[1:]
        slices = {
            int(shard): rows.slice(start, end - start) for shard, start, end in zip(numbers, starts, ends, strict=True)
        }
        if not np.all(np.diff(starts) > 0) or set(rows["plan"].unique().to_pylist()) != {part.plan}:
            wrong("its rows do not match the snapshot")
    unchanged = commits_digest(entries) == part.commits
    for shard in sorted(slices.keys() | {entry.shard for entry in entries}):
        found = slices.get(shard, nothing)
        yield shard, None if found is None else _Indexed(found, snapshot.number, unchanged, part.superseded == 0)


def _check(store: Store, format: ShardFormat, task: _Task) -> tuple[list[Finding], int]:  # noqa: A002
    """What is wrong with a shard, and how many bytes were read."""
    findings: list[Finding] = []
    size = 0
    commit: Commit | None = None

    def add(key: str, faults: Iterable[Fault], snapshot: int | None = None) -> None:
        findings.extend(Finding(task.plan, task.shard, key, fault.what, fault.detail, snapshot) for fault in faults)

    if task.committed:
        key = commit_key(task.plan, task.shard)
        try:
            commit = read_commit(store, task.plan, task.shard)
        except FileNotFoundError:
            return [], 0  # removed since it was listed, so the shard is not live any more
        except CorruptError as error:
            add(key, [Fault(Wrong.COMMIT, str(error))])
        else:
            add(key, check_commit(commit, format))
            try:
                data = store.get(commit.object)
            except FileNotFoundError:
                add(commit.object, [Fault(Wrong.OBJECT_MISSING, "the commit names it")])
            else:
                size += len(data)
                add(commit.object, check_object(commit, data, format))
    if task.indexed:
        rows, number = task.indexed.rows, task.indexed.snapshot
        named = set(rows["object"].drop_null().unique().to_pylist())
        if commit and (task.indexed.unchanged or named == {commit.object}):
            add(commit_key(task.plan, task.shard), _compare(commit, task.indexed))
        for other in sorted(named - {commit.object if commit else None}):
            # The object of an attempt whose commit was removed. The snapshot has its rows for good.
            try:
                data = store.get(other)
            except FileNotFoundError:
                add(other, [Fault(Wrong.OBJECT_MISSING, f"snapshot {number} names it")], number)
            else:
                size += len(data)
                add(other, check_values(rows.filter(pc.equal(rows["object"], other)), data, format), number)
    return findings, size


def _compare(commit: Commit, indexed: _Indexed) -> list[Fault]:
    """Compare a shard's rows in the newest snapshot with those of the commit that they were folded from."""
    expected = commit.rows
    if not indexed.whole:
        places = indexed.rows["row"]
        if pc.any(pc.greater_equal(places, len(expected))).as_py():
            return [Fault(Wrong.INDEX, f"snapshot {indexed.snapshot} has rows that the commit lacks")]
        expected = expected.take(places)
    differing = differing_columns(expected, indexed.rows)
    if not differing:
        return []
    return [Fault(Wrong.INDEX, f"the commit differs from snapshot {indexed.snapshot} in {', '.join(differing)}")]
