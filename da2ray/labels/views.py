"""Views: a named selection of a snapshot's rows for training, and why the others are left out. A view changes no label.

A view is two objects: first the list of kept rows, Parquet, named after its content, and then the JSON that names the list.
Readers believe only the JSON, so a view exists whole or not at all. `da2ray.labels.kept_rows` has the list.
"""

import hashlib
import re
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from pydantic import Field

from da2ray.errors import CorruptError, UserError
from da2ray.labels.kept_rows import count_kept, read_kept, write_kept
from da2ray.labels.schema import FORMAT_VERSION
from da2ray.labels.snapshots import Snapshot, open_snapshot
from da2ray.labels.stored import Stored, intact, read_versioned
from da2ray.storage import Store, StoreFile

OBJECT: Final = re.compile(r"views/[A-Za-z0-9_-][A-Za-z0-9._-]*-[0-9a-f]{32}\.parquet")
"""Keys of lists of kept rows: `views/<name>-<first 32 hex digits of the file's sha256>.parquet`."""

_NAME: Final = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,100}")
_REMEDY: Final = "make it again with jobs/curate.py --replace, or delete it"
_HASH_DIGITS: Final = 32
_PIECE: Final = 8 << 20
"""Bytes of a list read at a time to be hashed."""


class Rule(Stored):
    """A condition that kept rows meet.

    Attributes:
        name: of the rule.
        where: the condition as it was given.
        resolved: SQL over the index's columns, percentiles replaced by numbers.
        removes: rows that break it.
        alone: rows that break it and no other rule.
    """

    name: str
    where: str
    resolved: str
    removes: int
    alone: int


class Dedupe(Stored):
    """The removal of near-duplicates: one image is kept of each cluster whose perceptual hashes are near each other.

    Attributes:
        distance: bits in which a removed image's hash may differ from that of the kept image of its cluster.
        clusters: number of clusters of two images or more.
        removed: number of rows left out as duplicates.
    """

    distance: int
    clusters: int
    removed: int

    def __str__(self) -> str:
        """The condition that kept rows meet, for tables of rules."""
        return f"no better look-alike within {self.distance} bits"


