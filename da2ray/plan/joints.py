"""Every sample of a file that was cut blindly is in exactly one shard: the shards of a file must meet.

A shard that is a range of a tar looks for its first header. Any block with the right checksum may be one, and so may a header of
a tar within the tar. But the first shard of a file begins at a header for sure, and a shard ends where its last member does, so
each shard tells where the next one must begin. `correct` compares that with where the next one did begin, once all are committed
and before a snapshot is made. If they differ, the specification of the later shard, with its true beginning, is stored beside
the plan, and its commit is removed, as `repair` removes commits. The shard is read again, and then its end is compared.

A crash between the two steps leaves the commit; the next run finds it wrong again, stores the same specification and goes on. Any
number of runs may do this at once, because what they store is the same. If a file changed between two of its shards, those that
read an older version are read again.

Requests: a GET for each commit of the plan, as many as the snapshot makes, and only for sources that are `Ranged`.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from da2ray.labels.commits import CommitSummary, commit_key, read_summary
from da2ray.labels.snapshots import list_snapshots, open_snapshot
from da2ray.parallel import look_ahead
from da2ray.plan.plan import Plan, list_plans
from da2ray.sources.base import Extent, Ranged, Source
from da2ray.storage import Store

THREADS: Final = 32
NO_END: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class Joint:
    """What a committed shard says of its range, the keys of its samples, and the attempt that committed it."""

    number: int
    extent: Extent
    keys: Sequence[str] = ()
    attempt: str = ""


@dataclass(frozen=True, slots=True)
class Correction:
    """A shard that must be read again, and what it must be told: see `Ranged.begin_at`."""

    number: int
    start: int | None
    given: dict[str, str] = field(default_factory=dict)
    repeated: frozenset[str] = frozenset()


def corrections(joints: Sequence[Joint]) -> list[Correction]:
    """The shards of one version of a file, which are consecutive, that must be read again.

    Behind a shard whose end is not known until it is read again nothing is judged. So this is called again after that.
    """
    found: list[Correction] = []
    seen: set[str] = set()
    expected: int | None = joints[0].extent.quiet
    given: dict[str, str] = joints[0].extent.given
    for joint in joints:
        extent = joint.extent
        stop = NO_END if extent.stop is None else extent.stop
        if expected is None:  # the file is broken before this range: any header is as good as another
            right = True
        elif expected >= stop:
            right = extent.first is None
        else:
            first = stop if extent.first is None else extent.first
            right = extent.quiet <= expected <= first and extent.given == given
        repeated = frozenset(seen.intersection(joint.keys) if right else ())
        if not right or repeated:
            start = extent.quiet if expected is None else expected
            found.append(Correction(joint.number, start, given, repeated))
        if right:
            seen.update(joint.keys)
        if expected is not None and expected >= stop:
            continue  # a member fills the range, and none begins in it
        if not right:
            return found
        if extent.first is not None:
            expected, given = extent.end, extent.carried
        elif expected is not None:
            expected = stop
    return found


def correct(source: Source, store: Store, plan: Plan) -> int:
    """Remove the commits of shards that do not begin where they must, and store where they must begin.

    Args:
        source: of the plan.
        store: the dataset.
        plan: all of its shards are committed.

    Returns:
        How many shards must be read again; 0 if all shards meet.

    Raises:
        CorruptError: a commit cannot be read.
        OSError: a store failed.
    """
    if not isinstance(source, Ranged):
        return 0
    again = 0
    for joints in _files(store, plan):
        if joints is None:  # another run has just removed a commit
            again += 1
            continue
        attempts = {joint.number: joint.attempt for joint in joints}
        for correction in _of_file(source, plan, joints):
            number = correction.number
            ((_, spec),) = plan.specs(np.array([number]))
            plan.correct(number, source.begin_at(spec, correction.start, correction.given, correction.repeated))
            # Another run may have corrected the shard, and committed it again, since its commit was read.
            with suppress(FileNotFoundError):
                if read_summary(store, plan.id, number).attempt == attempts[number]:
                    store.delete([commit_key(plan.id, number)])
            again += 1
    return again


def misplaced(store: Store, plan: Plan) -> list[int]:
    """The committed shards of a plan that do not begin where they must, or read another version of their file than its first."""
    found: list[int] = []
    for joints in _files(store, plan):
        if joints:
            other = [joint.number for joint in joints if joint.extent.version != joints[0].extent.version]
            found += other or [correction.number for correction in corrections(joints)]
    return found


def foldable(store: Store, checked: Collection[str] = ()) -> list[str]:
    """The plans whose shards may become rows of a snapshot, oldest first.

    A plan of ranges whose shards do not all meet, or are not all there, would have some samples twice and others not at all. It
    is left out, unless it is in the newest snapshot: then all of its shards met once, and what `repair` removes is read again
    from the same places.

    Args:
        checked: ids of plans for which `correct` found nothing.
    """
    numbers = list_snapshots(store)
    known = {*checked, *(open_snapshot(store, numbers[-1]).plans if numbers else ())}
    return [
        plan.id
        for plan in list_plans(store)
        if not plan.info.ranged or plan.id in known or not (len(plan.remaining(store)) or misplaced(store, plan))
    ]


def _of_file(source: Ranged, plan: Plan, joints: Sequence[Joint]) -> list[Correction]:
    if len({joint.extent.version for joint in joints}) == 1:
        return corrections(joints)
    (spec,) = (spec for _, spec in plan.specs(np.array([joints[0].number])))
    now = source.version(spec)
    return [Correction(joint.number, None) for joint in joints if joint.extent.version != now]


def _files(store: Store, plan: Plan) -> Iterator[list[Joint] | None]:
    """The shards of each file that was cut into ranges; None for a shard without commit.

    The shards of a file behind one without commit are left out: nobody knows where they must begin.
    """

    def read(number: int) -> tuple[int, CommitSummary | None]:
        with suppress(FileNotFoundError):
            return number, read_summary(store, plan.id, number)
        return number, None

    joints: list[Joint] = []
    gap = False
    for number, summary in look_ahead(read, range(len(plan)), THREADS, "joints"):
        extent = None if summary is None else summary.extent
        if joints and (extent is None or extent.file != joints[0].extent.file):
            yield joints
            joints = []
        if summary is None:
            gap = True
            yield None
        elif extent is not None and (not gap or extent.begin == 0):
            gap = False
            joints.append(Joint(number, extent, summary.keys, summary.attempt))
    if joints:
        yield joints
