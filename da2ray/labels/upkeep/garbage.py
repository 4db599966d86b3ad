"""`da2ray gc`: remove what nothing names.

Names move on: an attempt writes its object, its commit names the object, a snapshot names it too, and then `repair` may
remove the commit. So `collect` first lists the objects that might go, and then reads names in the order in which they
move: commits, then snapshots. A name that moves meanwhile is seen in the later place. Two cases remain: an attempt that
has written its object but not yet its commit, and a snapshot or view that has written its parts but not yet itself. The
grace period, counted from when an object was written, covers both, and clocks that differ.
"""

import bisect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

import pyarrow as pa

from da2ray.console import OnProgress
from da2ray.errors import CorruptError
from da2ray.labels.commits import commit_key, list_all_commits, read_commit
from da2ray.labels.fold import THREADS, is_folded
from da2ray.labels.leases import list_leases, read_lease
from da2ray.labels.listing import listing_key
from da2ray.labels.parts import Part, read_part
from da2ray.labels.snapshots import Snapshot, list_snapshots, open_snapshot, snapshot_key
from da2ray.labels.tags import list_tags
from da2ray.labels.views import OBJECT as VIEW_OBJECT
from da2ray.labels.views import list_views, open_view
from da2ray.plan.plan import list_plans
from da2ray.storage import Store
from da2ray.storage.local import LocalStore

Shard = tuple[str, int]
"""The plan and the number of a shard."""
Sizes = Mapping[str, int]
"""The sizes of objects in bytes, by key."""

TEMPORARY: Final = "temporary files"
_OBJECT: Final = re.compile(r"shards/([^/]+)/(\d{8,})-[0-9a-f]{16}\.(?:parquet|zarr\.zip)")
_PART: Final = re.compile(r"index/[0-9a-f]{32}(\.retired)?\.parquet")
_LISTING: Final = re.compile(r"listings/[0-9a-f]{32}\.parquet")
_CHUNK: Final = 1000
"""Keys in one request of a deletion."""

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(slots=True)
class Tally:
    objects: int = 0
    bytes: int = 0

    def add(self, found: Sizes) -> None:
        self.objects += len(found)
        self.bytes += sum(found.values())


@dataclass(slots=True)
class Collected:
    """What `collect` did.

    Attributes:
        removed: objects removed, by folder; in a dry run, those that would be.
        young: objects that no commit names, kept because they are younger than the grace period. A snapshot may name them.
        unreadable: keys of commits and index parts that cannot be read. What they name is not known, so all objects of their
            shards were kept.
    """

    removed: dict[str, Tally] = field(default_factory=dict)
    young: Tally = field(default_factory=Tally)
    unreadable: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SnapshotNames:
    """The objects that snapshots name, with the snapshots' numbers, and the index parts that cannot be read.

    A part that cannot be read may name any object of its shards.
    """

    objects: dict[str, set[int]]
    unreadable: list[Part]


@dataclass(frozen=True, slots=True)
class Keep:
    """Which snapshots stay: the `newest` ones, those younger than `age`, and those that a tag or a view names."""

    newest: int
    age: timedelta = timedelta(0)


def collect(
    store: Store,
    grace: timedelta,
    *,
    dry_run: bool,
    keep: Keep | None = None,
    on_progress: OnProgress | None = None,
) -> Collected:
    """Remove objects that no commit, snapshot or view names, expired leases, and temporary files. Foreign files stay.

    Args:
        store: of a dataset.
        grace: age from which an object is removed. It must be longer than a job takes from an object to its commit, from an
            index part to its snapshot, and from a view's list to the view. 0 is for datasets that nothing writes to.
        dry_run: only count.
        keep: remove the other snapshots, and the objects whose labels are in no snapshot any more. Commits stay, because the
            next run labels plan minus commits. Objects stay while a plan is not finished or a commit is in no snapshot. None
            keeps all snapshots.
        on_progress: called with (done, total) in each series of requests.

    Raises:
        UserError, CorruptError: a snapshot or a view cannot be read, so what it names is not known; nothing was removed.
        OSError: the store failed.
    """
    objects = _list_objects(store)
    parts = _list(store, "index", _PART)
    lists = _list(store, "views", VIEW_OBJECT)
    listings = _list(store, "listings", _LISTING)
    with ThreadPoolExecutor(THREADS, thread_name_prefix="gc") as pool:
        gc = _Collector(store, datetime.now(UTC) - grace, dry_run, on_progress, pool)
        unnamed = gc.old(gc.without_commit(objects))
        snapshots = [open_snapshot(store, number) for number in list_snapshots(store)]
        views = [open_view(store, name) for name in list_views(store)]
        viewed = {view.object for view in views}
        kept = snapshots if keep is None else _kept(store, snapshots, keep, {view.snapshot for view in views})
        if keep is not None:
            gc.remove("snapshots", {snapshot_key(each.number): 0 for each in snapshots if each not in kept})
            unnamed = {**unnamed, **gc.old(gc.superseded(objects, snapshots))}
            snapshots = kept
        gc.remove("shards", gc.without_snapshot(unnamed, snapshots))
        live = {key for snapshot in snapshots for part in snapshot.parts for key in part.keys}
        # Their age is read just before they go, because a snapshot in the making that finds a leftover part writes it anew.
        gc.remove("index", gc.old({key: size for key, size in parts.items() if key not in live}))
        listed = {listing_key(snapshot.digest) for snapshot in snapshots}
        gc.remove("listings", gc.old({key: size for key, size in listings.items() if key not in listed}))
        gc.remove("views", gc.old({key: size for key, size in lists.items() if key not in viewed}))
        gc.remove("leases", gc.over(list_leases(store)))
        gc.remove(TEMPORARY, gc.old(_leftovers(store)))
    return gc.collected


