"""Image files of each format from their parts, with the sizes and offsets that a test asks for, right or wrong."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
ORIENTATION = 0x112
"""The tag of EXIF and TIFF."""
SHORT, LONG = 3, 4
"""Types of values in a TIFF."""


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, rows: bytes, *, colour: int = 2, interlaced: int = 0, extra: bytes = b"") -> bytes:
    """A PNG of 8 bits, from its `rows` before compression and `extra` chunks that go before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, interlaced)
    pixels = png_chunk(b"IDAT", zlib.compress(rows, 9))
    return PNG_SIGNATURE + png_chunk(b"IHDR", header) + extra + pixels + png_chunk(b"IEND", b"")


def interlaced_png(image: Image.Image) -> bytes:
    """An interlaced PNG (Adam7), which Pillow does not write."""
    pixels = np.asarray(image)
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = [
        b"\0" + row.tobytes()
        for top, left, down, across in passes
        for row in pixels[top::down, left::across]
        if row.size
    ]
    return png(image.width, image.height, b"".join(rows), interlaced=1)


def rle_bmp() -> bytes:
    """A run-length encoded BMP of 64 x 48 pixels and 8 bits. Each row is one run and an end of line; an end of bitmap follows."""
    rows = b"".join(b"\x40" + bytes([row]) + b"\0\0" for row in range(48)) + b"\0\1"
    palette = b"".join(bytes([i, i, i, 0]) for i in range(256))
    head = struct.pack("<IiiHHIIiiII", 40, 64, 48, 1, 8, 1, len(rows), 0, 0, 256, 0)
    offset = 14 + len(head) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(rows), 0, 0, offset) + head + palette + rows


def tiff(tags: dict[int, tuple[int, ...]], data: bytes = b"", *, next_directory: int = 0) -> bytes:
    """A little-endian TIFF with one directory of LONGs. Tags with several values keep them behind it, before `data`."""
    start = 8 + 2 + 12 * len(tags) + 4
    entries, values = b"", b""
    for tag, value in sorted(tags.items()):
        packed = struct.pack(f"<{len(value)}I", *value)
        entries += struct.pack("<HHI", tag, LONG, len(value))
        entries += packed if len(value) == 1 else struct.pack("<I", start + len(values))
        values += b"" if len(value) == 1 else packed
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", next_directory) + values + data


def tiled_tiff(width: int, height: int, tile_width: int, tile_height: int, data: bytes, compression: int = 1) -> bytes:
    """An RGB TIFF in tiles, which are equal parts of `data`."""
    count = -(-width // tile_width) * -(-height // tile_height)
    size = len(data) // count
    tags = {256: (width,), 257: (height,), 258: (8, 8, 8), 259: (compression,), 262: (2,), 277: (3,)}
    tags |= {322: (tile_width,), 323: (tile_height,), 324: (0,) * count, 325: (size,) * count}
    at = len(tiff(tags))
    tags[324] = tuple(at + size * number for number in range(count))
    return tiff(tags, data)


def riff(chunks: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks
