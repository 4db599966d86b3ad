"""What passes between the stages: Arrow tables with a row a micro-batch.

One shard is one block; its rows are its micro-batches, each a stack of images of one network size. Pixels travel as uint8 and
depth as uint16 (invariant 7), each micro-batch in one contiguous buffer that later stages view without a copy. The fields of
the index that reading already knows travel beside them and are never unpacked into Python objects on the way. Samples that
have no pixels (rejected, failed) travel in a row of their own that the teacher passes through.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from da2ray.labels.schema import INDEX, SCORES, Reason

SAMPLE_FIELDS = (
    "key",
    "uri",
    "etag",
    "sha256",
    "status",
    "reason",
    "message",
    "width",
    "height",
    "orientation",
    "network_width",
    "network_height",
    "row",
)
"""Index columns that are known once a sample was read."""

SAMPLE = pa.struct([INDEX.field(name) for name in SAMPLE_FIELDS])
SCORE = pa.struct(list(SCORES))

READ = pa.schema(
    [
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("planned", pa.int32(), nullable=False),  # samples that the plan gives the shard
        pa.field("samples", pa.list_(SAMPLE), nullable=False),
        pa.field("shapes", pa.list_(pa.int32()), nullable=False),  # H, W of each image in `pixels`
        pa.field("pixels", pa.large_binary(), nullable=False),
    ]
)
"""A micro-batch as the read stage makes it."""

LABELLED = pa.schema(
    [
        READ.field("shard"),
        READ.field("planned"),
        READ.field("samples"),
        pa.field("reasons", pa.list_(pa.string()), nullable=False),  # null where labelled
        pa.field("messages", pa.list_(pa.string()), nullable=False),
        pa.field("scales", pa.list_(pa.float32()), nullable=False),
        pa.field("offsets", pa.list_(pa.float32()), nullable=False),
        pa.field("scores", pa.list_(SCORE), nullable=False),
        pa.field("depths", pa.large_binary(), nullable=False),  # uint16, one (height, width) map for each sample
    ]
)
"""A micro-batch as the label stage makes it: every list has an entry for each sample."""


@dataclass(frozen=True, slots=True)
class HostBatch:
    """A micro-batch in host memory, before it goes to the device.

    Attributes:
        pixels: uint8, 1-D: the images' H x W x 3 values one after another; may be a read-only view of shared memory.
        shapes: (H, W) of each image.
        size: the network's (height, width).
    """

    pixels: np.ndarray
    shapes: Sequence[tuple[int, int]]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.shapes)

    def parts(self, largest: int) -> "Iterator[HostBatch]":
        """The same images in micro-batches of at most `largest`."""
        ends = np.cumsum([0, *(height * width * 3 for height, width in self.shapes)])
        for start in range(0, len(self), largest):
            stop = min(start + largest, len(self))
            yield HostBatch(self.pixels[ends[start] : ends[stop]], self.shapes[start:stop], self.size)


@dataclass(frozen=True, slots=True)
class LabelledBatch:
    """What the device made of a micro-batch of N images.

    Attributes:
        depths: uint16 (N, height, width), zeros where an image failed.
        scales, offsets: float32 (N,): depth = offset + scale * q.
        scores: float32 (N, len(SCORES)), columns in the order of `SCORES`.
        errors: (reason, message) of each image, None where it was labelled.
    """

    depths: np.ndarray
    scales: np.ndarray
    offsets: np.ndarray
    scores: np.ndarray
    errors: Sequence[tuple[str, str] | None]

    @classmethod
    def failed(cls, batch: HostBatch, reason: Reason, message: str) -> "LabelledBatch":
        """What to say of a micro-batch none of whose images could be labelled."""
        count, zeros = len(batch), np.zeros(len(batch), dtype=np.float32)
        depths = np.zeros((count, *batch.size), dtype=np.uint16)
        scores = np.zeros((count, len(SCORES)), dtype=np.float32)
        return cls(depths, zeros, zeros, scores, [(reason.value, message)] * count)

    @classmethod
    def joined(cls, parts: "Sequence[LabelledBatch]") -> "LabelledBatch":
        """One micro-batch of several of one size, in order."""
        return cls(
            depths=np.concatenate([part.depths for part in parts]),
            scales=np.concatenate([part.scales for part in parts]),
            offsets=np.concatenate([part.offsets for part in parts]),
            scores=np.concatenate([part.scores for part in parts]),
            errors=[error for part in parts for error in part.errors],
        )


def large_binaries(buffer: np.ndarray, ends: Sequence[int]) -> pa.Array:
    """large_binary values that lie one after another in `buffer`'s memory, without a copy; value i is [ends[i], ends[i + 1])."""
    offsets = np.asarray(ends, dtype=np.int64)
    return pa.Array.from_buffers(
        pa.large_binary(), len(ends) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(buffer.reshape(-1))]
    )


def lists(values: Sequence[pa.Array]) -> pa.Array:
    """A list array with an entry for each array."""
    ends = np.cumsum([0, *map(len, values)])
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.concat_arrays(values))


def host_batch(row: pa.Table) -> HostBatch | None:
    """The micro-batch in a one-row `READ` table, without a copy; None where its samples have no pixels."""
    shapes = np.asarray(_values(row, "shapes")).reshape(-1, 2)
    if not len(shapes):
        return None
    samples = _values(row, "samples")
    size = (samples.field("network_height")[0].as_py(), samples.field("network_width")[0].as_py())
    pixels = np.frombuffer(binary_value(row, "pixels"), dtype=np.uint8)
    return HostBatch(pixels, [(int(height), int(width)) for height, width in shapes], size)


def sample_rows(row: pa.Table) -> tuple[int, tuple[int, ...]]:
    """The shard of a one-row table, and the rows of its samples in it."""
    return row.column("shard")[0].as_py(), tuple(_values(row, "samples").field("row").to_pylist())


def labelled_row(row: pa.Table, labelled: LabelledBatch | None) -> pa.Table:
    """The one-row `LABELLED` table for a one-row `READ` table; `labelled` is None where its samples have no pixels."""
    count = len(_values(row, "samples"))
    if labelled is None:
        empty = np.zeros(count, dtype=np.float32)
        labelled = LabelledBatch(
            np.zeros(0, dtype=np.uint16), empty, empty, np.zeros((count, len(SCORES)), dtype=np.float32), [None] * count
        )
    scores = pa.StructArray.from_arrays(
        [pa.array(np.ascontiguousarray(column)) for column in labelled.scores.T], fields=list(SCORES)
    )
    columns = {
        "reasons": lists([pa.array([error and error[0] for error in labelled.errors], pa.string())]),
        "messages": lists([pa.array([error and error[1] for error in labelled.errors], pa.string())]),
        "scales": lists([pa.array(labelled.scales)]),
        "offsets": lists([pa.array(labelled.offsets)]),
        "scores": lists([scores]),
        "depths": large_binaries(labelled.depths, [0, labelled.depths.nbytes]),
    }
    kept = {name: row.column(name) for name in ("shard", "planned", "samples")}
    return pa.table(kept | columns, schema=LABELLED)


def binary_value(row: pa.Table, name: str) -> memoryview:
    """The bytes of a one-row table's large_binary column, without a copy."""
    return memoryview(row.column(name).chunk(0)[0].as_buffer())


def _values(row: pa.Table, name: str) -> pa.Array:
    """The entries of a one-row table's list column."""
    return row.column(name).chunk(0)[0].values
