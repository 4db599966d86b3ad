"""What passes between the stages: Arrow tables with a row a micro-batch.

One shard is one block; its rows are its micro-batches, each a stack of images of one network size. Pixels travel as uint8 and
depth as uint16 (invariant 7), each micro-batch in one contiguous buffer that later stages view without a copy. The fields of the
index that reading already knows travel beside them, and are never unpacked into Python objects on the way. Samples that have no
pixels (rejected, failed) travel in a row of their own that the teacher passes through. If the pixels of a shard would exceed the
limit of a block, the images beyond it travel encoded, each in a row of its own, and the label stage decodes one after another.
"""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from da2ray.errors import Reason, SampleError
from da2ray.labels.commits import Update
from da2ray.labels.schema import FILE_SCORES, INDEX, NUMBERS
from da2ray.storage import printable
from da2ray.teachers.base import SizeRule

SAMPLE_FIELDS = (
    "key",
    "uri",
    "image_offset",
    "image_length",
    "image_row",
    "etag",
    "etag_listed",
    "version",
    "sha256",
    "status",
    "reason",
    "message",
    "width",
    "height",
    "orientation",
    "focal",
    "focal_source",
    *FILE_SCORES.names,
    "network_width",
    "network_height",
    "row",
)
"""Index columns that are known once a sample has been read."""

SAMPLE = pa.struct([INDEX.field(name) for name in SAMPLE_FIELDS])
NUMBER = pa.struct(list(NUMBERS))

READ = pa.schema(
    [
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("planned", pa.int32(), nullable=False),  # samples that the source read for the shard
        pa.field("extent", pa.string()),  # JSON of the shard's `Extent`; null if it has none
        pa.field("samples", pa.list_(SAMPLE), nullable=False),
        pa.field("shapes", pa.list_(pa.int32()), nullable=False),  # H, W of each image in `pixels`
        pa.field("pixels", pa.large_binary(), nullable=False),
        pa.field(
            "encoded", pa.large_binary(), nullable=False
        ),  # the file of a single image that has no pixels yet, else empty
        # What the shard changes in a snapshot, `packed_update`: in one row of a shard of such a plan, else empty.
        pa.field("update", pa.large_binary(), nullable=False),
    ]
)
"""A micro-batch as the read stage makes it."""

