"""A shard between the write stage and the two formats: rows and integer maps in, bytes and finished index rows out.

One format for a dataset. Both hold the same integers, and in both a label is one contiguous range of bytes that the
index points at; what the bytes in that range are differs, and `read_value` knows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from da2ray.labels.schema import INDEX, Status

Format = Literal["parquet", "zarr"]

SUFFIX: Final = {"parquet": ".parquet", "zarr": ".zarr.zip"}
"""Of a shard's object, by format."""


@dataclass(frozen=True, slots=True)
class Range:
    """Where a label's bytes lie in the shard, and their CRC-32 as zip and gzip define it."""

    offset: int
    length: int
    crc32: int


@dataclass(frozen=True, slots=True)
class BuiltShard:
    """A shard ready to be written in one PUT. The same rows and maps give the same bytes (invariant 5).

    Attributes:
        data: the whole object.
        rows: INDEX, in the plan's order; byte ranges filled, `object` still null: it gets its name when it is
            committed.
        format: of `data`.
    """

    data: bytes
    rows: pa.Table
    format: Format


def build_shard(rows: pa.Table, depths: Sequence[np.ndarray | None], format: str) -> BuiltShard:  # noqa: A002 - the option's name
    """Encode a shard's maps and find each one's range.

    Args:
        rows: INDEX, a row a planned sample, in the plan's order; `object` and the byte range are not looked at.
        depths: for each row its `q`, uint16 (network_height, network_width), or None where the row is not labelled.
            Views of micro-batches are fine: they are read once, one at a time.
        format: "parquet" or "zarr".

    Raises:
        ValueError: rows and maps contradict each other, or a labelled row's scale or offset is not finite.
    """
    if format not in SUFFIX:
        raise ValueError(f"shard format must be parquet or zarr, not {format!r}")
    _check(rows, depths)
    # Here, since both import this module's types, and zarr takes 0.3 s that Parquet shards need not pay.
    if format == "parquet":
        from da2ray.labels.parquet_shard import build_parquet as build  # noqa: PLC0415
    else:
        from da2ray.labels.zarr_shard import build_zarr as build  # noqa: PLC0415
    data, ranges = build(rows, depths)
    filled = {
        "byte_offset": [None if found is None else found.offset for found in ranges],
        "byte_length": [None if found is None else found.length for found in ranges],
        "byte_crc32": [None if found is None else found.crc32 for found in ranges],
    }
    for name, values in filled.items():
        rows = rows.set_column(
            rows.schema.get_field_index(name), INDEX.field(name), pa.array(values, INDEX.field(name).type)
        )
    return BuiltShard(data, rows, "parquet" if format == "parquet" else "zarr")


def read_value(data: bytes, height: int, width: int, format: str) -> np.ndarray:  # noqa: A002 - the option's name
    """The uint16 (height, width) map in the bytes of one range.

    Raises:
        ValueError: the bytes are corrupt, cut off, or of another size.
    """
    if format == "parquet":
        from da2ray.labels.codec import decode  # noqa: PLC0415 - see build_shard

        return decode(data, height, width)
    if format == "zarr":
        from da2ray.labels.zarr_shard import decode_chunk  # noqa: PLC0415

        return decode_chunk(data, height, width)
    raise ValueError(f"shard format must be parquet or zarr, not {format!r}")


def read_shard(data: bytes, format: str) -> pa.Table:  # noqa: A002 - the option's name
    """What a whole shard holds by itself, read as one who has no index would: a row a sample, in the plan's order.

    Returns:
        Columns named and typed as in INDEX, those that the format has, and `value`: the bytes of the label. Zarr shards
        hold labelled samples only.

    Raises:
        ValueError: it is no such shard, or broken.
    """
    if format == "parquet":
        from da2ray.labels.parquet_shard import read_parquet as read  # noqa: PLC0415 - see build_shard
    elif format == "zarr":
        from da2ray.labels.zarr_shard import read_zarr as read  # noqa: PLC0415
    else:
        raise ValueError(f"shard format must be parquet or zarr, not {format!r}")
    try:
        return read(data)
    except MemoryError:
        raise
    except Exception as error:  # Broken bytes make libraries raise nearly anything.
        raise ValueError(f"no {format} shard: {' '.join(str(error).split())[:200]}") from error


def _check(rows: pa.Table, depths: Sequence[np.ndarray | None]) -> None:
    if not rows.schema.equals(INDEX):
        raise ValueError("rows are not of schema INDEX")
    if rows.num_rows != len(depths):
        raise ValueError(f"{rows.num_rows} rows, but {len(depths)} maps")
    labelled = pc.equal(rows["status"], Status.LABELLED.value).to_pylist()
    if labelled != [depth is not None for depth in depths]:
        raise ValueError("labelled rows must have a map, other rows none")
    shapes = zip(rows["network_height"].to_pylist(), rows["network_width"].to_pylist(), strict=True)
    for key, shape, depth in zip(rows["key"].to_pylist(), shapes, depths, strict=True):
        if depth is not None and (depth.shape != shape or depth.dtype != np.uint16):
            raise ValueError(f"{key}: the row says uint16 {shape}, the map is {depth.dtype} {depth.shape}")
    for name in ("scale", "offset"):
        finite = pc.is_finite(rows[name].filter(pc.equal(rows["status"], Status.LABELLED.value)))
        # `all` of nothing is null.
        if finite.null_count or pc.all(finite).as_py() is False:
            raise ValueError(f"a labelled row's {name} is missing or not finite: such an image must be `failed`")
