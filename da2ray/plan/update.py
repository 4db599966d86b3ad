"""Sources of the samples that change a snapshot: what retries, refreshes and relabels plan.

A shard's specification holds that of another source, which reads the samples, and for each sample what the snapshot has of it.
"""

import hashlib
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import pyarrow as pa

from da2ray.errors import CorruptError, Status
from da2ray.labels.commits import REPLACES, read_commit
from da2ray.sources.base import Cut, Extent, Kept, Member, Place, Sample, Source
from da2ray.storage import Store

BEFORE: Final = pa.schema(
    [
        *REPLACES,
        pa.field("sha256", pa.binary(32)),
        pa.field("of_plan", pa.string()),
        pa.field("of_shard", pa.int64()),
        pa.field("of_row", pa.int32()),
    ]
)
"""What a snapshot has of a sample: which row is replaced, and a label that the sample keeps if its bytes have this hash, with the
commit and the row in it that hold the label. All are null for a sample that is new."""

_LENGTH: Final = struct.Struct("<I")
"""The length of the other source's specification, which follows it."""


class Purpose(StrEnum):
    """What a plan is for. All but LABEL update a snapshot: their rows name those that they replace."""

    LABEL = "label"
    RETRY = "retry"
    REFRESH = "refresh"
    RELABEL = "relabel"


@dataclass(frozen=True, slots=True)
class UpdateSource(ABC):
    """A part of another source, which reads it.

    Attributes:
        of: the source that the snapshot's rows come from.
        store: the dataset.
        snapshot: number.
    """

    of: Source
    store: Store
    snapshot: int

    purpose = Purpose.REFRESH

    @property
    def kind(self) -> str:
        return self.purpose.value

    @property
    def gone_shards(self) -> int:
        """How many shards at the end of the newest planning only say what is gone."""
        return 0

    @property
    def url(self) -> str:
        return self.of.url

    @property
    def root(self) -> str:
        return self.of.root

    @property
    def looks_for(self) -> str:
        return f"what is to change in snapshot {self.snapshot}"

    @property
    def passed_over(self) -> Mapping[str, int]:
        return {}

    def describe(self) -> dict[str, str]:
        return self.identity()

    def identity(self) -> dict[str, str]:
        """See `Source.describe`. The content of a manifest does not count: a plan's parent says which update it is."""
        described = {name: value for name, value in self.of.describe().items() if name != "etag"}
        of = described.get("of", self.of.kind)
        return described | {"kind": self.kind, "of": of, "snapshot": str(self.snapshot)}

    @abstractmethod
    def shards(self, cut: Cut) -> Iterator[pa.RecordBatch]:
        """See `Source.shards`."""

    def read(self, spec: bytes, *, concurrency: int, skip: int = 0) -> Iterator[Sample | Extent]:
        """See `Source.read`. A sample whose bytes are those of its label has that label instead of them."""
        inner, before = unpack(spec)
        known = iter(before.slice(skip).to_pylist())
        for sample in self.of.read(inner, concurrency=concurrency, skip=skip):
            yield sample if isinstance(sample, Extent) else self._kept(sample, next(known))

    def member(self, spec: bytes, row: int) -> Member | None:
        return self.of.member(unpack(spec)[0], row)

    def select(self, places: Iterable[tuple[bytes, Sequence[Place]]]) -> bytes:
        unpacked = [(*unpack(spec), chosen) for spec, chosen in places]
        rows = ([place.row for place in chosen] for _, _, chosen in unpacked)
        before = [known.take(pa.array(here, pa.int64())) for (_, known, _), here in zip(unpacked, rows, strict=True)]
        return pack(self.of.select([(inner, chosen) for inner, _, chosen in unpacked]), pa.concat_tables(before))

    def _kept(self, sample: Sample, known: dict[str, Any]) -> Sample:
        if known["sha256"] is None or not isinstance(sample.body, bytes):
            return sample
        if hashlib.sha256(sample.body).digest() != known["sha256"]:
            return sample
        try:
            rows = read_commit(self.store, known["of_plan"], known["of_shard"]).rows
        except (FileNotFoundError, CorruptError):
            return sample  # `repair` removed it, so the label is made again
        row = rows.slice(known["of_row"], 1)
        label = row.to_pylist()
        if not label or label[0]["sha256"] != known["sha256"] or label[0]["status"] != Status.LABELLED.value:
            return sample
        if sample.member.focal is not None and sample.member.focal != label[0]["focal"]:
            return sample  # the same image seen by another camera
        return Sample(sample.member, Kept(row), sample.etag)


def pack(spec: bytes, before: pa.Table) -> bytes:
    """The specification of a shard: that of the other source, and BEFORE, one for each sample."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, BEFORE, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(before.combine_chunks())
    return _LENGTH.pack(len(spec)) + spec + sink.getvalue().to_pybytes()


def unpack(spec: bytes) -> tuple[bytes, pa.Table]:
    """What `pack` was given."""
    (length,) = _LENGTH.unpack_from(spec)
    end = _LENGTH.size + length
    return spec[_LENGTH.size : end], pa.ipc.open_stream(spec[end:]).read_all()


def replaces_of(spec: bytes) -> pa.Table:
    """REPLACES of a shard's samples."""
    return unpack(spec)[1].select(REPLACES.names)
