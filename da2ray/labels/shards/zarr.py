"""A shard as Zarr: one `.zarr.zip` of Zarr v3 with core codecs only, a group a network size, a chunk an image.

zarr-python writes the metadata; the chunks are compressed here with the same library that its Blosc codec calls, and
put straight into the zip, because the way through its asynchronous store costs more than the compressing and hides
where a chunk lies. Members are STORED, so a chunk is one contiguous range of the file.

Byte shuffle with zstd 4 is the smallest of levels 1 to 5 and both shuffles on smooth 12-bit maps: 0.90 bytes a pixel at
5 ms for 518 x 686 (bit shuffle: 1.03; plain zstd 3: 1.2). No core codec takes differences, which is why Parquet shards
are a third smaller. Masks, and what else lies beside the depth, are bytes under bit shuffle: a mask of 2 bits takes 53 kB in
2.6 ms, where no shuffle makes 51 kB in 4.9.
"""

import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, cast

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
from da2ray.labels.shards.base import MAPS, Masks, Range, Ranges

LEVEL: Final = 4
_LOCAL_HEADER_BYTES: Final = 30
_BLOSC_HEADER_BYTES: Final = 16
_OWN: Final = pa.schema(
    [INDEX.field(name) for name in ("row", "key", "scale", "offset", "network_height", "network_width", "mask_bits")]
    + [pa.field(name, pa.large_binary()) for name in ("value", *MAPS)]
)

HOW_TO_READ: Final = (
    "one group a network size (height x width): depth[i] = offset[i] + scale[i] * q[i]; row: its row in the shard; "
    "mask[i]: confidence of mask_bits[i] bits, 0 = least sure; there is none where mask_bits[i] is 0; "
    "far[i]: 1 = no distance (sky); 0 throughout where the array or the chunk is missing"
)


def build_zarr(rows: pa.Table, depths: Sequence[np.ndarray | None], maps: Mapping[str, Masks]) -> tuple[bytes, Ranges]:
    """The object, and where its chunks lie.

    Args:
        rows: INDEX, with `mask_bits`.
        depths: see `build_shard`, which has checked them.
        maps: each of MAPS, checked too.
    """
    sizes: dict[tuple[int, int], list[int]] = {}
    for row, depth in enumerate(depths):
        if depth is not None:
            sizes.setdefault((depth.shape[0], depth.shape[1]), []).append(row)
    keys = rows["key"].to_pylist()
    numbers = {name: rows[name].to_numpy() for name in ("row", "scale", "offset")}
    mask_bits = np.array([bits or 0 for bits in rows["mask_bits"].to_pylist()], dtype=np.uint8)
    ranges: dict[str, list[Range | None]] = {name: [None] * len(depths) for name in ("byte", *maps)}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        about = {"format_version": FORMAT_VERSION, "how_to_read": HOW_TO_READ, "kinds": _kinds(rows)}
        _put_metadata(archive, "", GroupMetadata({"da2ray": about}, zarr_format=3))
        for (height, width), members in sorted(sizes.items()):
            name = f"{height}x{width}"
            _put_metadata(archive, f"{name}/", GroupMetadata({"keys": [keys[row] for row in members]}, zarr_format=3))
            shape = (len(members), height, width)
            _put_images(archive, f"{name}/q", "uint16", shape, depths, members, ranges["byte"])
            for column, dtype in (("row", "int32"), ("scale", "float32"), ("offset", "float32")):
                _put_numbers(archive, f"{name}/{column}", numbers[column][members], dtype)
            for beside, found in maps.items():
                if any(found.levels[row] is not None for row in members):
                    _put_images(archive, f"{name}/{beside}", "uint8", shape, found.levels, members, ranges[beside])
            if mask_bits[members].any():
                _put_numbers(archive, f"{name}/mask_bits", mask_bits[members], "uint8")
    return file.getvalue(), ranges


def _put_images(
    archive: zipfile.ZipFile,
    name: str,
    dtype: str,
    shape: tuple[int, int, int],
    images: Sequence[np.ndarray | None],
    members: list[int],
    ranges: list[Range | None],
) -> None:
    """An array of the shard's rows `members`, a chunk an image, none where there is no image; fills in `ranges`."""
    shuffle: Literal["shuffle", "bitshuffle"] = "shuffle" if dtype == "uint16" else "bitshuffle"
    blosc_codec = BloscCodec(
        typesize=np.dtype(dtype).itemsize, cname="zstd", clevel=LEVEL, shuffle=shuffle, blocksize=0
    )
    _put_metadata(archive, f"{name}/", _array(shape, dtype, [BytesCodec(), blosc_codec], ("image", "y", "x")))
    for place, row in enumerate(members):
        image = images[row]
        if image is not None:
            ranges[row] = _put(archive, f"{name}/c/{place}/0/0", encode_chunk(image))


