"""A shard as Zarr: one `.zarr.zip` of Zarr v3 with core codecs only, a group a network size, a chunk an image.

zarr-python writes the metadata; the chunks are compressed here with the same library that its Blosc codec calls, and
put straight into the zip, because the way through its asynchronous store costs more than the compressing and hides
where a chunk lies. Members are STORED, so a chunk is one contiguous range of the file.

Byte shuffle with zstd 4 is the smallest of levels 1 to 5 and both shuffles on smooth 12-bit maps: 0.90 bytes a pixel at
5 ms for 518 x 686 (bit shuffle: 1.03; plain zstd 3: 1.2). No core codec takes differences, which is why Parquet shards
are a third smaller.
"""

import io
import zipfile
from collections.abc import Sequence
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
import zarr
from numcodecs import blosc
from zarr.codecs import BloscCodec, BytesCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.chunk_grids import RegularChunkGrid
from zarr.core.chunk_key_encodings import DefaultChunkKeyEncoding
from zarr.core.group import GroupMetadata
from zarr.core.metadata.v3 import ArrayV3Metadata
from zarr.dtype import parse_dtype
from zarr.storage import MemoryStore

from da2ray.labels.schema import FORMAT_VERSION, INDEX
from da2ray.labels.shard import Range

LEVEL: Final = 4
_LOCAL_HEADER_BYTES: Final = 30
_BLOSC_HEADER_BYTES: Final = 16
_OWN: Final = pa.schema(
    [INDEX.field(name) for name in ("row", "key", "scale", "offset", "network_height", "network_width")]
    + [pa.field("value", pa.large_binary())]
)

HOW_TO_READ: Final = (
    "one group a network size (height x width): depth[i] = offset[i] + scale[i] * q[i]; row: its row in the shard"
)


def build_zarr(rows: pa.Table, depths: Sequence[np.ndarray | None]) -> tuple[bytes, list[Range | None]]:
    """The object, and for each row the range of its chunk (None where it has none).

    Args:
        rows: INDEX.
        depths: see `build_shard`, which has checked both.
    """
    sizes: dict[tuple[int, int], list[int]] = {}
    for row, depth in enumerate(depths):
        if depth is not None:
            sizes.setdefault((depth.shape[0], depth.shape[1]), []).append(row)
    keys = rows["key"].to_pylist()
    numbers = {name: rows[name].to_numpy() for name in ("row", "scale", "offset")}
    ranges: list[Range | None] = [None] * len(depths)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        about = {"format_version": FORMAT_VERSION, "how_to_read": HOW_TO_READ, "kinds": _kinds(rows)}
        _put_metadata(archive, "", GroupMetadata({"da2ray": about}, zarr_format=3))
        for (height, width), members in sorted(sizes.items()):
            name = f"{height}x{width}"
            _put_metadata(archive, f"{name}/", GroupMetadata({"keys": [keys[row] for row in members]}, zarr_format=3))
            codecs = [BytesCodec(), BloscCodec(typesize=2, cname="zstd", clevel=LEVEL, shuffle="shuffle", blocksize=0)]
            shape = (len(members), height, width)
            _put_metadata(archive, f"{name}/q/", _array(shape, "uint16", codecs, ("image", "y", "x")))
            for place, row in enumerate(members):
                depth = depths[row]
                assert depth is not None  # noqa: S101 - only rows that have a map are members
                ranges[row] = _put(archive, f"{name}/q/c/{place}/0/0", encode_chunk(depth))
            for column, dtype in (("row", "int32"), ("scale", "float32"), ("offset", "float32")):
                _put_metadata(archive, f"{name}/{column}/", _array((len(members),), dtype, [BytesCodec()], ("image",)))
                values = numbers[column][members].astype(np.dtype(dtype).newbyteorder("<"))
                _put(archive, f"{name}/{column}/c/0", values.tobytes())
    return file.getvalue(), ranges


def encode_chunk(q: np.ndarray) -> bytes:
    """What zarr's Blosc codec makes of one uint16 (h, w) map."""
    return blosc.compress(np.ascontiguousarray(q).reshape(-1), b"zstd", LEVEL, blosc.SHUFFLE, 0, 2)


