"""Sources that list their members when they are planned: the base of prefix and manifest.

A shard's specification is its members: an Arrow record batch of schema MEMBERS, serialized and compressed with zstd as one piece
(75 us and 10 kB for 256 members with MD5 etags; Arrow's own compression, a frame for each buffer, takes 190 us and makes 9 kB).
URIs that are root + key are left out.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from da2ray.sources.base import SHARDS, Cut, Member, Sample
from da2ray.storage import join

MEMBERS: Final = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("focal", pa.float32()),
    ]
)
"""One row a member; the columns are `Member`'s fields."""

UNKNOWN_BYTES: Final = 1 << 20
"""What a member of unknown size counts for: 64 of them a shard, which decoded at 12 megapixels take 2.3 GB."""
CUT_MEMBERS: Final = 16_384
"""Members that are collected before they are cut, at least; it bounds the memory of planning."""

_STORED: Final = MEMBERS.set(1, pa.field("uri", pa.string()))
_CODEC: Final = "zstd"


class MemberSource(ABC):
    """What prefix and manifest share. A subclass lists its members and reads them."""

    root: str

    @abstractmethod
    def members(self, limit: int | None = None) -> Iterator[pa.RecordBatch]:
        """The source's members, or the first `limit` of them, in batches of schema MEMBERS; in the same order every time.

        Raises:
            UserError: the source cannot be read, or two members have one key.
        """

    @abstractmethod
    def fetch(self, members: Iterable[Member], concurrency: int) -> Iterator[Sample]:
        """Read members and yield them in order, as `da2ray.sources.fetch.fetch` does."""

    def shards(self, cut: Cut) -> Iterator[pa.RecordBatch]:
        """See `Source.shards`; all counts are exact."""
        return cut_members(self.members(cut.limit), cut, self.root)

    def read(self, spec: bytes, *, concurrency: int, skip: int = 0) -> Iterator[Sample]:
        """See `Source.read`."""
        return self.fetch(members_of(unpack(spec, self.root))[skip:], concurrency)

    def member(self, spec: bytes, row: int) -> Member | None:
        """See `Source.member`."""
        members = members_of(unpack(spec, self.root).slice(row, 1))
        return members[0] if members else None

    def select(self, places: Iterable[tuple[bytes, Sequence[int]]]) -> bytes:
        """See `Source.select`."""
        chosen = pa.concat_batches([unpack(spec, self.root).take(pa.array(rows, pa.int64())) for spec, rows in places])
        for name in ("size", "etag"):
            column = MEMBERS.get_field_index(name)
            chosen = chosen.set_column(column, MEMBERS.field(name), pa.nulls(len(chosen), MEMBERS.field(name).type))
        return pack(chosen, self.root)


def members_of(batch: pa.RecordBatch) -> list[Member]:
    """Rows of schema MEMBERS as Python objects: for a shard, never for a whole source."""
    columns = (column.to_pylist() for column in batch.columns)
    return [Member(*row) for row in zip(*columns, strict=True)]


def pack(members: pa.RecordBatch, root: str) -> bytes:
    """The specification of a shard of these members, which are of schema MEMBERS."""
    return _packed(_stored(members, root))


def unpack(spec: bytes, root: str) -> pa.RecordBatch:
    """The members in a specification, of schema MEMBERS."""
    with pa.input_stream(pa.py_buffer(spec), compression=_CODEC) as stream:
        keys, uris, *others = pa.ipc.read_record_batch(pa.py_buffer(stream.read()), _STORED).columns
    uris = pc.coalesce(uris, pc.binary_join_element_wise(pa.scalar(join(root, "")), keys, ""))
    return pa.record_batch([keys, uris, *others], schema=MEMBERS)


def cut_members(batches: Iterable[pa.RecordBatch], cut: Cut, root: str) -> Iterator[pa.RecordBatch]:
    """Cut a listing (batches of schema MEMBERS) into shards: rows of schema SHARDS.

    A shard is a run of consecutive members. It ends at `cut.shard_size` members, or before its listed bytes would exceed
    `cut.shard_bytes`; an unknown size counts as UNKNOWN_BYTES.
    """
    pending: list[pa.RecordBatch] = []
    waiting = 0
    for batch in batches:
        pending.append(batch)
        waiting += batch.num_rows
        if waiting >= max(CUT_MEMBERS, 2 * cut.shard_size):
            members = pa.concat_batches(pending)
            # Where the last shard ends is known only when the member after it is.
            bounds = shard_bounds(members.column("size"), cut)[:-1]
            yield _shard_rows(members, bounds, root)
            pending = [members.slice(int(bounds[-1]))]
            waiting = pending[0].num_rows
    if waiting:
        members = pa.concat_batches(pending)
        yield _shard_rows(members, shard_bounds(members.column("size"), cut), root)


def shard_bounds(sizes: pa.Array, cut: Cut) -> np.ndarray:
    """The bounds of shards over members of these sizes (bytes, null if unknown): int64, from 0 to the number of members."""
    known = pc.fill_null(sizes, UNKNOWN_BYTES).to_numpy(zero_copy_only=False)
    ends = np.concatenate([[0], np.cumsum(known, dtype=np.int64)])
    bounds = [0]
    while bounds[-1] < len(known):
        begin = bounds[-1]
        by_bytes = int(np.searchsorted(ends, ends[begin] + cut.shard_bytes, side="right")) - 1
        bounds.append(min(len(known), begin + cut.shard_size, max(by_bytes, begin + 1)))
    return np.array(bounds, np.int64)


def _shard_rows(members: pa.RecordBatch, bounds: np.ndarray, root: str) -> pa.RecordBatch:
    """Rows of schema SHARDS, one for each run of members between two bounds."""
    stored, sizes = _stored(members, root), members.column("size")
    counts, starts = np.diff(bounds), bounds[:-1]
    known = pc.fill_null(sizes, 0).to_numpy(zero_copy_only=False)[: bounds[-1]]
    unknown = pc.is_null(sizes).to_numpy(zero_copy_only=False)[: bounds[-1]]
    columns = [
        pa.array(counts),
        pa.repeat(pa.scalar(value=True), len(counts)),
        pa.array(np.add.reduceat(known, starts), mask=np.logical_or.reduceat(unknown, starts)),
        pa.array(
            [_packed(stored.slice(*run)) for run in zip(starts.tolist(), counts.tolist(), strict=True)],
            pa.large_binary(),
        ),
    ]
    return pa.record_batch(columns, schema=SHARDS)


def _stored(members: pa.RecordBatch, root: str) -> pa.RecordBatch:
    """Members without the URIs that are root + key."""
    keys, uris, *others = members.columns
    implied = pc.equal(uris, pc.binary_join_element_wise(pa.scalar(join(root, "")), keys, ""))
    return pa.record_batch([keys, pc.if_else(implied, pa.scalar(None, pa.string()), uris), *others], schema=_STORED)


def _packed(stored: pa.RecordBatch) -> bytes:
    return pa.Codec(_CODEC).compress(stored.serialize(), asbytes=True)