def _put_numbers(archive: zipfile.ZipFile, name: str, values: np.ndarray, dtype: str) -> None:
    """An array of a number an image, in one chunk."""
    _put_metadata(archive, f"{name}/", _array(values.shape, dtype, [BytesCodec()], ("image",)))
    _put(archive, f"{name}/c/0", values.astype(np.dtype(dtype).newbyteorder("<")).tobytes())


def encode_chunk(image: np.ndarray) -> bytes:
    """What zarr's Blosc codec makes of one uint16 or uint8 (h, w) map."""
    shuffle = blosc.SHUFFLE if image.itemsize == 2 else blosc.BITSHUFFLE
    return blosc.compress(np.ascontiguousarray(image).reshape(-1), b"zstd", LEVEL, shuffle, 0, image.itemsize)


def read_zarr(data: bytes) -> pa.Table:
    """See `read_shard`, which turns whatever is raised here into one error. Zarr reads all but the chunks of images."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}  # compared with the zip's checksums
    buffer = default_buffer_prototype().buffer
    root = zarr.open_group(
        MemoryStore({name: buffer.from_bytes(value) for name, value in members.items()}), mode="r", zarr_format=3
    )
    rows: list[dict[str, Any]] = []
    for name, group in root.groups():
        keys = cast(list[str], group.attrs["keys"])
        height, width = map(int, name.split("x"))
        shape = (len(keys), height, width)
        columns: dict[str, Iterable[Any]] = {
            column: np.asarray(_member(group, column)[:]) for column in ("row", "scale", "offset")
        }
        columns |= {"key": keys, "value": _chunks(group, "q", "uint16", shape, members)}
        columns |= {beside: _chunks(group, beside, "uint8", shape, members) for beside in MAPS if beside in group}
        if "mask" in group:
            columns["mask_bits"] = [bits or None for bits in np.asarray(_member(group, "mask_bits")[:]).tolist()]
        for values in zip(*columns.values(), strict=True):
            row = dict(zip(columns, values, strict=True))
            if row["value"] is None or (row.get("mask") is None) != (row.get("mask_bits") is None):
                raise ValueError(f"{row['key']!r} lacks a chunk")
            rows.append(row | {"network_height": height, "network_width": width})
    rows.sort(key=lambda row: row["row"])
    return pa.Table.from_pylist(rows, schema=_OWN)


def _chunks(
    group: zarr.Group, name: str, dtype: str, shape: tuple[int, int, int], members: dict[str, bytes]
) -> list[bytes | None]:
    """The chunk of each image in one of a group's arrays, None where it is missing."""
    array = _member(group, name)
    if array.shape != shape or array.dtype != np.dtype(dtype) or array.chunks != (1, *shape[1:]):
        raise ValueError(f"{array.name} holds {array.dtype} {array.shape} in chunks of {array.chunks}")
    keys = (array.metadata.encode_chunk_key((place, 0, 0)) for place in range(shape[0]))
    return [members.get(f"{array.path}/{key}") for key in keys]


def _member(group: zarr.Group, name: str) -> zarr.Array:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise TypeError(f"{group.name}/{name} is no array")
    return array


def decode_chunk(data: bytes, height: int, width: int, dtype: type[np.uint16 | np.uint8]) -> np.ndarray:
    """The (height, width) map of `encode_chunk`, bit for bit.

    Raises:
        ValueError: the bytes are corrupt, cut off, or of another size.
    """
    kind = np.dtype(dtype).newbyteorder("<")
    wanted = kind.itemsize * height * width
    # Blosc trusts its header, so it is checked against what the index says before anything is allocated.
    if len(data) < _BLOSC_HEADER_BYTES or int.from_bytes(data[12:16], "little") != len(data):
        raise ValueError(f"not a label: {len(data)} bytes that are no whole Blosc chunk")
    declared = int.from_bytes(data[4:8], "little")
    if declared != wanted:
        raise ValueError(f"a label of {height} x {width} has {wanted} bytes, this one declares {declared}")
    q = np.empty((height, width), dtype=kind)
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
