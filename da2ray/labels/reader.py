"""Reading labels: `open_labels(url)` returns a sequence of them. A label costs one range GET, plus one each for its mask and its
far class, if present; both shard formats cost the same. README.md beside this file is for readers.
"""

import itertools
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, overload

import numpy as np
import pyarrow as pa

from da2ray.errors import UserError
from da2ray.labels.codec import dequantise
from da2ray.labels.dataset import DatasetInfo, open_dataset
from da2ray.labels.index_rows import IndexRows
from da2ray.labels.schema import INDEX, SCORE_COLUMNS
from da2ray.labels.shards.base import FAR_BITS, MAPS
from da2ray.labels.shards.formats import read_mask, read_value
from da2ray.labels.snapshots import Snapshot, open_snapshot
from da2ray.labels.views import View, check_split, open_view, read_positions
from da2ray.parallel import look_ahead
from da2ray.storage import Client, Store, open_store
from da2ray.teachers.base import Kind

THREADS: Final = 16
"""GETs in flight while iterating: obstore serves 2,442 a second at 16 and 2,765 at 64 (measured, 2 cores)."""


@dataclass(frozen=True, slots=True)
class Label:
    """A sample and what the teacher said about it.

    Attributes:
        key, uri: of the sample.
        status: labelled, rejected or failed; `reason` says why the sample is not labelled, else it is None.
        size: (height, width) of the image as displayed, in pixels; None if the image could not be read.
        kind: what `depth` means; None if there is no depth.
        depth: float32 (height, width) at the network's size, in the dataset's unit; None if not labelled.
        mask: uint8 (height, width) confidence levels, from 0 (least sure) to 2^mask_bits - 1 (surest); None if there is no mask.
            `confidence` has them as shares.
        mask_bits: 1 to 8; None without a mask.
        scores: the scores that were measured, by name.
        metric: (scale, shift) of the fit that turns the depth into metres; None if there is no fit. See `metres`.
        far: bool (height, width), True at pixels without a distance (sky), whatever `depth` has there; None if the teacher cannot
            tell (`far_share` is null).
    """

    key: str
    uri: str
    status: str
    reason: str | None
    size: tuple[int, int] | None
    kind: Kind | None
    depth: np.ndarray | None = field(repr=False)
    mask: np.ndarray | None = field(repr=False)
    scores: dict[str, float]
    mask_bits: int | None = None
    metric: tuple[float, float] | None = None
    far: np.ndarray | None = field(default=None, repr=False)

    @property
    def confidence(self) -> np.ndarray | None:
        """The mask as float32 (height, width), from 0 (least sure) to 1; None if there is no mask."""
        if self.mask is None or self.mask_bits is None:
            return None
        return self.mask.astype(np.float32) / np.float32(2**self.mask_bits - 1)

    @property
    def metres(self) -> np.ndarray | None:
        """The depth in metres, float32 (height, width), larger = farther; None if it is relative and has no fit.

        Relative depth is converted by its fit to a metric checker: the detail is the teacher's, the scale the checker's, as good
        as `metric_residual` says. Pixels whose disparity is at or below zero by that fit are infinitely far; affine-invariant
        depth below zero becomes zero.
        """
        if self.depth is None or self.kind is Kind.METRIC:
            return self.depth
        if self.metric is None:
            return None
        scale, shift = map(np.float32, self.metric)
        line = scale * self.depth + shift
        if self.kind is Kind.DEPTH:
            return np.maximum(line, 0)
        with np.errstate(divide="ignore", over="ignore"):
            return np.where(line > 0, 1 / line, np.float32(np.inf))


NEEDED: Final = (
    *("key", "uri", "status", "reason", "height", "width", "network_height", "network_width", "object"),
    *(f"{prefix}_{what}" for prefix in ("byte", *MAPS) for what in ("offset", "length", "crc32")),
    *("mask_bits", "kind", "scale", "offset", "metric_scale", "metric_shift", *SCORE_COLUMNS.names),
)
"""The columns of INDEX that a `Label` is made of; the others are a third of a row's bytes."""


