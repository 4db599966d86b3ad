"""Sources that list their members when they are planned: the base of prefix and manifest.

A shard's specification is its members in columns: numbers and the lengths of strings as an Arrow record batch, and then the
strings' bytes, all compressed with zstd as one piece. URIs that are root + key are left out. Lengths repeat and take nearly no
space, while Arrow's offsets grow and would take more than the names: 256 members with MD5 etags make 6.0 kB, and 9.0 kB as an
Arrow batch. Packing them takes 90 us, and unpacking 230 us.
"""

import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from da2ray.sources.base import SHARDS, Cut, Member, Place, Sample
from da2ray.storage import join

MEMBERS: Final = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("focal", pa.float32()),
        pa.field("version", pa.string()),
    ]
)
"""One row a member whose file is the image; the columns are the first fields of `Member`."""

UNKNOWN_BYTES: Final = 1 << 20
"""What a member of unknown size counts for: 64 of them a shard, which decoded at 12 megapixels take 2.3 GB."""
CUT_MEMBERS: Final = 16_384
"""Members that are collected before they are cut, at least; it bounds the memory of planning."""

_STRINGS: Final = ("key", "uri", "etag", "version")
_NUMBERS: Final = pa.schema(
    [*(pa.field(name, pa.int32()) for name in _STRINGS), MEMBERS.field("size"), MEMBERS.field("focal")]
)
"""The numbers of a specification: lengths of strings, null for a null, and the columns that are numbers."""
_LENGTH: Final = struct.Struct("<I")
"""The length of the record batch, which precedes it."""
_CODEC: Final = "zstd"


class MemberSource(ABC):
    """What prefix and manifest share. A subclass lists its members and reads them."""

    root: str
    passed_over: Mapping[str, int] = MappingProxyType({})
    """See `Source.passed_over`."""
    skipped: Sequence[str] = ()
    """Beginnings of keys below which the newest listing did not look, though there may be members."""
    in_key_order: bool = False
    """Whether members are listed in the order of their keys' UTF-8 bytes."""

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

    def select(self, places: Iterable[tuple[bytes, Sequence[Place]]]) -> bytes:
        """See `Source.select`."""
        chosen = pa.concat_batches(
            [unpack(spec, self.root).take(pa.array([each.row for each in here], pa.int64())) for spec, here in places]
        )
        for name in ("size", "etag"):
            column = MEMBERS.get_field_index(name)
            chosen = chosen.set_column(column, MEMBERS.field(name), pa.nulls(len(chosen), MEMBERS.field(name).type))
        return pack(chosen, self.root)


def members_of(batch: pa.RecordBatch) -> list[Member]:
    """Rows of schema MEMBERS as Python objects: for a shard, never for a whole source."""
    columns = (column.to_pylist() for column in batch.columns)
    return [Member(**dict(zip(MEMBERS.names, row, strict=True))) for row in zip(*columns, strict=True)]


def pack(members: pa.RecordBatch, root: str) -> bytes:
    """The specification of a shard of these members, which are of schema MEMBERS."""
    return next(_packed(members, root, [(0, len(members))]))


def unpack(spec: bytes, root: str) -> pa.RecordBatch:
    """The members in a specification, of schema MEMBERS."""
    with pa.input_stream(pa.py_buffer(spec), compression=_CODEC) as stream:
        data = pa.py_buffer(stream.read())
    (length,) = _LENGTH.unpack_from(data)
    numbers = pa.ipc.read_record_batch(data.slice(_LENGTH.size, length), _NUMBERS)
    at = _LENGTH.size + length
    strings = []
    for name in _STRINGS:
        lengths = numbers.column(name)
        offsets = np.zeros(len(lengths) + 1, np.int32)
        np.cumsum(pc.fill_null(lengths, 0).to_numpy(), out=offsets[1:])
        end = at + int(offsets[-1])
        buffers = [lengths.buffers()[0], pa.py_buffer(offsets), data.slice(at, end - at)]
        strings.append(pa.Array.from_buffers(pa.string(), len(lengths), buffers))
        at = end
    keys, uris, etags, versions = strings
    uris = pc.coalesce(uris, pc.binary_join_element_wise(pa.scalar(join(root, "")), keys, ""))
    columns = [keys, uris, numbers.column("size"), etags, numbers.column("focal"), versions]
    return pa.record_batch(columns, schema=MEMBERS)


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
    sizes = members.column("size")
    counts, starts = np.diff(bounds), bounds[:-1]
    known = pc.fill_null(sizes, 0).to_numpy(zero_copy_only=False)[: bounds[-1]]
    unknown = pc.is_null(sizes).to_numpy(zero_copy_only=False)[: bounds[-1]]
    columns = [
        pa.array(counts),
        pa.repeat(pa.scalar(value=True), len(counts)),
        pa.array(np.add.reduceat(known, starts), mask=np.logical_or.reduceat(unknown, starts)),
        pa.array(
            list(_packed(members, root, zip(starts.tolist(), counts.tolist(), strict=True))),
            pa.large_binary(),
        ),
    ]
    return pa.record_batch(columns, schema=SHARDS)


def _packed(members: pa.RecordBatch, root: str, runs: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """The specifications of runs of members, (start, number) each."""
    keys, uris, sizes, etags, focals, versions = members.columns
    implied = pc.equal(uris, pc.binary_join_element_wise(pa.scalar(join(root, "")), keys, ""))
    strings = [keys, pc.if_else(implied, pa.scalar(None, pa.string()), uris), etags, versions]
    numbers = pa.record_batch([*map(pc.binary_length, strings), sizes, focals], schema=_NUMBERS)
    texts = [_text_of(pc.fill_null(column, "")) for column in strings]  # Arrow may keep bytes for a null
    codec = pa.Codec(_CODEC)
    for start, number in runs:
        head = numbers.slice(start, number).serialize()
        parts = [text[offsets[start] : offsets[start + number]] for offsets, text in texts]
        yield codec.compress(b"".join([_LENGTH.pack(len(head)), head, *parts]), asbytes=True)


def _text_of(column: pa.StringArray) -> tuple[list[int], memoryview]:
    """Where each string begins and the last one ends, and the bytes of all of them."""
    _, offsets, text = column.buffers()
    begin = column.offset
    return np.frombuffer(offsets, np.int32)[begin : begin + len(column) + 1].tolist(), memoryview(text or b"")
