"""The file of a plan: a row for each shard, and each shard's specification as one contiguous byte range of the file."""

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

METADATA_KEY: Final = b"da2ray"
GROUP_BYTES: Final = 8 << 20
GROUP_SHARDS: Final = 16_384
"""A row group ends at so many bytes of specifications, or so many shards: what planning holds in memory. 200,000 shards of 256
samples make 120 row groups, and reading the small columns costs a GET for each."""

SCHEMA: Final = pa.schema(
    [
        pa.field("shard", pa.int64(), nullable=False),
        # A count, or the source's estimate: see PlanInfo.exact.
        pa.field("samples", pa.int64(), nullable=False),
        # Sum of the listed sizes; null if one of them is unknown.
        pa.field("bytes", pa.int64()),
        pa.field("length", pa.int64(), nullable=False),  # of `spec`, in bytes
        pa.field("crc32", pa.int64(), nullable=False),  # of `spec`, as in zip and gzip
        pa.field("spec", pa.large_binary(), nullable=False),
    ]
)


@dataclass(slots=True)
class Contents:
    """What the shards of a file add up to; the fields are those of `PlanInfo`."""

    shards: int = 0
    samples: int = 0
    bytes: int | None = 0
    exact: bool = True


def write_file(
    path: Path,
    batches: Iterable[pa.RecordBatch],
    metadata: Callable[[Contents], bytes],
    on_progress: Callable[[int], None] | None = None,
) -> None:
    """Write shards, which are numbered from 0, to a new file at `path`.

    Args:
        batches: of schema `sources.base.SHARDS`, taken as a stream.
        metadata: called with what was written; returns the value of METADATA_KEY. What it raises ends the writing.
        on_progress: called with the number of samples so far.

    Raises:
        RuntimeError: this pyarrow does not lay out the file as `spec_offsets` needs it.
    """
    written = Contents()
    with pq.ParquetWriter(
        path,
        SCHEMA,
        # Specifications are compressed already, and read by byte ranges: one PLAIN page a row group holds them.
        compression={name: "none" if name == "spec" else "zstd" for name in SCHEMA.names},
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
        store_schema=False,
        data_page_version="1.0",
        data_page_size=(1 << 31) - 1,
        write_batch_size=GROUP_SHARDS,
    ) as writer:
        for group in _groups(batches):
            numbers = pa.array(np.arange(written.shards, written.shards + group.num_rows))
            lengths = pc.binary_length(group["spec"])
            checksums = pa.array([zlib.crc32(spec.as_buffer()) for spec in group["spec"]], pa.int64())
            columns = [numbers, group["samples"], group["bytes"], lengths, checksums, group["spec"]]
            writer.write_table(pa.table(columns, schema=SCHEMA), row_group_size=GROUP_SHARDS)
            written.shards += group.num_rows
            written.samples += pc.sum(group["samples"]).as_py()
            written.exact = written.exact and pc.all(group["exact"]).as_py()
            sizes = group["bytes"]
            known = written.bytes is not None and not sizes.null_count
            written.bytes = (written.bytes or 0) + pc.sum(sizes).as_py() if known else None
            if on_progress:
                on_progress(written.samples)
        writer.add_key_value_metadata({METADATA_KEY: metadata(written)})
    _check_offsets(path)


def spec_offsets(metadata: pq.FileMetaData, lengths: np.ndarray) -> np.ndarray:
    """Where each specification begins in the file, int64.

    Parquet fixes it: a PLAIN byte array is a little-endian uint32 length and then the bytes, one value after another. A required,
    uncompressed column with one page a row group has nothing behind its values, so they end where the column chunk ends.
    """
    offsets = np.empty(len(lengths), np.int64)
    row = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunk = group.column(SCHEMA.get_field_index("spec"))
        here = slice(row, row := row + group.num_rows)
        taken = lengths[here] + _LENGTH.size
        offsets[here] = chunk.data_page_offset + chunk.total_compressed_size - taken[::-1].cumsum()[::-1] + _LENGTH.size
    return offsets


_LENGTH: Final = struct.Struct("<I")


def _groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Rows of schema SHARDS as the row groups of a plan. One of more than GROUP_SHARDS rows is split when it is written."""
    pending: list[pa.RecordBatch] = []
    size = rows = 0
    for batch in batches:
        pending.append(batch)
        size += batch.nbytes
        rows += batch.num_rows
        if size >= GROUP_BYTES or rows >= GROUP_SHARDS:
            yield pa.Table.from_batches(pending)
            pending, size, rows = [], 0, 0
    if pending:
        yield pa.Table.from_batches(pending)


def _check_offsets(path: Path) -> None:
    """Check the layout that `spec_offsets` relies on: the length stands before each specification.

    Raises:
        RuntimeError: this pyarrow writes Parquet in another way.
    """
    with pq.ParquetFile(path) as file, path.open("rb") as data:
        lengths = file.read(columns=["length"])["length"].to_numpy()
        for offset, length in zip(spec_offsets(file.metadata, lengths).tolist(), lengths.tolist(), strict=True):
            data.seek(offset - _LENGTH.size)
            if data.read(_LENGTH.size) != _LENGTH.pack(length):
                raise RuntimeError(
                    f"pyarrow {pa.__version__} did not write a specification as one PLAIN value at {offset}"
                )