class _Collector:
    """The steps of `collect`: each takes keys with their sizes and returns some of them."""

    def __init__(
        self, store: Store, before: datetime, dry_run: bool, on_progress: OnProgress | None, pool: ThreadPoolExecutor
    ) -> None:
        self._store = store
        self._before = before
        self._dry_run = dry_run
        self._on_progress = on_progress
        self._pool = pool
        self.collected = Collected()

    def without_commit(self, objects: Mapping[Shard, Sizes]) -> Sizes:
        """The objects that no commit names.

        Only commits of shards with several objects are read. If a committed shard has one object, it is the committed one,
        because that was written before the commit and so was listed. (If the committed object was lost, the listed one is
        the leftover of another attempt, and goes once `repair` has removed the commit.)
        """
        committed = {
            (plan, entry.shard) for plan, entries in list_all_commits(self._store).items() for entry in entries
        }
        unnamed = {
            key: size for shard, found in objects.items() if shard not in committed for key, size in found.items()
        }
        several = [shard for shard, found in objects.items() if shard in committed and len(found) > 1]
        for shard, name in self._each(self._committed_object, several):
            if name is None:
                self.collected.unreadable.append(commit_key(*shard))
            else:
                unnamed |= {key: size for key, size in objects[shard].items() if key != name}
        return unnamed

    def superseded(self, objects: Mapping[Shard, Sizes], snapshots: Sequence[Snapshot]) -> Sizes:
        """The objects of shards some of whose rows are not live in the newest snapshot.

        None if a plan is not finished or a commit is not in that snapshot: it may keep a label of any object.
        """
        commits = list_all_commits(self._store)
        entries = [entry for snapshot in snapshots[-1:] for entry in (*snapshot.parts, *snapshot.spent)]
        finished = all(len(commits.get(plan.id, ())) == len(plan) for plan in list_plans(self._store))
        if not finished or not is_folded(entries, commits):
            return {}
        dead = [entry for entry in entries if entry.superseded > entry.gone or not isinstance(entry, Part)]
        spans = {(entry.plan, entry.first_shard, entry.last_shard) for entry in dead}
        return {
            key: size
            for (plan, shard), found in objects.items()
            if any(plan == each and first <= shard <= last for each, first, last in spans)
            for key, size in found.items()
        }

    def without_snapshot(self, found: Sizes, snapshots: Sequence[Snapshot]) -> Sizes:
        """The objects that no snapshot names."""
        shards = {key: _shard(key) for key in found}
        names = named_by_snapshots(self._store, snapshots, set(shards.values()))
        self.collected.unreadable += [part.key for part in names.unreadable]
        return {
            key: size
            for key, size in found.items()
            if key not in names.objects and not any(_covers(part, shards[key]) for part in names.unreadable)
        }

    def old(self, found: Sizes) -> Sizes:
        """The objects that are older than the grace period."""
        ages = dict(self._each(self._is_old, list(found)))
        self.collected.young.add({key: found[key] for key, is_old in ages.items() if is_old is False})
        return {key: found[key] for key, is_old in ages.items() if is_old}

    def over(self, leases: Sizes) -> Sizes:
        """The leases that expired longer ago than the grace period."""
        return {key: leases[key] for key, is_over in self._each(self._is_over, list(leases)) if is_over}

    def remove(self, folder: str, found: Sizes) -> None:
        self.collected.removed[folder] = Tally()
        self.collected.removed[folder].add(found)
        keys = list(found)
        for start in range(0, 0 if self._dry_run else len(keys), _CHUNK):
            self._store.delete(keys[start : start + _CHUNK])
            if self._on_progress:
                self._on_progress(min(start + _CHUNK, len(keys)), len(keys))

    def _each(self, work: Callable[[In], Out], items: Sequence[In]) -> Iterator[tuple[In, Out]]:
        for done, (item, result) in enumerate(zip(items, self._pool.map(work, items), strict=True), start=1):
            if self._on_progress:
                self._on_progress(done, len(items))
            yield item, result

    def _committed_object(self, shard: Shard) -> str | None:
        """The object that a shard's commit names: "" if `repair` has removed the commit since, None if the commit is corrupt."""
        try:
            return read_commit(self._store, *shard).object
        except FileNotFoundError:
            return ""
        except CorruptError:
            return None

    def _is_old(self, key: str) -> bool | None:
        """Whether an object is older than the grace period: None if it is missing, False if the store does not say."""
        try:
            modified = self._store.stat(key).modified
        except FileNotFoundError:
            return None
        return modified is not None and modified <= self._before

    def _is_over(self, key: str) -> bool:
        try:
            return read_lease(self._store, key).expires <= self._before
        except FileNotFoundError:
            return False
        except CorruptError:  # a broken lease binds nobody
            return self._is_old(key) is True