LABELLED = pa.schema(
    [
        READ.field("shard"),
        READ.field("planned"),
        READ.field("extent"),
        READ.field("samples"),
        READ.field("update"),
        pa.field("reasons", pa.list_(pa.string()), nullable=False),  # null if labelled
        pa.field("messages", pa.list_(pa.string()), nullable=False),
        pa.field("scales", pa.list_(pa.float32()), nullable=False),
        pa.field("offsets", pa.list_(pa.float32()), nullable=False),
        pa.field("numbers", pa.list_(NUMBER), nullable=False),
        pa.field("phashes", pa.list_(pa.uint64()), nullable=False),
        pa.field("mask_sources", pa.list_(pa.string()), nullable=False),  # null if there is no mask
        pa.field("depths", pa.large_binary(), nullable=False),  # uint16, a (height, width) map for each sample
        pa.field("masks", pa.large_binary(), nullable=False),  # uint8 likewise; empty if no sample has a mask
        pa.field("fars", pa.large_binary(), nullable=False),  # see `LabelledBatch.fars`; empty if no pixel is far
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
        focals: see `PixelBatch`.
        checker_sizes: (height, width) of the checker's network for each image; None if there is no checker, or if its size is
            the same for all.
    """

    pixels: np.ndarray
    shapes: Sequence[tuple[int, int]]
    size: tuple[int, int]
    focals: Sequence[float | None] | None = None
    checker_sizes: Sequence[tuple[int, int]] | None = None

    def __len__(self) -> int:
        return len(self.shapes)

    def parts(self, largest: int) -> "Iterator[HostBatch]":
        """The same images in micro-batches of at most `largest`."""
        ends = np.cumsum([0, *(height * width * 3 for height, width in self.shapes)])
        for start in range(0, len(self), largest):
            stop = min(start + largest, len(self))
            yield HostBatch(
                self.pixels[ends[start] : ends[stop]],
                self.shapes[start:stop],
                self.size,
                self.focals and self.focals[start:stop],
                self.checker_sizes and self.checker_sizes[start:stop],
            )


@dataclass(frozen=True, slots=True)
class LabelledBatch:
    """What the device made of a micro-batch of N images.

    Attributes:
        depths: uint16 (N, height, width), zeros for an image that failed.
        scales, offsets: float32 (N,): depth = offset + scale * q.
        numbers: float32 (N, len(NUMBERS)), columns in the order of `NUMBERS`, NaN if not measured; `focal` is in pixels
            of the image's entry in `HostBatch.shapes`.
        errors: (reason, message) of each image, None if it was labelled.
        masks: uint8 (N, height, width) levels of confidence; None if no image has a mask.
        mask_sources: whose confidence each mask holds, None for an image without a mask; None if no image has one.
        phashes: uint64 (N,) perceptual hashes; None if there are none.
        fars: uint8 (N, ceil(height * width / 8)), the pixels of the far class row by row, a bit each, the first in the lowest
            bit; None if no image has far pixels.
    """

    depths: np.ndarray
    scales: np.ndarray
    offsets: np.ndarray
    numbers: np.ndarray
    errors: Sequence[tuple[str, str] | None]
    masks: np.ndarray | None = None
    mask_sources: Sequence[str | None] | None = None
    phashes: np.ndarray | None = None
    fars: np.ndarray | None = None

    @classmethod
    def failed(cls, batch: HostBatch, reason: Reason, message: str) -> "LabelledBatch":
        """A micro-batch none of whose images could be labelled."""
        count, zeros = len(batch), np.zeros(len(batch), dtype=np.float32)
        depths = np.zeros((count, *batch.size), dtype=np.uint16)
        numbers = np.full((count, len(NUMBERS)), np.nan, dtype=np.float32)
        return cls(depths, zeros, zeros, numbers, [(reason.value, message)] * count)

    @classmethod
    def joined(cls, parts: "Sequence[LabelledBatch]") -> "LabelledBatch":
        """Join micro-batches of one size into one, in order."""
        masked, far = (any(getattr(part, name) is not None for part in parts) for name in ("masks", "fars"))
        packed = -(-parts[0].depths[0].size // 8)
        return cls(
            depths=np.concatenate([part.depths for part in parts]),
            scales=np.concatenate([part.scales for part in parts]),
            offsets=np.concatenate([part.offsets for part in parts]),
            numbers=np.concatenate([part.numbers for part in parts]),
            errors=[error for part in parts for error in part.errors],
            masks=np.concatenate([_or_zeros(part.masks, part.depths.shape) for part in parts]) if masked else None,
            mask_sources=[source for part in parts for source in part.mask_sources or [None] * len(part.errors)],
            phashes=np.concatenate([_or_zeros(part.phashes, part.scales.shape, np.uint64) for part in parts]),
            fars=np.concatenate([_or_zeros(part.fars, (len(part.scales), packed)) for part in parts]) if far else None,
        )


def _or_zeros(
    values: np.ndarray | None, shape: tuple[int, ...], dtype: type[np.uint8 | np.uint64] = np.uint8
) -> np.ndarray:
    return np.zeros(shape, dtype=dtype) if values is None else values


def packed_update(update: Update) -> bytes:
    """An update as bytes that travel beside a shard's samples."""
    sink = pa.BufferOutputStream()
    for table in (update.replaces, update.kept):
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
    return _PARENT.pack(update.parent) + sink.getvalue().to_pybytes()


def unpacked_update(block: pa.Table) -> Update | None:
    """The update of a shard whose micro-batches are the rows of `block`; None if it has none."""
    packed = [value for value in block["update"].to_pylist() if value]
    if not packed:
        return None
    (parent,) = _PARENT.unpack_from(packed[0])
    source = pa.BufferReader(packed[0][_PARENT.size :])
    replaces, kept = (pa.ipc.open_stream(source).read_all() for _ in range(2))
    return Update(parent, replaces, kept)


_PARENT: Final = struct.Struct("<q")


def large_binaries(buffer: np.ndarray, ends: Sequence[int]) -> pa.Array:
    """large_binary values that share `buffer`'s memory, without a copy; value i is its bytes [ends[i], ends[i + 1])."""
    offsets = np.asarray(ends, dtype=np.int64)
    return pa.Array.from_buffers(
        pa.large_binary(), len(ends) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(buffer.reshape(-1))]
    )


def lists(values: Sequence[pa.Array]) -> pa.Array:
    """A list array whose entries are these arrays."""
    ends = np.cumsum([0, *map(len, values)])
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.concat_arrays(values))


def host_batch(row: pa.Table, *, with_focals: bool = False, checker_size: SizeRule | None = None) -> HostBatch | None:
    """The micro-batch in a one-row `READ` table, without a copy; None if its samples have no pixels.

    Args:
        row: of schema `READ`, its image decoded (`decoded_row`) if it was encoded.
        with_focals: a teacher uses the focal length.
        checker_size: size rule of the checker.
    """
    shapes = np.asarray(_values(row, "shapes")).reshape(-1, 2)
    if not len(shapes):
        return None
    samples = _values(row, "samples")
    focals, sizes = None, None
    if with_focals:
        # From pixels as displayed to pixels as decoded, which may be fewer.
        decoded = pc.multiply(samples.field("focal"), pa.array(shapes[:, 1] / np.asarray(samples.field("width"))))
        focals = decoded.to_pylist()
    if checker_size:
        displayed = zip(*(samples.field(name).to_pylist() for name in ("height", "width")), strict=True)
        sizes = [checker_size(height, width) for height, width in displayed]
    size = (samples.field("network_height")[0].as_py(), samples.field("network_width")[0].as_py())
    pixels = np.frombuffer(binary_value(row, "pixels"), dtype=np.uint8)
    return HostBatch(pixels, [(int(height), int(width)) for height, width in shapes], size, focals, sizes)


