"""What a whole shard holds by itself, read the way a reader without an index would. `da2ray verify` compares it with the index.

Readers of labels do not come here: they fetch one range and decode it. So neither they nor the job import zarr, which takes
0.16 s.
"""

import io
import zipfile
from collections.abc import Callable, Iterable
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from zarr.buffer.cpu import Buffer
from zarr.storage import MemoryStore

from da2ray.labels.schema import INDEX, conform
from da2ray.labels.shards.base import MAPS, ShardFormat
from da2ray.labels.shards.parquet import SCHEMA
from da2ray.labels.shards.zarr import chunk_key

_ZARR_COLUMNS: Final = pa.schema(
    [INDEX.field(name) for name in ("row", "key", "scale", "offset", "network_height", "network_width", "mask_bits")]
    + [pa.field(name, pa.large_binary()) for name in ("value", *MAPS)]
)


def read_shard(data: bytes, format: ShardFormat) -> pa.Table:  # noqa: A002 - the option's name
    """The samples of a shard, in the plan's order.

    Returns:
        The columns of INDEX that the format stores, and `value` and each of MAPS: the bytes of the depth and of each map
        beside it, null if the sample has none. Zarr shards hold labelled samples only, and have no column `status`.

    Raises:
        ValueError: the bytes are not a shard of this format, or a broken one.
    """
    try:
        return _READERS[format](data)
    except MemoryError:
        raise
    except Exception as error:  # Broken bytes make libraries raise nearly anything.
        raise ValueError(f"not a {format} shard: {' '.join(str(error).split())[:200]}") from error


def _read_parquet(data: bytes) -> pa.Table:
    table = conform(pq.read_table(pa.BufferReader(data), use_threads=False), SCHEMA)
    columns = {name: table[name] for name in ("key", "status", "reason", "kind", "scale", "offset")}
    columns |= {"network_height": table["height"], "network_width": table["width"], "value": table["depth"]}
    columns |= {name: table[name] for name in ("mask_bits", *MAPS)}
    return pa.table({"row": pa.array(np.arange(table.num_rows, dtype=np.int32))} | columns)


def _read_zarr(data: bytes) -> pa.Table:
    """Read all but the chunks of images through zarr."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}  # compared with the zip's checksums
    store = MemoryStore({name: Buffer.from_bytes(value) for name, value in members.items()}, read_only=True)
    rows: list[dict[str, Any]] = []
    for name, group in zarr.open_group(store, mode="r", zarr_format=3).groups():
        keys = cast(list[str], group.attrs["keys"])
        height, width = map(int, name.split("x"))
        shape = (len(keys), height, width)
        columns: dict[str, Iterable[Any]] = {
            column: np.asarray(_array(group, column)[:]) for column in ("row", "scale", "offset")
        }
        columns |= {"key": keys, "value": _chunks(group, "q", "uint16", shape, members)}
        columns |= {beside: _chunks(group, beside, "uint8", shape, members) for beside in MAPS if beside in group}
        if "mask" in group:
            columns["mask_bits"] = [bits or None for bits in np.asarray(_array(group, "mask_bits")[:]).tolist()]
        for values in zip(*columns.values(), strict=True):
            row = dict(zip(columns, values, strict=True))
            if row["value"] is None or (row.get("mask") is None) != (row.get("mask_bits") is None):
                raise ValueError(f"{row['key']!r} lacks a chunk")
            rows.append(row | {"network_height": height, "network_width": width})
    rows.sort(key=lambda row: row["row"])
    return pa.Table.from_pylist(rows, schema=_ZARR_COLUMNS)


def _chunks(
    group: zarr.Group, name: str, dtype: str, shape: tuple[int, int, int], members: dict[str, bytes]
) -> list[bytes | None]:
    """The chunk of each image in one of a group's arrays; None if there is no chunk."""
    array = _array(group, name)
    if array.shape != shape or array.dtype != np.dtype(dtype) or array.chunks != (1, *shape[1:]):
        raise ValueError(f"{array.name} holds {array.dtype} {array.shape} in chunks of {array.chunks}")
    return [members.get(f"{array.path}/{chunk_key(place, 0, 0)}") for place in range(shape[0])]


def _array(group: zarr.Group, name: str) -> zarr.Array:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise TypeError(f"{group.name}/{name} is not an array")
    return array


_READERS: Final[dict[ShardFormat, Callable[[bytes], pa.Table]]] = {
    ShardFormat.PARQUET: _read_parquet,
    ShardFormat.ZARR: _read_zarr,
}