def _kept(store: Store, snapshots: Sequence[Snapshot], keep: Keep, viewed: set[int]) -> list[Snapshot]:
    named = viewed | {tag.snapshot for tag in list_tags(store)} | {each.number for each in snapshots[-keep.newest :]}
    before = datetime.now(UTC) - keep.age
    return [each for each in snapshots if each.number in named or datetime.fromisoformat(each.created) > before]


def named_by_snapshots(store: Store, snapshots: Iterable[Snapshot], shards: set[Shard]) -> SnapshotNames:
    """The objects of these shards that these snapshots name. It reads only parts that can have a row of these shards."""
    parts: dict[str, tuple[Part, set[int]]] = {}
    ordered = sorted(shards)
    for snapshot in snapshots:
        for part in snapshot.parts:
            if any(_any_within(ordered, span) for span in _spans(part)):
                parts.setdefault(" ".join(part.keys), (part, set()))[1].add(snapshot.number)
    names = SnapshotNames({}, [])
    for part, numbers in parts.values():
        try:
            rows = read_part(store, part, ["object"])
        except CorruptError:
            names.unreadable.append(part)
            continue
        for key in rows["object"].drop_null().unique().to_pylist():
            if _OBJECT.fullmatch(key) and _shard(key) in shards:
                names.objects.setdefault(key, set()).update(numbers)
    return names


def _list(store: Store, folder: str, pattern: re.Pattern[str]) -> Sizes:
    """The objects with such a name; other files in the folder are not ours."""
    return {key: size for key, size in _sizes(store.list(folder)) if pattern.fullmatch(key)}


def _list_objects(store: Store) -> dict[Shard, dict[str, int]]:
    """The shard objects by shard. They take about 300 bytes of memory each."""
    found: dict[Shard, dict[str, int]] = {}
    for key, size in _list(store, "shards", _OBJECT).items():
        found.setdefault(_shard(key), {})[key] = size
    return found


def _leftovers(store: Store) -> Sizes:
    """The temporary files of killed writers. Only folders have them; object stores show nothing before it is whole."""
    return dict(_sizes(store.leftovers())) if isinstance(store, LocalStore) else {}


def _sizes(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[str, int]]:
    for batch in batches:
        yield from zip(batch["key"].to_pylist(), batch["size"].to_pylist(), strict=True)


def _shard(key: str) -> Shard:
    """The shard of an object, from its key."""
    _, plan, name = key.split("/")
    return plan, int(name.partition("-")[0])


def _covers(part: Part, shard: Shard) -> bool:
    return any(plan == shard[0] and first <= shard[1] <= last for plan, first, last in _spans(part))


def _spans(part: Part) -> Iterable[tuple[str, int, int]]:
    """(plan, first shard, last shard) of the shards whose objects a part may name."""
    return ((part.plan, part.first_shard, part.last_shard), *part.refs)


def _any_within(ordered: Sequence[Shard], span: tuple[str, int, int]) -> bool:
    """Whether one of these shards, ascending, is in the span."""
    plan, first, last = span
    place = bisect.bisect_left(ordered, (plan, first))
    return place < len(ordered) and ordered[place] <= (plan, last)
