"""Views: which rows of a snapshot training takes, under a name, and why the others are left out. A view changes no label.

A view is two objects: the list of kept rows, Parquet, named after its content, and then the JSON that names it. A reader
believes the JSON only, so a view is there whole or not at all. da2ray/labels/kept_rows.py has the list.
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
from da2ray.labels.stored import Stored, parse_stored
from da2ray.storage import Store, StoreFile

OBJECT: Final = re.compile(r"views/[A-Za-z0-9_-][A-Za-z0-9._-]*-[0-9a-f]{32}\.parquet")
"""Keys of lists of kept rows: `views/<name>-<first 32 hex digits of the file's sha256>.parquet`."""

_NAME: Final = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,100}")
_HASH_DIGITS: Final = 32
_PIECE: Final = 8 << 20
"""Bytes of a list read at a time to be hashed."""


class Rule(Stored):
    """A condition that kept rows do not break.

    Attributes:
        name: of the rule.
        where: as it was given.
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
    """Of images whose perceptual hashes are near each other one is kept.

    Attributes:
        distance: bits in which two hashes of one cluster may differ.
        clusters: of two images or more.
        removed: rows that were left out for it.
    """

    distance: int
    clusters: int
    removed: int

    def __str__(self) -> str:
        """What it keeps, as a rule."""
        return f"no better look-alike within {self.distance} bits"


class View(Stored):
    """The content of `views/<name>.json`.

    Attributes:
        created: UTC, ISO 8601.
        snapshot: its number; `parts` is a digest of the parts it names, so that another snapshot under that number is noticed.
        rows: of the snapshot; `kept` of the view.
        rules: all that were applied.
        skipped: (name, why) of rules that were not, since no row has their score.
        dedupe: None where duplicates were left in.
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
        """Whether both keep the same rows for the same reasons; when they were made aside."""
        return self.model_copy(update={"created": other.created}) == other

    def check(self, snapshot: Snapshot) -> None:
        """Whether it is a view of this snapshot.

        Raises:
            CorruptError: it was made of another one.
        """
        if (self.snapshot, self.rows, self.parts) != (snapshot.number, snapshot.rows, _parts_digest(snapshot)):
            raise CorruptError(
                f"view {self.name} was made of another snapshot {self.snapshot} than the one that is there: make it again"
            )


def write_view(store: Store, view: View, kept: pa.Table | Iterable[pa.RecordBatch], *, replace: bool = False) -> View:
    """Store a view: its list of rows first, its JSON last.

    Args:
        store: of the dataset.
        view: `parts` and `object` are filled in here, and `kept` and `by_split` are counted; where they are given, they must be
            what is counted (a split without rows may be named).
        kept: `kept_rows.KEPT`, rows ascending. Batches are taken one by one; a temporary file (in TMPDIR) holds what was written.
        replace: in place of another view of this name. Who has that one open must open the new one: `gc` removes the old list.

    Returns:
        What is stored: of a view that was there with the same content, that one.

    Raises:
        UserError: the name is none, there is another view of this name, or no such snapshot.
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
            _same(store, view)  # asked early: what is refused need not be written
        # Also where it is there: a leftover, or one that was damaged. Written again it is whole, and too young for `gc`.
        store.put_file(view.object, path)
    data = f"{view.model_dump_json(indent=1)}\n".encode()
    if replace:
        store.put(key, data)
        return view
    # Where it exists it may be ours, its answer lost, or another one's of the same content.
    return view if store.create(key, data) else _same(store, view)


def open_view(store: Store, name: str) -> View:
    """A view by its name.

    Raises:
        UserError: no such view, or it is of a later format version.
        CorruptError: the object is no view of this name.
        OSError: the store failed.
    """
    key = view_key(name)
    try:
        data = store.get(key)
    except FileNotFoundError as error:
        there = ", ".join(list_views(store)) or "none yet: jobs/curate.py makes one"
        raise UserError(f"{store.url} has no view {name!r}; views there: {there}") from error
    try:
        return _checked(parse_stored(View, data, f"view {name} of {store.url}"), name)
    except ValueError as error:
        raise CorruptError(f"{store.url}/{key} is no view ({error}): make it again with --replace") from error


def list_views(store: Store) -> list[str]:
    """Names of all views, ascending."""
    keys = (key for batch in store.list("views") for key in batch["key"].to_pylist())
    names = (view_name(key) for key in keys if key.endswith(".json"))
    return sorted(name for name in names if _NAME.fullmatch(name))


def view_key(name: str) -> str:
    """Of a view's JSON.

    Raises:
        UserError: such a name is not allowed.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"a view's name is up to 100 of A-Z a-z 0-9 . _ - without a dot in front, not {name!r}: see --view"
        )
    return f"views/{name}.json"


def view_name(key: str) -> str:
    """Of a view, by the key of its JSON."""
    return key.removeprefix("views/").removesuffix(".json")


def check_split(view: View, split: str | None) -> None:
    """Whether the view has this split; None, all of them, it has.

    Raises:
        UserError: it has not.
    """
    if split is not None and split not in view.by_split:
        there = ", ".join(sorted(view.by_split)) or "none, since it keeps no row"
        raise UserError(f"view {view.name} has no split {split!r}; its splits: {there}")


def read_positions(store: Store, view: View, split: str | None = None) -> np.ndarray:
    """Positions in the snapshot's index of a view's rows, or of those of one split: int64, ascending.

    Raises:
        UserError: no such split.
        CorruptError: the list is gone, broken, or not what the view says.
        OSError: the store failed.
    """
    check_split(view, split)
    count = view.kept if split is None else view.by_split[split]
    return read_kept(store, view.object, split, count, view.rows)


def check_view(store: Store, name: str) -> int:
    """Whether a view is whole: its JSON, its snapshot, and its list, whose bytes must hash to its name and be the rows it counts.

    Returns:
        Bytes of the list, which is read in pieces.

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
        raise CorruptError(f"it counts {view.by_split}, its list has other numbers: make the view again with --replace")
    return size


def _checked(view: View, name: str) -> View:
    if view.name != name or not OBJECT.fullmatch(view.object) or sum(view.by_split.values()) != view.kept:
        raise ValueError("it contradicts its name or itself")
    return view


def _same(store: Store, view: View) -> View:
    """The view that is there under this name.

    Raises:
        UserError: it is another one.
    """
    there = open_view(store, view.name)
    if not there.same_content(view):
        raise UserError(f"{store.url} has another view {view.name}: choose another --view name, or --replace it")
    return there


def _counted(view: View, by_split: Counter[str]) -> View:
    """With the numbers of what was written."""
    kept = by_split.total()
    given = {split: count for split, count in view.by_split.items() if count}
    if (given and given != by_split) or (view.kept and view.kept != kept):
        raise ValueError(f"the view says {view.kept} kept rows, {view.by_split}; given were {kept}, {dict(by_split)}")
    return view.model_copy(
        update={"kept": kept, "by_split": dict(sorted({**dict.fromkeys(view.by_split, 0), **by_split}.items()))}
    )


def _parts_digest(snapshot: Snapshot) -> str:
    names = "".join(f"{part.name}\n" for part in snapshot.parts)
    return hashlib.sha256(names.encode()).hexdigest()[:_HASH_DIGITS]