def read_zarr(data: bytes) -> pa.Table:
    """See `read_shard`, which turns whatever is raised here into one error. Zarr reads all but the chunks of `q`."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}  # compared with the zip's checksums
    buffer = default_buffer_prototype().buffer
    root = zarr.open_group(
        MemoryStore({name: buffer.from_bytes(value) for name, value in members.items()}), mode="r", zarr_format=3
    )
    rows: list[dict[str, Any]] = []
    for name, group in root.groups():
        q = _member(group, "q")
        numbers = [np.asarray(_member(group, column)[:]) for column in ("row", "scale", "offset")]
        images, height, width = q.shape
        if name != f"{height}x{width}" or q.dtype != np.uint16 or q.chunks != (1, height, width):
            raise ValueError(f"group {name} holds {q.dtype} {q.shape} in chunks of {q.chunks}")
        keys = cast(list[str], group.attrs["keys"])
        chunks = [members[f"{name}/q/{q.metadata.encode_chunk_key((place, 0, 0))}"] for place in range(images)]
        for key, chunk, row, scale, offset in zip(keys, chunks, *numbers, strict=True):
            rows.append(
                {"row": row, "key": key, "scale": scale, "offset": offset, "value": chunk}
                | {"network_height": height, "network_width": width}
            )
    rows.sort(key=lambda row: row["row"])
    return pa.Table.from_pylist(rows, schema=_OWN)


def _member(group: zarr.Group, name: str) -> zarr.Array:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise TypeError(f"{group.name}/{name} is no array")
    return array


def decode_chunk(data: bytes, height: int, width: int) -> np.ndarray:
    """The uint16 (height, width) map of `encode_chunk`, bit for bit.

    Raises:
        ValueError: the bytes are corrupt, cut off, or of another size.
    """
    wanted = 2 * height * width
    # Blosc trusts its header, so it is checked against what the index says before anything is allocated.
    if len(data) < _BLOSC_HEADER_BYTES or int.from_bytes(data[12:16], "little") != len(data):
        raise ValueError(f"not a label: {len(data)} bytes that are no whole Blosc chunk")
    declared = int.from_bytes(data[4:8], "little")
    if declared != wanted:
        raise ValueError(f"a label of {height} x {width} has {wanted} bytes, this one declares {declared}")
    q = np.empty((height, width), dtype="<u2")
    try:
        blosc.decompress(data, q)
    except RuntimeError as error:
        raise ValueError(f"not a label: {error}") from error
    return q


def _kinds(rows: pa.Table) -> list[str]:
    return sorted({kind for kind in rows["kind"].to_pylist() if kind is not None})


def _array(shape: tuple[int, ...], dtype: str, codecs: list[Any], names: tuple[str, ...]) -> ArrayV3Metadata:
    return ArrayV3Metadata(
        shape=shape,
        data_type=parse_dtype(np.dtype(dtype), zarr_format=3),
        chunk_grid=RegularChunkGrid(chunk_shape=(1, *shape[1:]) if len(shape) > 1 else shape),
        chunk_key_encoding=DefaultChunkKeyEncoding(),
        fill_value=0,
        codecs=codecs,
        attributes={},
        dimension_names=names,
    )


def _put_metadata(archive: zipfile.ZipFile, folder: str, metadata: ArrayV3Metadata | GroupMetadata) -> None:
    for name, buffer in metadata.to_buffer_dict(default_buffer_prototype()).items():
        _put(archive, folder + name, buffer.to_bytes())


def _put(archive: zipfile.ZipFile, name: str, data: bytes) -> Range:
    """Store a member, the same bytes at any time on any system, and say where its data lies."""
    member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    member.create_system = 3
    member.external_attr = 0o644 << 16
    archive.writestr(member, data)
    # A member below 4 GiB has no extra field, so its data follows its header and name.
    return Range(member.header_offset + _LOCAL_HEADER_BYTES + len(name.encode()), len(data), member.CRC)
