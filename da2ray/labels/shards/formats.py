"""The table of shard formats, and what callers do with a shard whatever its format: build it, decode one of its values.

A dataset has one format. All formats hold the same integers, and in each a label is one contiguous range of bytes that the
index points at. They differ in what the bytes of that range are. A new format is a module beside this one and a row in FORMATS;
`da2ray.labels.shards.whole` has its reader for `da2ray verify`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from da2ray.errors import Status
from da2ray.labels.codec import CODEC, checked_levels, decode, decode_mask
from da2ray.labels.schema import INDEX
from da2ray.labels.shards.base import FAR_BITS, MAPS, BuiltShard, Masks, Ranges, ShardFormat
from da2ray.labels.shards.parquet import build_parquet
from da2ray.labels.shards.zarr import CHUNK_CODEC, build_zarr, decode_chunk, decode_mask_chunk


@dataclass(frozen=True, slots=True)
class Implementation:
    """The code of a format.

    Attributes:
        suffix: of a shard's object.
        codec: name of a label's bytes, as dataset.json states it.
        build: (rows, depths, maps), all checked, -> the object, and where its values lie.
        decode: (bytes, height, width) -> the uint16 map.
        decode_mask: (bytes, height, width, bits) -> the uint8 levels.
    """

    suffix: str
    codec: str
    build: Callable[[pa.Table, Sequence[np.ndarray | None], Mapping[str, Masks]], tuple[bytes, Ranges]]
    decode: Callable[[bytes, int, int], np.ndarray]
    decode_mask: Callable[[bytes, int, int, int], np.ndarray]


FORMATS: Final = {
    ShardFormat.PARQUET: Implementation(".parquet", CODEC, build_parquet, decode, decode_mask),
    ShardFormat.ZARR: Implementation(".zarr.zip", CHUNK_CODEC, build_zarr, decode_chunk, decode_mask_chunk),
}


def build_shard(
    rows: pa.Table,
    depths: Sequence[np.ndarray | None],
    format: ShardFormat,  # noqa: A002 - the option's name
    masks: Masks | None = None,
    far: Sequence[np.ndarray | None] | None = None,
) -> BuiltShard:
    """Encode a shard's maps and find the range of each.

    Args:
        rows: INDEX, one row for each planned sample, in the plan's order; `object` and the byte ranges are ignored.
        depths: for each row its `q`, uint16 (network_height, network_width), or None if the row is not labelled. Views of
            micro-batches are fine: each is read once, one at a time.
        format: how to store them.
        masks: confidences; None if no row has one.
        far: for each row bool (network_height, network_width), True at pixels without a distance (sky); None, or an array
            without True, if no pixel is far. None instead of the sequence if no row has a far class.

    Raises:
        ValueError: rows and maps contradict each other, or a labelled row's scale or offset is not finite.
    """
    none = [None] * len(depths)
    maps = {"mask": masks or Masks(1, none), "far": Masks(FAR_BITS, none if far is None else _far_levels(far))}
    _check(rows, depths)
    for name, beside in maps.items():
        _check_map(name, depths, beside)
    rows = _with_columns(
        rows, {"mask_bits": [None if each is None else maps["mask"].bits for each in maps["mask"].levels]}
    )
    data, ranges = FORMATS[format].build(rows, depths, maps)
    filled = {
        f"{prefix}_{name}": [None if each is None else getattr(each, name) for each in found]
        for prefix, found in ranges.items()
        for name in ("offset", "length", "crc32")
    }
    return BuiltShard(data, _with_columns(rows, filled), format)


def read_value(data: bytes, height: int, width: int, format: ShardFormat) -> np.ndarray:  # noqa: A002 - the option's name
    """The uint16 (height, width) map in the bytes of one range.

    Raises:
        ValueError: the bytes are corrupt, cut off, or of another size.
    """
    return FORMATS[format].decode(data, height, width)


def read_mask(data: bytes, height: int, width: int, bits: int, format: ShardFormat) -> np.ndarray:  # noqa: A002
    """The uint8 (height, width) levels in the bytes of a mask's range, or of another of MAPS.

    Raises:
        ValueError: the bytes are corrupt, cut off, or of another size, or a level is above 2^bits - 1.
    """
    return FORMATS[format].decode_mask(data, height, width, bits)


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
