"""The headers of image files: size, orientation, format and focal length, read before any pixel is decoded or allocated.

The signature alone decides the format: JPEG, PNG, WebP, GIF, BMP or TIFF (not BigTIFF). This module parses headers by itself,
because Pillow's `open` allocates the canvas of a WebP, refuses or warns of large images by a global (`Image.MAX_IMAGE_PIXELS`),
warns of malformed metadata on stderr, and does not distinguish a truncated file from one that is not an image. A JPEG takes 3 us.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from da2ray.errors import Reason, SampleError
from da2ray.images.exif import (
    PREFIX,
    first_directory,
    read_focal_length,
    read_orientation,
    read_tiff_orientation,
)


class Format(StrEnum):
    JPEG = "jpeg"
    PNG = "png"
    WEBP = "webp"
    GIF = "gif"
    BMP = "bmp"
    TIFF = "tiff"


@dataclass(frozen=True, slots=True)
class Header:
    """The header of an image file: `width` and `height` as displayed, and `orientation`, the EXIF value 1 to 8."""

    width: int
    height: int
    orientation: int
    format: Format
    components: int
    """Colour components of a JPEG's pixel (1, 3 or 4); 0 for other formats."""


def read_header(data: bytes) -> Header:
    """Read size, orientation and format without decoding. A malformed EXIF block counts as orientation 1.

    Raises:
        SampleError: `empty` if there are no bytes, `not_an_image` if the signature is unknown, `truncated` if the data end
            before the size, `corrupt` if the header makes no sense.
    """
    if not data:
        raise SampleError(Reason.EMPTY, "the file is empty")
    signature = _SIGNATURE.match(data)
    if signature is None:
        raise SampleError(Reason.NOT_AN_IMAGE, f"not a JPEG, PNG, WebP, GIF, BMP or TIFF: it begins with {data[:8]!r}")
    kind = Format(str(signature.lastgroup))
    try:
        width, height, orientation, components = _PARSERS[kind](data)
    except (struct.error, IndexError):
        raise SampleError(Reason.TRUNCATED, f"{kind} ends within its header, at byte {len(data)}") from None
    if not (0 < width <= _LONGEST and 0 < height <= _LONGEST):
        raise SampleError(Reason.CORRUPT, f"the {kind} header says {width} x {height} pixels")
    if orientation >= 5:
        width, height = height, width
    return Header(width, height, orientation, kind, components)


def read_focal(data: bytes, header: Header) -> float | None:
    """The focal length from an image's EXIF, in pixels of the image at full size.

    Returns None if EXIF has no focal length, is malformed, or has an absurd value. Pixels are assumed to be square, so the focal
    length is the same along both sides and in every orientation. EXIF describes the camera's picture, so the value is wrong
    for an image that was cropped later.

    From FocalLengthIn35mmFilm f, the result is f * diagonal / 43.27, the diagonal of 36 x 24 mm film. Without that tag, it comes
    from FocalLength in mm and the width of the sensor, which is PixelXDimension over FocalPlaneXResolution. That is also right
    if a program made the image smaller and left its EXIF alone.
    """
    blocks = _EXIF[header.format](data)
    size = (header.height, header.width) if header.orientation >= 5 else (header.width, header.height)
    # A block that is longer than a segment of a JPEG goes on in the next one.
    return read_focal_length([b"".join(blocks), *blocks[1:]], *size)


_LONGEST = 2**31 - 1
# Longest side that PNG allows and the index can hold.

_Parsed: TypeAlias = tuple[int, int, int, int]
# Width and height as stored, orientation, and a JPEG's components.


_SIGNATURE = re.compile(
    rb"(?P<jpeg>\xff\xd8\xff)"
    rb"|(?P<png>\x89PNG\r\n\x1a\n)"
    rb"|(?P<webp>RIFF.{4}WEBP)"
    rb"|(?P<gif>GIF8[79]a)"
    rb"|(?P<tiff>II\*\0|MM\0\*)"
    # Many texts begin with BM. A BMP is recognised by the size of its second header, which has few values.
    rb"|(?P<bmp>BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0)",
    re.DOTALL,
)


def _parse_jpeg(data: bytes) -> _Parsed:
    frame = None
    for marker, start, end in _jpeg_header(data):
        if marker in JPEG_FRAMES and frame is None:
            height, width, components = struct.unpack_from(">HHB", data, start + 1)
            if end - start != 6 + 3 * components:
                raise SampleError(
                    Reason.CORRUPT, f"jpeg: a frame header of {end - start} bytes for {components} components"
                )
            frame = width, height, components
    if frame is None:
        if JPEG_MARKER.search(data, 2) is None or data.find(b"\xff\xda", 2) < 0:
            raise IndexError  # the data end before a frame header
        raise SampleError(Reason.CORRUPT, "jpeg: no frame header before the first scan")
    return frame[0], frame[1], read_orientation(_jpeg_exif(data)), frame[2]


