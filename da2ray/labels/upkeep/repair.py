"""`da2ray repair`: remove the commits of broken shards, so that the next run labels those shards again and nothing else."""

import contextlib
from dataclasses import dataclass, field

from da2ray.errors import CorruptError
from da2ray.labels.commits import commit_key
from da2ray.labels.snapshots import list_snapshots, open_snapshot, refold, snapshot_key
from da2ray.labels.upkeep.check import Wrong
from da2ray.labels.upkeep.garbage import Shard, named_by_snapshots
from da2ray.labels.upkeep.verify import Report
from da2ray.labels.views import view_name
from da2ray.storage import Store


@dataclass(slots=True)
class Repaired:
    """What `repair` did, or would do.

    Attributes:
        shards: shards whose commits were removed.
        rewritten: keys of index parts that are whole again.
        lost: keys of index parts that are still broken; the next snapshot gets others in their place.
        snapshots: numbers of the snapshots that name a broken object. They never change, so those rows stay broken in them.
        unreadable: keys of broken snapshots and plans, which cannot be repaired, with what to do about each.
        removed: keys of broken leases and files of runs, on which no label depends.
        views: names of broken views, which only another curation makes again.
    """

    shards: list[Shard] = field(default_factory=list)
    rewritten: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    snapshots: list[int] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    views: list[str] = field(default_factory=list)


def repair(store: Store, report: Report, *, dry_run: bool) -> Repaired:
    """Repair what `verify` reported.

    Objects stay, because old snapshots may name them; `gc` removes those that no snapshot names.

    Raises:
        OSError: the store failed, or a commit that a sample passed over is corrupt.
    """
    repaired = Repaired(shards=report.broken_shards())
    repaired.unreadable = {
        found.object: found.detail for found in report.findings if found.what in (Wrong.SNAPSHOT, Wrong.PLAN)
    }
    repaired.removed = [found.object for found in report.findings if found.what in (Wrong.RUN, Wrong.LEASE)]
    repaired.snapshots = _naming(store, report)
    repaired.views = [view_name(found.object) for found in report.findings if found.what == Wrong.VIEW]
    broken = sorted({found.object for found in report.findings if found.what == Wrong.PART})
    if dry_run:
        repaired.lost = broken
        return repaired
    store.delete([commit_key(*shard) for shard in repaired.shards])
    store.delete(repaired.removed)
    if broken and snapshot_key(list_snapshots(store)[-1]) not in repaired.unreadable:
        # Once deleted, the next snapshot does not take them for whole. Folded again, the same commits give the same bytes under
        # the same name, which repairs every snapshot that has the part, unless a commit of its shards was removed or another
        # version of pyarrow writes other bytes.
        store.delete(broken)
        parent = open_snapshot(store)
        refold(store, parent.plans, parent)
        there = {key for batch in store.list("index") for key in batch["key"].to_pylist()}
        repaired.rewritten = [key for key in broken if key in there]
    repaired.lost = [key for key in broken if key not in repaired.rewritten]
    return repaired


def _naming(store: Store, report: Report) -> list[int]:
    """The numbers of the snapshots that name a broken object."""
    broken = {
        found.object: (found.plan, found.shard)
        for found in report.findings
        if found.plan is not None and found.shard is not None and found.object.startswith("shards/")
    }
    if not broken:
        return []
    snapshots = []
    for number in list_snapshots(store):
        with contextlib.suppress(CorruptError):
            snapshots.append(open_snapshot(store, number))
    names = named_by_snapshots(store, snapshots, set(broken.values()))
    return sorted({number for key in broken for number in names.objects.get(key, ())})
