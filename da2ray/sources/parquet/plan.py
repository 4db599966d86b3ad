"""Row groups -> shards: planned from footers, and from columns of keys and states if there are some, never from image bytes."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np
import pyarrow as pa

from da2ray.sources.base import SHARDS, Cut, Place
from da2ray.sources.parquet.footer import Footer

_CODEC: Final = "zstd"


@dataclass(frozen=True, slots=True)
class File:
    """A Parquet file of a source.

    Attributes:
        key: below the source's root.
        size, etag: as listed when the shard was planned; None if the file is to be read as it is now.
    """

    key: str
    size: int | None = None
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """Samples of one file.

    Attributes:
        numbers: int64, ascending: their rows in the file, from 0.
        keys: one for each; None if file and row are the key.
    """

    file: File
    numbers: np.ndarray
    keys: Sequence[str] | None = None

    def slice(self, begin: int, end: int | None = None) -> "Rows":
        """The samples from one place to another."""
        return Rows(self.file, self.numbers[begin:end], None if self.keys is None else self.keys[begin:end])

    def key(self, place: int) -> str:
        return f"{self.file.key}/{self.numbers[place]}" if self.keys is None else self.keys[place]


@dataclass(frozen=True, slots=True)
class Group:
    """The samples of a row group, and the bytes of its column of images after decompression."""

    rows: Rows
    bytes: int


def groups_of(rows: Rows, footer: Footer, path: str) -> Iterator[Group]:
    """The row groups of a file that have samples.

    Args:
        rows: all samples of the file.
        path: of the column of images.
    """
    leaf = footer.leaf(path)
    assert leaf is not None  # noqa: S101 - checked by the caller
    bounds = np.searchsorted(rows.numbers, footer.starts).tolist()
    for group, (begin, end) in enumerate(pairwise(bounds)):
        if begin < end:
            of_group = footer.metadata.row_group(group)
            size = of_group.column(leaf).total_uncompressed_size
            yield Group(rows.slice(begin, end), size * (end - begin) // of_group.num_rows)


def cut_groups(groups: Iterable[Group], cut: Cut) -> Iterator[pa.RecordBatch]:
    """Cut row groups into shards: rows of schema SHARDS, one in each batch.

    A shard is whole row groups as long as they fit. A group that is larger than a shard is cut into even parts, which are shards
    of their own.
    """
    waiting = _Shard()
    for group in limited(groups, cut.limit):
        count = len(group.rows.numbers)
        most = max(1, min(cut.shard_size, cut.shard_bytes * count // max(1, group.bytes)))
        fits = waiting.count + count <= cut.shard_size and waiting.bytes + group.bytes <= cut.shard_bytes
        if waiting.count and not (fits and count <= most):
            yield waiting.row()
            waiting = _Shard()
        if count <= most:
            waiting.add(group.rows, group.bytes)
            continue
        parts = -(-count // most)
        for begin, end in pairwise(part * count // parts for part in range(parts + 1)):
            shard = _Shard()
            shard.add(group.rows.slice(begin, end), group.bytes * (end - begin) // count)
            yield shard.row()
    if waiting.count:
        yield waiting.row()


def limited(groups: Iterable[Group], limit: int | None) -> Iterator[Group]:
    """The groups up to so many samples; no more of them is asked for than needed."""
    left = limit
    for group in groups:
        count = len(group.rows.numbers)
        if left is None or count < left:
            yield group
            left = None if left is None else left - count
        else:
            yield Group(group.rows.slice(0, left), group.bytes * left // count)
            return


@dataclass(slots=True)
class _Shard:
    """A shard in the making."""

    pieces: list[Rows] = field(default_factory=list)
    count: int = 0
    bytes: int = 0

    def add(self, rows: Rows, size: int) -> None:
        self.pieces.append(rows)
        self.count += len(rows.numbers)
        self.bytes += size

    def row(self) -> pa.RecordBatch:
        row = {"samples": self.count, "exact": True, "bytes": self.bytes, "spec": pack(self.pieces)}
        return pa.RecordBatch.from_pylist([row], schema=SHARDS)


def pack(pieces: Iterable[Rows]) -> bytes:
    """The specification of a shard of these samples: JSON in zstd, rows as runs of (first, number)."""
    stored = []
    for rows in pieces:
        file = [rows.file.key, rows.file.size, rows.file.etag]
        begins = np.flatnonzero(np.diff(rows.numbers, prepend=-2) != 1)
        lengths = np.diff(begins, append=len(rows.numbers))
        runs = np.stack([rows.numbers[begins], lengths], axis=1).tolist()
        stored.append([file, runs, rows.keys])
    return pa.Codec(_CODEC).compress(json.dumps(stored, separators=(",", ":")).encode(), asbytes=True)


def unpack(spec: bytes) -> list[Rows]:
    """The samples in a specification."""
    with pa.input_stream(pa.py_buffer(spec), compression=_CODEC) as stream:
        stored = json.loads(stream.read())
    return [
        Rows(File(*file), np.concatenate([np.arange(first, first + count) for first, count in runs]), keys)
        for file, runs, keys in stored
    ]


def chosen(places: Iterable[tuple[bytes, Sequence[Place]]]) -> Iterator[Rows]:
    """Some samples of some shards, (specification, places in it) each; as they are now, if their keys are file and row."""
    for spec, wanted in places:
        pieces = unpack(spec)
        ends = np.cumsum([len(rows.numbers) for rows in pieces])
        for place in (each.row for each in wanted):
            piece = int(np.searchsorted(ends, place, side="right"))
            rows = pieces[piece]
            at = place - int(ends[piece] - len(rows.numbers))
            one = rows.slice(at, at + 1)
            yield one if one.keys is not None else Rows(File(rows.file.key), one.numbers)


def joined(pieces: Iterable[Rows]) -> Iterator[Rows]:
    """The same samples in the same order, with those of one file that ascend as one: a page of theirs is read once."""
    run: list[Rows] = []
    for rows in pieces:
        if run and (rows.file != run[-1].file or rows.numbers[0] <= run[-1].numbers[-1]):
            yield _one(run)
            run = []
        run.append(rows)
    if run:
        yield _one(run)


def _one(run: Sequence[Rows]) -> Rows:
    keys = None if run[0].keys is None else [key for rows in run for key in rows.keys or ()]
    return Rows(run[0].file, np.concatenate([rows.numbers for rows in run]), keys)