class Labels(Sequence[Label]):
    """The labels of one snapshot, or those of it that a view keeps, in the order of the index. Make one with `open_labels`.

    Memory: iterating and slices hold one part of the index at a time. Random access keeps each part it touches in memory (290
    bytes a row), so a process that draws from all of 62M rows at random ends with 18 GB. For tens of millions of labels, shuffle
    slices or sample from a view.

    Threads may share an instance. Pickling leaves out what is loaded; a worker loads its own when it first needs it.

    Attributes:
        store: the dataset's store.
        info: the content of `dataset.json`.
        snapshot: the version that is read.
        view: None for all rows of the snapshot; `split` is None for all rows of the view.
    """

    def __init__(
        self, store: Store, info: DatasetInfo, snapshot: Snapshot, view: View | None = None, split: str | None = None
    ) -> None:
        self.store = store
        self.info = info
        self.snapshot = snapshot
        self.view = view
        self.split = split
        self._lock = threading.Lock()
        self._rows: IndexRows | None = None
        self._index: pa.Table | None = None
        self._positions: dict[str, int] | None = None

    def __len__(self) -> int:
        if self.view is None:
            return self.snapshot.rows
        return self.view.kept if self.split is None else self.view.by_split[self.split]

    @overload
    def __getitem__(self, item: int) -> Label: ...
    @overload
    def __getitem__(self, item: slice) -> list[Label]: ...
    def __getitem__(self, item: int | slice) -> Label | list[Label]:
        """One label, or the labels of a slice, which are read by several threads.

        Raises:
            IndexError: there is no such row.
            OSError: the store failed, or the label's bytes are corrupt (the message names the object).
        """
        if isinstance(item, slice):
            return list(self._read(range(*item.indices(len(self)))))
        position = item + len(self) if item < 0 else item
        if not 0 <= position < len(self):
            raise IndexError(f"label {item} of {len(self)}")
        return self._label(position)

    def __iter__(self) -> Iterator[Label]:
        """All labels in order, read ahead by several threads."""
        return self._read(range(len(self)))

    @property
    def index(self) -> pa.Table:
        """All rows of INDEX, loaded once: about 510 bytes a row in memory, 150 stored. `tables` takes less."""
        if self._index is None:
            # Assigned when whole: two threads may both load it, but neither sees half of it.
            self._index = pa.concat_tables([INDEX.empty_table(), *self.tables()])
        return self._index

    def tables(self, columns: Sequence[str] = INDEX.names) -> Iterator[pa.Table]:
        """The index, or some of its columns, in pieces of about 256,000 rows; a few pieces are in memory at a time."""
        return self._index_rows().tables(columns)

    def rows(self, positions: Iterable[int]) -> Iterator[dict[str, Any]]:
        """The rows at these positions, ascending, as `label_of` takes them; one part of the index is in memory at a time."""
        return self._index_rows().rows(positions)

    def by_key(self, key: str) -> Label:
        """The label of a sample. The first call builds a table of all keys in memory (about 150 bytes a row).

        Raises:
            KeyError: no row has this key.
        """
        if self._positions is None:
            keys = itertools.chain.from_iterable(piece["key"].to_pylist() for piece in self.tables(["key"]))
            self._positions = {found: position for position, found in enumerate(keys)}
        return self._label(self._positions[key])

    def __repr__(self) -> str:
        view = f", view {self.view.name}" if self.view else ""
        split = f", split {self.split}" if self.split else ""
        return f"<{len(self)} labels of {self.store.url}, snapshot {self.snapshot.number}{view}{split}>"

    def __reduce__(self) -> tuple[type["Labels"], tuple[Store, DatasetInfo, Snapshot, View | None, str | None]]:
        return Labels, (self.store, self.info, self.snapshot, self.view, self.split)

    def _index_rows(self) -> IndexRows:
        with self._lock:
            if self._rows is None:
                positions = read_positions(self.store, self.view, self.split) if self.view else None
                self._rows = IndexRows(self.store, self.snapshot, positions, NEEDED)
            return self._rows

    def _read(self, positions: range) -> Iterator[Label]:
        yield from look_ahead(self.label_of, self.rows(positions), THREADS, "labels")

    def _label(self, position: int) -> Label:
        return self.label_of(self._index_rows().row(position))

    def label_of(self, row: dict[str, Any]) -> Label:
        """The label of an index row that the caller has, with at least the columns NEEDED. It does not load the index.

        Raises:
            OSError: the store failed, or the label's bytes are corrupt (the message names the object).
        """
        return Label(
            key=row["key"],
            uri=row["uri"],
            status=row["status"],
            reason=row["reason"],
            size=None if row["height"] is None or row["width"] is None else (row["height"], row["width"]),
            kind=None if row["kind"] is None else Kind(row["kind"]),
            depth=None if row["byte_offset"] is None else self._depth(row),
            mask=None if row["mask_offset"] is None else self._levels(row, "mask", row["mask_bits"]),
            mask_bits=row["mask_bits"],
            metric=None if row["metric_scale"] is None else (row["metric_scale"], row["metric_shift"]),
            far=None if row["byte_offset"] is None or row["far_share"] is None else self._far(row),
            scores={name: row[name] for name in SCORE_COLUMNS.names if row[name] is not None},
        )

    def _depth(self, row: dict[str, Any]) -> np.ndarray:
        height, width = row["network_height"], row["network_width"]
        q = self._value(row, "byte", "label", lambda data: read_value(data, height, width, self.info.format))
        return dequantise(q, row["scale"], row["offset"])

    def _far(self, row: dict[str, Any]) -> np.ndarray:
        if row["far_offset"] is None:
            return np.zeros((row["network_height"], row["network_width"]), dtype=np.bool_)
        return self._levels(row, "far", FAR_BITS).astype(np.bool_)

    def _levels(self, row: dict[str, Any], name: str, bits: int) -> np.ndarray:
        """One of MAPS, uint8 (height, width)."""
        height, width = row["network_height"], row["network_width"]
        return self._value(row, name, MAPS[name], lambda data: read_mask(data, height, width, bits, self.info.format))

    def _value(self, row: dict[str, Any], prefix: str, what: str, read: Callable[[bytes], np.ndarray]) -> np.ndarray:
        """Fetch a row's depth, or one of MAPS, by one range GET; check and decode it."""
        offset, length, crc32 = (row[f"{prefix}_{name}"] for name in ("offset", "length", "crc32"))
        data = self.store.get_range(row["object"], offset, length)
        try:
            return read(_checked(data, crc32))
        except ValueError as error:
            url = self.store.url
            raise OSError(
                f"{url}/{row['object']}: the {what} of {row['key']!r}, {length} bytes from {offset}, is corrupt "
                f"({error}): run `da2ray verify {url}`"
            ) from error


