"""Snapshots: numbered, immutable versions of a dataset. `da2ray.labels.fold` makes their parts of commits."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Final

from da2ray.errors import CorruptError, UserError
from da2ray.labels.fold import OnProgress, State, fold
from da2ray.labels.listing import digest, read_listing, write_listing
from da2ray.labels.parts import Folded, Part
from da2ray.labels.schema import FORMAT_VERSION
from da2ray.labels.stored import Stored, intact, read_versioned
from da2ray.storage import Store

_KEY: Final = re.compile(r"snapshots/([0-9]{6}|[1-9][0-9]{6,17})\.json")


class Snapshot(Stored):
    """A version of the dataset. `number` counts from 1; `parent` is None for the first.

    Attributes:
        created: UTC, ISO 8601.
        fingerprint: of the run that made it; `fingerprints` are those of the live rows.
        plans: ids, oldest first.
        rows, by_status, by_reason: counts of the live rows.
        superseded: number of committed rows that are not live; those of `spent` count too.
        parts: in the order of rows: plans as in `plans`, then shards.
        spent: ranges of commits without any live row.
        changes: how many rows are `new`, `gone` and `changed` since the parent; None if nobody counted them.
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
    spent: tuple[Folded, ...] = ()
    changes: dict[str, int] | None = None

    def same_state(self, other: "Snapshot") -> bool:
        """Whether both hold the same rows, whatever their numbers and times and whoever made them."""
        return [(part.plan, *part.keys) for part in self.parts] == [(part.plan, *part.keys) for part in other.parts]

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that stand for the rows: a hash of the names of what the parts are made of."""
        names = "".join(f"{key}\n" for part in self.parts for key in part.keys)
        return hashlib.sha256(names.encode()).hexdigest()[:32]


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
        state = fold(store, listed, _entries(parent), partial(_parts_of, store, parent), on_progress)
        snapshot = _assemble(state, listed, fingerprint, parent)
        if parent is not None and parent.same_state(snapshot):
            return parent
        if parent is not None:
            _carry_listing(store, parent, snapshot, state)
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
    fold(store, plans, _entries(parent), partial(_parts_of, store, parent), None)


def _assemble(state: State, plans: Sequence[str], fingerprint: str, parent: Snapshot | None) -> Snapshot:
    entries = state.entries
    parts = [entry for entry in entries if isinstance(entry, Part)]
    return Snapshot(
        number=parent.number + 1 if parent else 1,
        parent=parent.number if parent else None,
        created=datetime.now(UTC).isoformat(),
        fingerprint=fingerprint,
        fingerprints=tuple(sorted({found for part in parts for found in part.by_fingerprint})),
        plans=tuple(plans),
        rows=sum(part.rows for part in parts),
        by_status=_sum(part.by_status for part in parts),
        by_reason=_sum(part.by_reason for part in parts),
        superseded=sum(entry.superseded for entry in entries),
        parts=tuple(parts),
        spent=tuple(entry for entry in entries if not isinstance(entry, Part)),
        changes=state.delta.counts() if state.delta else None,
    )


def _entries(snapshot: Snapshot | None) -> Sequence[Folded]:
    return (*snapshot.parts, *snapshot.spent) if snapshot else ()


def _parts_of(store: Store, parent: Snapshot | None, number: int) -> set[str] | None:
    """The names of the parts of a snapshot that a plan was made from; None if it is not there any more."""
    try:
        found = parent if parent and parent.number == number else open_snapshot(store, number)
    except (UserError, CorruptError):
        return None
    return {part.name for part in found.parts}


def _carry_listing(store: Store, parent: Snapshot, snapshot: Snapshot, state: State) -> None:
    """Make the listing of a snapshot from that of its parent, if the parent has one."""
    if state.delta is None:
        return
    try:
        before = read_listing(store, parent.digest)
    except (FileNotFoundError, CorruptError):
        return
    added, removed = (digest(before.last_keys, samples) for samples in (state.delta.added, state.delta.removed))
    write_listing(store, snapshot.digest, before.changed(added, removed))


def _sum(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(sorted(total.items()))
