"""A shard as Zarr: one `.zarr.zip` of Zarr v3 with core codecs only, a group for each network size, a chunk for each image.

The metadata are written here from the Zarr v3 specification, and the chunks are compressed here with the library that zarr's
Blosc codec calls: the way through zarr's asynchronous store costs more than the compression and hides where a chunk lies. Tests
compare both with what zarr writes. Members of the zip are STORED, so a chunk is one contiguous range of the file.

Byte shuffle with zstd 4 is the smallest of levels 1 to 5 and both shuffles on smooth 12-bit maps: 0.90 bytes a pixel at
5 ms for 518 x 686 (bit shuffle: 1.03; plain zstd 3: 1.2). No core codec takes differences, so Parquet shards are a third
smaller. Masks and other maps beside the depth are bytes under bit shuffle: a mask of 2 bits takes 53 kB in 2.6 ms; without a
shuffle it takes 51 kB in 4.9 ms.
"""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numcodecs import blosc

from da2ray.labels.codec import checked_levels
from da2ray.labels.schema import FORMAT_VERSION
from da2ray.labels.shards.base import Masks, Range, Ranges

CHUNK_CODEC: Final = "blosc-zstd"
"""Name of the bytes of a chunk, as `dataset.json` states it: plain integers under a core codec, so that any Zarr library reads
them."""

LEVEL: Final = 4
_LOCAL_HEADER_BYTES: Final = 30
_BLOSC_HEADER_BYTES: Final = 16

HOW_TO_READ: Final = (
    "one group a network size (height x width): depth[i] = offset[i] + scale[i] * q[i]; row: its row in the shard; "
    "mask[i]: confidence of mask_bits[i] bits, 0 = least sure; there is none where mask_bits[i] is 0; "
    "far[i]: 1 = no distance (sky); 0 throughout where the array or the chunk is missing"
)


def build_zarr(rows: pa.Table, depths: Sequence[np.ndarray | None], maps: Mapping[str, Masks]) -> tuple[bytes, Ranges]:
    """The object, and where its chunks lie.

    Args:
        rows: INDEX, with `mask_bits`.
        depths: as in `build_shard`, which has checked them.
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
        _put_metadata(archive, "", group_metadata({"da2ray": about}))
        for (height, width), members in sorted(sizes.items()):
            name = f"{height}x{width}"
            _put_metadata(archive, f"{name}/", group_metadata({"keys": [keys[row] for row in members]}))
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


def group_metadata(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """zarr.json of a group."""
    return {"attributes": attributes, "zarr_format": 3, "node_type": "group"}


def array_metadata(shape: Sequence[int], dtype: str) -> dict[str, Any]:
    """zarr.json of an array: (image, y, x) in a chunk an image under Blosc, or (image,) in one plain chunk.

    Fields and codecs are those of https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html, in zarr's order.
    """
    size = np.dtype(dtype).itemsize
    images = len(shape) > 1
    codecs: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}]
    if size == 1:
        del codecs[0]["configuration"]  # single bytes have no order
    if images:
        shuffle = "shuffle" if size > 1 else "bitshuffle"
        blosc_options = {"typesize": size, "cname": "zstd", "clevel": LEVEL, "shuffle": shuffle, "blocksize": 0}
        codecs.append({"name": "blosc", "configuration": blosc_options})
    return {
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": (1, *shape[1:]) if images else shape}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0.0 if dtype.startswith("float") else 0,
        "codecs": codecs,
        "attributes": {},
        "dimension_names": ("image", "y", "x") if images else ("image",),
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def chunk_key(*place: int) -> str:
    """The key of a chunk below its array, in the specification's default encoding: `c/0/0/0`."""
    return "/".join(["c", *map(str, place)])


def encode_chunk(image: np.ndarray) -> bytes:
    """The bytes that zarr's Blosc codec makes of one uint16 or uint8 (h, w) map."""
    shuffle = blosc.SHUFFLE if image.itemsize == 2 else blosc.BITSHUFFLE
    return blosc.compress(np.ascontiguousarray(image).reshape(-1), b"zstd", LEVEL, shuffle, 0, image.itemsize)


def decode_chunk(data: bytes, height: int, width: int, dtype: type[np.uint16 | np.uint8] = np.uint16) -> np.ndarray:
    """The (height, width) map of `encode_chunk`, bit for bit.

    Raises:
        ValueError: the bytes are corrupt, cut off, or of another size.
    """
    kind = np.dtype(dtype).newbyteorder("<")
    wanted = kind.itemsize * height * width
    # Blosc trusts its header, so the header is compared with the index before anything is allocated.
    if len(data) < _BLOSC_HEADER_BYTES or int.from_bytes(data[12:16], "little") != len(data):
        raise ValueError(f"not a label: {len(data)} bytes that are not a whole Blosc chunk")
    declared = int.from_bytes(data[4:8], "little")
    if declared != wanted:
        raise ValueError(f"a label of {height} x {width} has {wanted} bytes, this one declares {declared}")
    q = np.empty((height, width), dtype=kind)
    try:
        blosc.decompress(data, q)
    except RuntimeError as error:
        raise ValueError(f"not a label: {error}") from error
    return q


def decode_mask_chunk(data: bytes, height: int, width: int, bits: int) -> np.ndarray:
    """The uint8 (height, width) levels of a mask's chunk.

    Raises:
        ValueError: the bytes are corrupt, cut off, or of another size, or a level is above 2^bits - 1.
    """
    return checked_levels(decode_chunk(data, height, width, np.uint8), bits)


def _put_images(
    archive: zipfile.ZipFile,
    name: str,
    dtype: str,
    shape: tuple[int, int, int],
    images: Sequence[np.ndarray | None],
    members: list[int],
    ranges: list[Range | None],
) -> None:
    """Write an array of the shard's rows `members`, a chunk for each that has an image, and fill in `ranges`."""
    _put_metadata(archive, f"{name}/", array_metadata(shape, dtype))
    for place, row in enumerate(members):
        image = images[row]
        if image is not None:
            ranges[row] = _put(archive, f"{name}/{chunk_key(place, 0, 0)}", encode_chunk(image))


def _put_numbers(archive: zipfile.ZipFile, name: str, values: np.ndarray, dtype: str) -> None:
    """Write an array of one number for each image, in one chunk."""
    _put_metadata(archive, f"{name}/", array_metadata(values.shape, dtype))
    _put(archive, f"{name}/{chunk_key(0)}", values.astype(np.dtype(dtype).newbyteorder("<")).tobytes())


def _kinds(rows: pa.Table) -> list[str]:
    return sorted({kind for kind in rows["kind"].to_pylist() if kind is not None})


def _put_metadata(archive: zipfile.ZipFile, folder: str, metadata: Mapping[str, Any]) -> None:
    _put(archive, f"{folder}zarr.json", json.dumps(metadata, indent=2).encode())


def _put(archive: zipfile.ZipFile, name: str, data: bytes) -> Range:
    """Store a member and return where its data lies. The bytes are the same at any time on any system."""
    member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    member.create_system = 3
    member.external_attr = 0o644 << 16
    archive.writestr(member, data)
    # A member below 4 GiB has no extra field, so its data follows its header and name.
    return Range(member.header_offset + _LOCAL_HEADER_BYTES + len(name.encode()), len(data), member.CRC)