def _checked(data: bytes, crc32: int) -> bytes:
    if zlib.crc32(data) != crc32:
        raise ValueError("its checksum is not the one in the index")
    return data


def open_labels(
    url: str | os.PathLike[str],
    snapshot: int | None = None,
    view: str | None = None,
    split: str | None = None,
    *,
    client: Client = "auto",
) -> Labels:
    """Open the labels of a dataset.

    Args:
        url: a path, or s3://, gs://, az:// or any other URL that fsspec opens.
        snapshot: number of a version; None for the newest, or the view's.
        view: name of a view, to see only the rows it keeps; None for all rows.
        split: "train" or "val" of the view; None for both.
        client: "obstore" or "fsspec"; "auto" takes the faster one that serves the URL.

    Raises:
        UserError: there is no dataset, snapshot (the message says how to make one), view or split of this name; the snapshot is
            not the view's; or the dataset is of a later format version.
        OSError: the store failed, or the view is broken.
    """
    store = open_store(url, client)
    info = open_dataset(store)
    if info is None:
        raise UserError(f"{store.url} holds no dataset: it has no dataset.json")
    if view is None:
        if split is not None:
            raise UserError(f"a split is part of a view: open split {split!r} with view=NAME")
        return Labels(store, info, open_snapshot(store, snapshot))
    found = open_view(store, view)
    if snapshot not in (None, found.snapshot):
        raise UserError(f"view {view} is of snapshot {found.snapshot}, not {snapshot}: leave the snapshot out")
    check_split(found, split)
    of = open_snapshot(store, found.snapshot)
    found.check(of)
    return Labels(store, info, of, found, split)
