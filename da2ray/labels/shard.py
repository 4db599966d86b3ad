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

from da2ray.labels.codec import checked_levels, decode, decode_mask
from da2ray.labels.schema import INDEX, Status

Format = Literal["parquet", "zarr"]

SUFFIX: Final = {"parquet": ".parquet", "zarr": ".zarr.zip"}
"""Of a shard's object, by format."""


@dataclass(frozen=True, slots=True)
class Range:
    """Where the bytes of a label or a mask lie in the shard, and their CRC-32 as zip and gzip define it."""

    offset: int
    length: int
    crc32: int


@dataclass(frozen=True, slots=True)
class Masks:
    """Confidences of a shard's rows.

    Attributes:
        bits: 1 to 8.
        levels: for each row uint8 (network_height, network_width), 0 = least sure, 2^bits - 1 = surest; None where it has
            none.
    """

    bits: int
    levels: Sequence[np.ndarray | None]


@dataclass(frozen=True, slots=True)
class Ranges:
    """For each row of a shard where its label and its mask lie; None where it has none."""

    depths: list[Range | None]
    masks: list[Range | None]


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


def build_shard(
    rows: pa.Table,
    depths: Sequence[np.ndarray | None],
    format: str,  # noqa: A002 - the option's name
    masks: Masks | None = None,
) -> BuiltShard:
    """Encode a shard's maps and find each one's range.

    Args:
        rows: INDEX, a row a planned sample, in the plan's order; `object` and the byte range are not looked at.
        depths: for each row its `q`, uint16 (network_height, network_width), or None where the row is not labelled.
            Views of micro-batches are fine: they are read once, one at a time.
        format: "parquet" or "zarr".
        masks: None where no row has one.

    Raises:
        ValueError: rows and maps contradict each other, or a labelled row's scale or offset is not finite.
    """
    if format not in SUFFIX:
        raise ValueError(f"shard format must be parquet or zarr, not {format!r}")
    masks = masks or Masks(1, [None] * len(depths))
    _check(rows, depths)
    _check_masks(depths, masks)
    # Here, since both import this module's types, and zarr takes 0.3 s that Parquet shards need not pay.
    if format == "parquet":
        from da2ray.labels.parquet_shard import build_parquet as build  # noqa: PLC0415
    else:
        from da2ray.labels.zarr_shard import build_zarr as build  # noqa: PLC0415
    data, ranges = build(rows, depths, masks)
    filled = {"mask_bits": [None if found is None else masks.bits for found in ranges.masks]}
    for prefix, found in (("byte", ranges.depths), ("mask", ranges.masks)):
        for name in ("offset", "length", "crc32"):
            filled[f"{prefix}_{name}"] = [None if each is None else getattr(each, name) for each in found]
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
        return decode(data, height, width)
    if format == "zarr":
        from da2ray.labels.zarr_shard import decode_chunk  # noqa: PLC0415 - see build_shard

        return decode_chunk(data, height, width, np.uint16)
    raise ValueError(f"shard format must be parquet or zarr, not {format!r}")


def read_mask(data: bytes, height: int, width: int, bits: int, format: str) -> np.ndarray:  # noqa: A002 - the option's name
    """The uint8 (height, width) levels in the bytes of a mask's range.

    Raises:
        ValueError: the bytes are corrupt, cut off, or of another size, or a level is above 2^bits - 1.
    """
    if format == "parquet":
        return decode_mask(data, height, width, bits)
    if format == "zarr":
        from da2ray.labels.zarr_shard import decode_chunk  # noqa: PLC0415 - see build_shard

        return checked_levels(decode_chunk(data, height, width, np.uint8), bits)
    raise ValueError(f"shard format must be parquet or zarr, not {format!r}")


def read_shard(data: bytes, format: str) -> pa.Table:  # noqa: A002 - the option's name
    """What a whole shard holds by itself, read as one who has no index would: a row a sample, in the plan's order.

    Returns:
        Columns named and typed as in INDEX, those that the format has, and `value` and `mask`: the bytes of the label and of
        its mask, null where it has none. Zarr shards hold labelled samples only.

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


def _check_masks(depths: Sequence[np.ndarray | None], masks: Masks) -> None:
    if not 1 <= masks.bits <= 8:
        raise ValueError(f"masks have 1 to 8 bits, not {masks.bits}")
    for depth, levels in zip(depths, masks.levels, strict=True):
        if levels is None:
            continue
        if depth is None or levels.shape != depth.shape or levels.dtype != np.uint8:
            shape = None if depth is None else depth.shape
            raise ValueError(f"a mask is {levels.dtype} {levels.shape} beside a map of {shape}")
        checked_levels(levels, masks.bits)
