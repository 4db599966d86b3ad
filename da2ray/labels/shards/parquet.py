"""A shard as Parquet: one row for each sample. A depth is one uncompressed PLAIN value, so one range GET fetches one label;
each map beside it is another such value.

pyarrow does not tell where a value lies, but Parquet fixes it: a PLAIN byte array is a little-endian uint32 length and then the
bytes, one value after another, with only page headers between them. We walk the column chunk by that rule and compare every
value with what was written, so either a range in the index is right or the shard is not built.
"""

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from da2ray.labels.codec import CODEC, encode, encode_mask
from da2ray.labels.schema import FORMAT_VERSION
from da2ray.labels.shards.base import MAPS, Masks, Range, Ranges

HOW_TO_READ: Final = (
    "depth: zstd of little-endian uint16 (height, width) differences along both axes; q = cumulative sum along both "
    "axes modulo 65536; depth = offset + scale * q. mask: zstd of mask_bits a pixel, 0 = least sure, in steps of 1, 2, 4 or 8 "
    "bits, the first pixel in the lowest bits of a byte; null where there is none. far: as a mask of 1 bit, 1 = no distance "
    "(sky); null where no pixel is."
)

SCHEMA: Final = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("kind", pa.string()),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("scale", pa.float32()),
        pa.field("offset", pa.float32()),
        pa.field("depth", pa.large_binary()),
        pa.field("mask_bits", pa.int8()),
        *(pa.field(name, pa.large_binary()) for name in MAPS),
    ],
    metadata={
        "da2ray": json.dumps(
            {"format_version": FORMAT_VERSION, "codec": CODEC, "how_to_read": HOW_TO_READ}, sort_keys=True
        )
    },
)
"""Columns of a Parquet shard; `height` and `width` are the network's. FORMAT.md describes them."""

_BLOBS: Final = ("depth", *MAPS)
_OTHERS: Final = [name for name in SCHEMA.names if name not in _BLOBS]
_ROWS_PER_PAGE: Final = 256
"""A page's size is an int32 of bytes: 256 labels of up to 8 MB fit."""
_PAGE_HEADER_LIMIT: Final = 4096
"""A data page header and its definition levels take about 40 bytes; a value further away than this is an error."""


def build_parquet(
    rows: pa.Table, depths: Sequence[np.ndarray | None], maps: Mapping[str, Masks]
) -> tuple[bytes, Ranges]:
    """The object, and where its values lie.

    Args:
        rows: INDEX, with `mask_bits`.
        depths: as in `build_shard`, which has checked them.
        maps: each of MAPS, checked too.
    """
    blobs = {"depth": [None if depth is None else encode(depth) for depth in depths]}
    for name, beside in maps.items():
        blobs[name] = [None if levels is None else encode_mask(levels, beside.bits) for levels in beside.levels]
    columns = {name: rows[name] for name in ("key", "status", "reason", "kind", "scale", "offset", "mask_bits")}
    columns |= {"height": rows["network_height"], "width": rows["network_width"]}
    columns |= {name: pa.array(values, pa.large_binary()) for name, values in blobs.items()}
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA),
        sink,
        # One row group: the depths of a shard are one stretch of the file.
        row_group_size=max(1, len(depths)),
        compression={name: "none" if name in _BLOBS else "zstd" for name in SCHEMA.names},
        use_dictionary=[name for name in _OTHERS if name != "key"],
        # Without this pyarrow's page index and statistics would repeat whole labels.
        write_statistics=[name for name in _OTHERS if pa.types.is_primitive(SCHEMA.field(name).type)],
        data_page_version="1.0",
        data_page_size=(1 << 31) - 1,
        write_batch_size=_ROWS_PER_PAGE,
    )
    buffer = sink.getvalue()
    ranges = {name: locate(buffer, values, name) for name, values in blobs.items()}
    return buffer.to_pybytes(), {"byte": ranges.pop("depth")} | ranges


def locate(file: pa.Buffer, values: Sequence[bytes | None], column: str) -> list[Range | None]:
    """The range of each value of a blob column in a whole Parquet file; each value is compared with the bytes found there.

    Raises:
        RuntimeError: this pyarrow lays out the file in another way than the module's docstring says.
    """
    metadata = pq.read_metadata(pa.BufferReader(file))
    if metadata.num_row_groups > 1:
        raise RuntimeError(f"pyarrow {pa.__version__} wrote a shard as {metadata.num_row_groups} row groups")
    if all(value is None for value in values):
        return [None] * len(values)
    chunk = metadata.row_group(0).column(SCHEMA.get_field_index(column))
    ranges: list[Range | None] = []
    position, view = chunk.data_page_offset, memoryview(file).cast("B")
    for value in values:
        if value is None:
            ranges.append(None)
            continue
        prefix = struct.pack("<I", len(value))
        start = position + len(prefix)
        if view[position:start] != prefix or view[start : start + len(value)] != value:
            # The first value of a page: its header lies between.
            gap = bytes(view[position : position + _PAGE_HEADER_LIMIT]).find(prefix + value[:16])
            start = position + gap + len(prefix)
            if gap < 0 or view[start : start + len(value)] != value:
                raise RuntimeError(
                    f"pyarrow {pa.__version__} did not write a label as one PLAIN value near byte {position}"
                )
        ranges.append(Range(start, len(value), zlib.crc32(value)))
        position = start + len(value)
    return ranges