class View(Stored):
    """The content of `views/<name>.json`.

    Attributes:
        created: UTC, ISO 8601.
        snapshot: number of the snapshot; `parts` is a digest of the parts it names, which shows if another snapshot has taken
            that number.
        rows: number of rows of the snapshot; `kept` is that of the view.
        rules: all rules that were applied.
        skipped: (name, why) of rules that were not applied because no row has their score.
        dedupe: None if duplicates were kept.
        val_share: share of keys in the split "val", from 0 to 1.
        by_split: kept rows of each split.
        object: key of the list of kept rows, of schema `kept_rows.KEPT`.
    """

    format_version: int = FORMAT_VERSION
    name: str
    created: str
    snapshot: int
    rows: int
    kept: int = 0
    rules: tuple[Rule, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    dedupe: Dedupe | None = None
    val_share: float
    by_split: dict[str, int] = Field(default_factory=dict)
    parts: str = ""
    object: str = ""

    def same_content(self, other: "View") -> bool:
        """Whether both keep the same rows for the same reasons, whenever they were made."""
        return self.model_copy(update={"created": other.created}) == other

    def check(self, snapshot: Snapshot) -> None:
        """Check that the view was made from this snapshot.

        Raises:
            CorruptError: it was made from another one.
        """
        if (self.snapshot, self.rows, self.parts) != (snapshot.number, snapshot.rows, _parts_digest(snapshot)):
            raise CorruptError(
                f"view {self.name} was made from another snapshot {self.snapshot} than the present one: make it again"
            )


def write_view(store: Store, view: View, kept: pa.Table | Iterable[pa.RecordBatch], *, replace: bool = False) -> View:
    """Store a view: its list of rows first, its JSON last.

    Args:
        store: of the dataset.
        view: `parts` and `object` are filled in here, and `kept` and `by_split` are counted; if they are given, they must equal
            the counts (a split without rows may be named).
        kept: `kept_rows.KEPT`, rows ascending. Batches are taken one by one; a temporary file (in TMPDIR) holds the list.
        replace: replace another view of this name. Readers that have the old view open must open the new one, because `gc`
            removes the old list.

    Returns:
        The view as stored. If a view of the same content existed, that one.

    Raises:
        UserError: the name is not allowed, there is another view of this name, or the snapshot does not exist.
        ValueError: rows are not ascending, not in the snapshot, or not as many as the view says.
        OSError: the store failed.
    """
    key = view_key(view.name)
    snapshot = open_snapshot(store, view.snapshot)
    if view.rows != snapshot.rows:
        raise ValueError(f"the view says {view.rows} rows, snapshot {snapshot.number} has {snapshot.rows}")
    with tempfile.TemporaryDirectory(prefix="da2ray-view-") as folder:
        path = Path(folder, "kept.parquet")
        view = _counted(view, write_kept(path, kept, view.rows))
        with path.open("rb") as file:
            name = f"{view.name}-{hashlib.file_digest(file, 'sha256').hexdigest()[:_HASH_DIGITS]}"
        view = view.model_copy(update={"object": f"views/{name}.parquet", "parts": _parts_digest(snapshot)})
        if not replace and view.name in list_views(store):
            _same(store, view)  # checked early, so that a view that is refused is not written
        # Even if the list exists: it may be a leftover, or damaged. Written again it is whole, and too young for `gc`.
        store.put_file(view.object, path)
    data = f"{view.model_dump_json(indent=1)}\n".encode()
    if replace:
        store.put(key, data)
        return view
    # If the JSON exists, it may be ours (its answer was lost), or another writer's with the same content.
    return view if store.create(key, data) else _same(store, view)


def open_view(store: Store, name: str) -> View:
    """A view by its name.

    Raises:
        UserError: there is no such view, or it is of a later format version.
        CorruptError: the object is not a view of this name.
        OSError: the store failed.
    """
    key = view_key(name)
    try:
        view = read_versioned(store, key, View, "a view", _REMEDY)
    except FileNotFoundError as error:
        there = ", ".join(list_views(store)) or "none yet; jobs/curate.py makes one"
        raise UserError(f"{store.url} has no view {name!r}; its views: {there}") from error
    with intact(store, key, "a view", _REMEDY):
        if view.name != name or not OBJECT.fullmatch(view.object):
            raise ValueError("it contradicts its name")
        if (
            sum(view.by_split.values()) != view.kept
            or view.kept > view.rows
            or min(view.by_split.values(), default=0) < 0
        ):
            raise ValueError("it contradicts itself")
    return view


def list_views(store: Store) -> list[str]:
    """Names of all views, ascending."""
    keys = (key for batch in store.list("views") for key in batch["key"].to_pylist())
    names = (view_name(key) for key in keys if key.endswith(".json"))
    return sorted(name for name in names if _NAME.fullmatch(name))


def view_key(name: str) -> str:
    """The key of a view's JSON.

    Raises:
        UserError: the name is not allowed.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"a view's name has up to 100 characters of A-Z a-z 0-9 . _ - and no dot in front; got {name!r}: see --view"
        )
    return f"views/{name}.json"


def view_name(key: str) -> str:
    """The name of a view, from the key of its JSON."""
    return key.removeprefix("views/").removesuffix(".json")


def check_split(view: View, split: str | None) -> None:
    """Check that the view has `split`; None means all.

    Raises:
        UserError: the view has no such split.
    """
    if split is not None and split not in view.by_split:
        there = ", ".join(sorted(view.by_split)) or "none, because it keeps no row"
        raise UserError(f"view {view.name} has no split {split!r}; its splits: {there}")


def read_positions(store: Store, view: View, split: str | None = None) -> np.ndarray:
    """The positions in the snapshot's index of a view's rows, or of one split: int64, ascending.

    Raises:
        UserError: the view has no such split.
        CorruptError: the list is missing, broken, or not what the view says.
        OSError: the store failed.
    """
    check_split(view, split)
    count = view.kept if split is None else view.by_split[split]
    return read_kept(store, view.object, split, count, view.rows)


def check_view(store: Store, name: str) -> int:
    """Check that a view's JSON, snapshot and list are whole: the list hashes to its name and has the rows that the view counts.

    Returns:
        The size of the list in bytes; it is read in pieces.

    Raises:
        UserError: there is no such view or snapshot, or one of them is of a later format version.
        CorruptError: one of the three is broken, the list is missing, or the snapshot is another one.
        OSError: the store failed.
    """
    view = open_view(store, name)
    view.check(open_snapshot(store, view.snapshot))
    found = hashlib.sha256()
    try:
        with StoreFile(store, view.object) as file:
            size = file.size()
            while piece := file.read(_PIECE):
                found.update(piece)
    except FileNotFoundError:
        raise CorruptError(f"its list {view.object} is missing: make the view again with --replace") from None
    if found.hexdigest()[:_HASH_DIGITS] != view.object.removesuffix(".parquet").rpartition("-")[2]:
        raise CorruptError(
            f"the bytes of its list {view.object} do not hash to its name: make the view again with --replace"
        )
    if count_kept(store, view.object) != Counter(view.by_split):
        raise CorruptError(
            f"it counts {view.by_split}, but its list has other numbers: make the view again with --replace"
        )
    return size


def _same(store: Store, view: View) -> View:
    """The stored view of this name, which must have the same content.

    Raises:
        UserError: it is another view.
    """
    there = open_view(store, view.name)
    if not there.same_content(view):
        raise UserError(f"{store.url} has another view {view.name}: choose another --view name, or --replace it")
    return there


def _counted(view: View, by_split: Counter[str]) -> View:
    """The view with the counts of what was written."""
    kept = by_split.total()
    given = {split: count for split, count in view.by_split.items() if count}
    if (given and given != by_split) or (view.kept and view.kept != kept):
        raise ValueError(f"the view says {view.kept} kept rows, {view.by_split}; got {kept}, {dict(by_split)}")
    return view.model_copy(
        update={"kept": kept, "by_split": dict(sorted({**dict.fromkeys(view.by_split, 0), **by_split}.items()))}
    )


def _parts_digest(snapshot: Snapshot) -> str:
    names = "".join(f"{part.name}\n" for part in snapshot.parts)
    return hashlib.sha256(names.encode()).hexdigest()[:_HASH_DIGITS]