def is_encoded(row: pa.Table) -> bool:
    """Whether a one-row `READ` table holds an image that is not decoded yet."""
    return len(binary_value(row, "encoded")) > 0


def decoded_row(row: pa.Table, decode: Callable[[bytes, Mapping[str, Any]], np.ndarray]) -> pa.Table:
    """A one-row `READ` table with pixels in place of an encoded image. Any other row is returned as it is.

    An image that cannot be decoded becomes a sample without pixels that says why.

    Args:
        row: of schema `READ`.
        decode: called with the file's bytes and the sample's fields; returns uint8 (H, W, 3), or raises SampleError.
    """
    if not is_encoded(row):
        return row
    (fields,) = row["samples"][0].as_py()
    try:
        image = decode(bytes(binary_value(row, "encoded")), fields)
    except SampleError as error:
        refused = pa.array([fields | refusal(error)], SAMPLE)
        columns = {"samples": lists([refused]), "encoded": pa.array([b""], pa.large_binary())}
    else:
        columns = {
            "shapes": lists([pa.array(image.shape[:2], pa.int32())]),
            "pixels": large_binaries(image, [0, image.size]),
            "encoded": pa.array([b""], pa.large_binary()),
        }
    return pa.table({name: columns.get(name, row[name]) for name in READ.names}, schema=READ)


def refusal(error: SampleError) -> dict[str, Any]:
    """The fields of SAMPLE that say why a sample is not labelled."""
    reason = error.reason
    said = {"status": reason.status.value, "reason": reason.value, "message": printable(error.message)}
    return said | {"network_height": None, "network_width": None}


def sample_rows(row: pa.Table) -> tuple[int, tuple[int, ...]]:
    """The shard of a one-row table, and its samples' rows in that shard."""
    return row.column("shard")[0].as_py(), tuple(_values(row, "samples").field("row").to_pylist())


def labelled_row(row: pa.Table, labelled: LabelledBatch | None) -> pa.Table:
    """The one-row `LABELLED` table for a one-row `READ` table; `labelled` is None if its samples have no pixels."""
    count = len(_values(row, "samples"))
    if labelled is None:
        empty = np.zeros(count, dtype=np.float32)
        numbers = np.full((count, len(NUMBERS)), np.nan, dtype=np.float32)
        labelled = LabelledBatch(np.zeros(0, dtype=np.uint16), empty, empty, numbers, [None] * count)
    # `from_pandas` makes NaN null.
    columns = [pa.array(np.ascontiguousarray(column), from_pandas=True) for column in _as_displayed(row, labelled).T]
    masks, fars = _or_zeros(labelled.masks, (0,)), _or_zeros(labelled.fars, (0,))
    made = {
        "reasons": lists([pa.array([error and error[0] for error in labelled.errors], pa.string())]),
        "messages": lists([pa.array([error and error[1] for error in labelled.errors], pa.string())]),
        "scales": lists([pa.array(labelled.scales)]),
        "offsets": lists([pa.array(labelled.offsets)]),
        "numbers": lists([pa.StructArray.from_arrays(columns, fields=list(NUMBERS))]),
        "phashes": lists([pa.array(_or_zeros(labelled.phashes, (count,), np.uint64))]),
        "mask_sources": lists([pa.array(labelled.mask_sources or [None] * count, pa.string())]),
        "depths": large_binaries(labelled.depths, [0, labelled.depths.nbytes]),
        "masks": large_binaries(masks, [0, masks.nbytes]),
        "fars": large_binaries(fars, [0, fars.nbytes]),
    }
    kept = {name: row.column(name) for name in ("shard", "planned", "extent", "samples", "update")}
    return pa.table(kept | made, schema=LABELLED)


def _as_displayed(row: pa.Table, labelled: LabelledBatch) -> np.ndarray:
    """The numbers of a micro-batch, with focal lengths in pixels of the images at full size."""
    place = NUMBERS.get_field_index("focal")
    if np.isnan(labelled.numbers[:, place]).all():
        return labelled.numbers
    numbers = labelled.numbers.copy()
    decoded = np.asarray(_values(row, "shapes")).reshape(-1, 2)[:, 1]
    numbers[:, place] *= np.asarray(_values(row, "samples").field("width")) / decoded
    return numbers


def binary_value(row: pa.Table, name: str) -> memoryview:
    """The bytes of a one-row table's large_binary column, without a copy."""
    return memoryview(row.column(name).chunk(0)[0].as_buffer())


def _values(row: pa.Table, name: str) -> pa.Array:
    """The entries of a one-row table's list column."""
    return row.column(name).chunk(0)[0].values