def _jpeg_header(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The segments of a JPEG before its first scan. A file that ends before the scan has those before its end."""
    try:
        for segment in jpeg_segments(data):
            if segment[0] == JPEG_SCAN:
                return
            yield segment
    except (struct.error, IndexError):
        return


def _jpeg_exif(data: bytes) -> list[bytes]:
    """The EXIF blocks of a JPEG without their prefix. They may lie anywhere before the first scan."""
    return [
        data[start + 6 : end]
        for marker, start, end in _jpeg_header(data)
        if marker == 0xE1 and data[start : start + 6] == PREFIX
    ]


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The segments of a JPEG up to the end of the image, as (marker, start, end).

    `start` lies behind the segment's length, and `end` may lie behind the data. The coded pixels of a scan are skipped, and so
    are stray bytes between segments, as libjpeg does.

    Raises:
        SampleError: `corrupt`: a second image begins.
        struct.error, IndexError: the data end before the image does.
    """
    at = 2
    while True:
        found = _JPEG_ANY_MARKER.search(data, at)
        if found is None:
            raise IndexError
        at = found.end()
        marker = data[at - 1]
        if marker in _JPEG_STANDALONE:
            continue
        if marker == 0xD9:
            return
        (length,) = struct.unpack_from(">H", data, at)
        if marker == 0xD8:
            raise SampleError(Reason.CORRUPT, f"jpeg: a second image begins at byte {at - 2}")
        length = max(length, 2)  # as libjpeg does
        yield marker, at + 2, at + length
        at += length
        if marker == JPEG_SCAN:
            at = jpeg_scan_end(data, at)
            if at == len(data):
                return


def jpeg_scan_end(data: bytes, at: int) -> int:
    """Where the coded pixels that begin at byte `at` end."""
    found = JPEG_MARKER.search(data, at)
    return found.start() if found else len(data)


JPEG_SCAN = 0xDA
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# SOF0 to SOF15, without the three markers for Huffman tables, an extension and arithmetic conditioning.
_JPEG_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})
# TEM and RST0 to RST7, which have no length.
_JPEG_ANY_MARKER = re.compile(rb"\xff+[^\0\xff]")
JPEG_MARKER = re.compile(rb"\xff[^\0\x01\xd0-\xd7\xff]")
# The next marker behind coded pixels. Among coded pixels, 0xff stands only before 0, a restart or a fill byte.


def _parse_png(data: bytes) -> _Parsed:
    width, height, checksum = struct.unpack_from(">II5xI", data, 16)
    if data[8:16] != b"\0\0\0\x0dIHDR" or zlib.crc32(data[12:29]) != checksum:
        raise SampleError(Reason.CORRUPT, "png: the header is damaged")
    # cv2 has a reader of its own for an animation, which ignores EXIF.
    animated = any(name == b"acTL" for name, _, _ in png_chunks(data))
    return width, height, 1 if animated else read_orientation(_png_exif(data)[:1]), 0


def _png_exif(data: bytes) -> list[bytes]:
    """The eXIf chunks of a PNG that libpng accepts: whole, and with a right beginning."""
    found = []
    for name, start, end in png_chunks(data):
        if name == b"IEND":
            break
        if name == b"eXIf" and data[start : start + 4] in {b"II*\0", b"MM\0*"}:
            (checksum,) = struct.unpack_from(">I", data, end)
            if zlib.crc32(data[start - 4 : end]) == checksum:
                found.append(data[start:end])
    return found


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The complete chunks of a PNG, as (name, start, end)."""
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            return
        yield data[at + 4 : at + 8], at + 8, end
        at = end + 4


def _parse_webp(data: bytes) -> _Parsed:
    width = height = 0
    for name, start, _ in _webp_chunks(data):
        # The first size counts, as in libwebp, which ignores a second one or allocates memory for it before it objects.
        if name == b"VP8X":
            low_width, high_width, low_height, high_height = struct.unpack_from("<HBHB", data, start + 4)
            width, height = 1 + (high_width << 16 | low_width), 1 + (high_height << 16 | low_height)
        elif name == b"VP8 ":
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, start + 6))
        elif name == b"VP8L":
            (bits,) = struct.unpack_from("<I", data, start + 1)
            width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        if width:
            break
    if not width:
        raise IndexError  # the data end before a chunk with a size
    return width, height, read_orientation(_webp_exif(data)[:1]), 0


def _webp_exif(data: bytes) -> list[bytes]:
    """The EXIF chunks of a WebP whose flag says that it has EXIF."""
    if data[12:16] != b"VP8X" or not data[20:21] or not data[20] & 8:
        return []
    return [data[start:end] for name, start, end in _webp_chunks(data) if name == b"EXIF"]


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The chunks of a WebP, as (name, start, end). The last one may end behind the data."""
    at, stop = 12, min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    while at + 8 <= stop:
        (length,) = struct.unpack_from("<I", data, at + 4)
        yield data[at : at + 4], at + 8, at + 8 + length
        at += 8 + length + (length & 1)


def _parse_gif(data: bytes) -> _Parsed:
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height, 1, 0


def _parse_bmp(data: bytes) -> _Parsed:
    if data[14] == 12:
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
    return width, abs(height), 1, 0  # a negative height means that rows start at the top


def _parse_tiff(data: bytes) -> _Parsed:
    tags = first_directory(data)
    if not tags:
        raise IndexError  # the data end before the directory
    return int(tags.get(256, 0)), int(tags.get(257, 0)), read_tiff_orientation(data), 0


_PARSERS = {
    Format.JPEG: _parse_jpeg,
    Format.PNG: _parse_png,
    Format.WEBP: _parse_webp,
    Format.GIF: _parse_gif,
    Format.BMP: _parse_bmp,
    Format.TIFF: _parse_tiff,
}
_EXIF: dict[Format, Callable[[bytes], list[bytes]]] = {
    Format.JPEG: _jpeg_exif,
    Format.PNG: _png_exif,
    Format.WEBP: _webp_exif,
    Format.TIFF: lambda data: [data],  # the whole file is such a structure
    Format.GIF: lambda _: [],
    Format.BMP: lambda _: [],
}
