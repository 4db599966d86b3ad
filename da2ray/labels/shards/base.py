"""A shard between the write stage and the two formats: rows and integer maps in, bytes and finished index rows out.

One format for a dataset. Both hold the same integers, and in both a label is one contiguous range of bytes that the
index points at; what the bytes in that range are differs, and `read_value` knows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from da2ray.errors import Status
from da2ray.labels.codec import checked_levels, decode, decode_mask
from da2ray.labels.schema import INDEX

Format = Literal["parquet", "zarr"]

SUFFIX: Final = {"parquet": ".parquet", "zarr": ".zarr.zip"}
"""Of a shard's object, by format."""

MAPS: Final = {"mask": "mask", "far": "far class"}
"""Maps of small integers that may lie beside a depth, and what messages call them. Each is stored alike; the index has
`<name>_offset`, `<name>_length` and `<name>_crc32` of it."""

FAR_BITS: Final = 1


@dataclass(frozen=True, slots=True)
class Range:
    """Where the bytes of a depth or of a map beside it lie in the shard, and their CRC-32 as zip and gzip define it."""

    offset: int
    length: int
    crc32: int


@dataclass(frozen=True, slots=True)
class Masks:
    """Maps of small integers beside the depths of a shard's rows: confidences, or one of the other MAPS.

    Attributes:
        bits: 1 to 8.
        levels: for each row uint8 (network_height, network_width), of confidences 0 = least sure, 2^bits - 1 = surest; None
            where it has none.
    """

    bits: int
    levels: Sequence[np.ndarray | None]


Ranges = Mapping[str, list[Range | None]]
"""For each row of a shard where its depth ("byte") and each of MAPS lie; None where it has none."""


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
    far: Sequence[np.ndarray | None] | None = None,
) -> BuiltShard:
    """Encode a shard's maps and find each one's range.

    Args:
        rows: INDEX, a row a planned sample, in the plan's order; `object` and the byte range are not looked at.
        depths: for each row its `q`, uint16 (network_height, network_width), or None where the row is not labelled.
            Views of micro-batches are fine: they are read once, one at a time.
        format: "parquet" or "zarr".
        masks: confidences; None where no row has one.
        far: for each row bool (network_height, network_width), True where the teacher says that there is no distance (sky); None
            where no pixel is, as an array without any is taken. None where no row has one.

    Raises:
        ValueError: rows and maps contradict each other, or a labelled row's scale or offset is not finite.
    """
    if format not in SUFFIX:
        raise ValueError(f"shard format must be parquet or zarr, not {format!r}")
    none = [None] * len(depths)
    maps = {"mask": masks or Masks(1, none), "far": Masks(FAR_BITS, none if far is None else _far_levels(far))}
    _check(rows, depths)
    for name, beside in maps.items():
        _check_map(name, depths, beside)
    rows = _with_columns(
        rows, {"mask_bits": [None if each is None else maps["mask"].bits for each in maps["mask"].levels]}
    )
    # Here, since both import this module's types, and zarr takes 0.3 s that Parquet shards need not pay.
    if format == "parquet":
        from da2ray.labels.shards.parquet import build_parquet as build  # noqa: PLC0415
    else:
        from da2ray.labels.shards.zarr import build_zarr as build  # noqa: PLC0415
    data, ranges = build(rows, depths, maps)
    filled = {
        f"{prefix}_{name}": [None if each is None else getattr(each, name) for each in found]
        for prefix, found in ranges.items()
        for name in ("offset", "length", "crc32")
    }
    return BuiltShard(data, _with_columns(rows, filled), "parquet" if format == "parquet" else "zarr")


def read_value(data: bytes, height: int, width: int, format: str) -> np.ndarray:  # noqa: A002 - the option's name
    """The uint16 (height, width) map in the bytes of one range.

    Raises:
        ValueError: the bytes are corrupt, cut off, or of another size.
    """
    if format == "parquet":
        return decode(data, height, width)
    if format == "zarr":
        from da2ray.labels.shards.zarr import decode_chunk  # noqa: PLC0415 - see build_shard

        return decode_chunk(data, height, width, np.uint16)
    raise ValueError(f"shard format must be parquet or zarr, not {format!r}")


def read_mask(data: bytes, height: int, width: int, bits: int, format: str) -> np.ndarray:  # noqa: A002 - the option's name
    """The uint8 (height, width) levels in the bytes of a mask's range, or of another of MAPS.

    Raises:
        ValueError: the bytes are corrupt, cut off, or of another size, or a level is above 2^bits - 1.
    """
    if format == "parquet":
        return decode_mask(data, height, width, bits)
    if format == "zarr":
        from da2ray.labels.shards.zarr import decode_chunk  # noqa: PLC0415 - see build_shard

        return checked_levels(decode_chunk(data, height, width, np.uint8), bits)
    raise ValueError(f"shard format must be parquet or zarr, not {format!r}")


def read_shard(data: bytes, format: str) -> pa.Table:  # noqa: A002 - the option's name
    """What a whole shard holds by itself, read as one who has no index would: a row a sample, in the plan's order.

    Returns:
        Columns named and typed as in INDEX, those that the format has, and `value` and each of MAPS: the bytes of the depth and
        of what lies beside it, null where it has none. Zarr shards hold labelled samples only.

    Raises:
        ValueError: it is no such shard, or broken.
    """
    if format == "parquet":
        from da2ray.labels.shards.parquet import read_parquet as read  # noqa: PLC0415 - see build_shard
    elif format == "zarr":
        from da2ray.labels.shards.zarr import read_zarr as read  # noqa: PLC0415
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


def _check_map(name: str, depths: Sequence[np.ndarray | None], beside: Masks) -> None:
    if not 1 <= beside.bits <= 8:
        raise ValueError(f"masks have 1 to 8 bits, not {beside.bits}")
    for depth, levels in zip(depths, beside.levels, strict=True):
        if levels is None:
            continue
        if depth is None or levels.shape != depth.shape or levels.dtype != np.uint8:
            shape = None if depth is None else depth.shape
            raise ValueError(f"a {MAPS[name]} is {levels.dtype} {levels.shape} beside a map of {shape}")
        checked_levels(levels, beside.bits)


def _far_levels(far: Sequence[np.ndarray | None]) -> list[np.ndarray | None]:
    """0 and 1 of bool maps, None for those that are False throughout."""
    for each in far:
        if each is not None and each.dtype != np.bool_:
            raise ValueError(f"a far class is bool, not {each.dtype}")
    return [each.view(np.uint8) if each is not None and each.any() else None for each in far]


def _with_columns(rows: pa.Table, columns: Mapping[str, Sequence[int | None]]) -> pa.Table:
    for name, values in columns.items():
        field = INDEX.field(name)
        rows = rows.set_column(rows.schema.get_field_index(name), field, pa.array(values, field.type))
    return rows
