"""The headers of image files: size, orientation, format and focal length, read before any pixel is decoded or allocated.

The signature alone decides the format: JPEG, PNG, WebP, GIF, BMP or TIFF (not BigTIFF). This module parses headers by itself,
because Pillow's `open` allocates the canvas of a WebP, refuses or warns of large images by a global (`Image.MAX_IMAGE_PIXELS`),
warns of malformed metadata on stderr, and does not distinguish a truncated file from one that is not an image. A JPEG takes 3 us.
"""

import math
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from da2ray.errors import Reason, SampleError


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
    try:
        tags = _exif_directory(_EXIF[header.format](data))
    except (SampleError, struct.error, IndexError, KeyError):
        return None
    diagonal = math.hypot(header.width, header.height)
    film, length = tags.get(_FOCAL_IN_FILM, 0), tags.get(_FOCAL, 0)
    if film > 0:
        focal = film * diagonal / _FILM_DIAGONAL
    else:
        stored = header.height if header.orientation >= 5 else header.width
        # Pixels in a millimetre of the sensor, which is `taken` pixels wide.
        density = tags.get(_PLANE_RESOLUTION, 0) / _UNIT_MM.get(int(tags.get(_PLANE_UNIT, 2)), math.inf)
        taken = tags.get(_PIXELS_ACROSS, stored)
        focal = length * density * stored / taken if taken > 0 else 0
    return focal if _SHORTEST_FOCAL * diagonal <= focal <= _LONGEST_FOCAL * diagonal else None


_FILM_DIAGONAL = math.hypot(36, 24)
# In mm: 43.27.
_SHORTEST_FOCAL, _LONGEST_FOCAL = 0.05, 50
# Shares of the diagonal: lenses of 2.2 mm to 2.2 m in front of film. Values beyond that are not measurements.
_EXIF_POINTER = 0x8769
_FOCAL, _PIXELS_ACROSS, _PLANE_RESOLUTION, _PLANE_UNIT, _FOCAL_IN_FILM = 0x920A, 0xA002, 0xA20E, 0xA210, 0xA405
_UNIT_MM = {2: 25.4, 3: 10.0}
# FocalPlaneResolutionUnit in mm: inch, which is the default, and centimetre.


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
    orientation = 1
    for marker, start, end in jpeg_segments(data):
        if marker in JPEG_FRAMES:
            height, width, components = struct.unpack_from(">HHB", data, start + 1)
            return width, height, orientation, components
        if marker == JPEG_SCAN:
            break
        if _is_exif(data, marker, start):
            orientation = _exif_orientation(data[start:end])
    raise SampleError(Reason.CORRUPT, "jpeg: no frame header before the first scan")


def _is_exif(data: bytes, marker: int, start: int) -> bool:
    return marker == 0xE1 and data[start : start + 6] == _EXIF_PREFIX


def _jpeg_exif(data: bytes) -> bytes:
    """The EXIF block of a JPEG. If there are several, it is the last one before the frame header, as for the orientation."""
    found = b""
    for marker, start, end in jpeg_segments(data):
        if marker in JPEG_FRAMES or marker == JPEG_SCAN:
            break
        if _is_exif(data, marker, start):
            found = data[start:end]
    return found


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The segments of a JPEG up to the end of the image, as (marker, start, end).

    `start` lies behind the segment's length, and `end` may lie behind the data. The coded pixels of a scan are skipped.

    Raises:
        SampleError: `corrupt`: a marker is missing.
        struct.error, IndexError: the data end before the image does.
    """
    at = 2
    while True:
        while data[at] == 0xFF and data[at + 1] == 0xFF:  # fill bytes
            at += 1
        if data[at] != 0xFF:
            raise SampleError(Reason.CORRUPT, f"jpeg: no marker at byte {at}")
        marker = data[at + 1]
        if marker in _JPEG_STANDALONE:
            at += 2
            continue
        if marker == 0xD9:
            return
        (length,) = struct.unpack_from(">H", data, at + 2)
        yield marker, at + 4, at + 2 + length
        at += 2 + length
        if marker == JPEG_SCAN:
            found = _JPEG_MARKER.search(data, at)
            at = found.start() if found else len(data)


JPEG_SCAN = 0xDA
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# SOF0 to SOF15, without the three markers for Huffman tables, an extension and arithmetic conditioning.
_JPEG_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
# TEM, RST0 to RST7 and SOI, which have no length.
_JPEG_MARKER = re.compile(rb"\xff[^\0\x01\xd0-\xd7\xff]")
# The next marker behind coded pixels. Among coded pixels, 0xff stands only before 0, a restart or a fill byte.


def _parse_png(data: bytes) -> _Parsed:
    width, height = struct.unpack_from(">II", data, 16)
    return width, height, _exif_orientation(_png_exif(data)), 0


def _png_exif(data: bytes) -> bytes:
    return next((data[start:end] for name, start, end in png_chunks(data) if name == b"eXIf"), b"")


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
    orientation, at = 1, 12
    while at + 8 <= len(data):
        name, (length,) = data[at : at + 4], struct.unpack_from("<I", data, at + 4)
        # The first size counts, as in libwebp, which ignores a second one or allocates memory for it before it objects.
        if name == b"VP8X" and not width:
            low_width, high_width, low_height, high_height = struct.unpack_from("<HBHB", data, at + 12)
            width, height = 1 + (high_width << 16 | low_width), 1 + (high_height << 16 | low_height)
        elif name == b"VP8 " and not width:
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, at + 14))
        elif name == b"VP8L" and not width:
            (bits,) = struct.unpack_from("<I", data, at + 9)
            width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        elif name == b"EXIF":
            orientation = _exif_orientation(data[at + 8 : at + 8 + length])
        at += 8 + length + (length & 1)
    if not width:
        raise IndexError  # the data end before a chunk with a size
    return width, height, orientation, 0


def _webp_exif(data: bytes) -> bytes:
    """The EXIF chunk of a WebP. If there are several, it is the last one, as for the orientation."""
    at, found = 12, b""
    while at + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        if data[at : at + 4] == b"EXIF":
            found = data[at + 8 : at + 8 + length]
        at += 8 + length + (length & 1)
    return found


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
    tags = _first_directory(data)
    orientation = tags.get(_ORIENTATION, 1)
    return tags.get(256, 0), tags.get(257, 0), orientation if 1 <= orientation <= 8 else 1, 0


_ORIENTATION = 0x112


def _exif_orientation(exif: bytes) -> int:
    """The orientation in an EXIF block, 1 to 8.

    It is 1 if EXIF is absent or malformed, because an unturned picture is better than none.
    """
    try:
        orientation = _first_directory(exif.removeprefix(_EXIF_PREFIX)).get(_ORIENTATION, 1)
    except (struct.error, IndexError):
        return 1
    return orientation if 1 <= orientation <= 8 else 1


_EXIF_PREFIX = b"Exif\0\0"
# The prefix of the block in a JPEG. Some writers of PNG and WebP keep it.


def _exif_directory(exif: bytes) -> dict[int, float]:
    """The tags of EXIF's directory for the camera: numbers, and fractions whose denominator is not 0.

    Raises:
        struct.error: the directory is cut short.
        KeyError: there is no such directory.
    """
    tiff = exif.removeprefix(_EXIF_PREFIX)
    order, (at,) = _byte_order(tiff), (_first_directory(tiff)[_EXIF_POINTER],)
    tags: dict[int, float] = dict(_directory(tiff, at))
    (count,) = struct.unpack_from(order + "H", tiff, at)
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind, number, where = struct.unpack_from(order + "HHII", tiff, entry)
        if number == 1 and kind == _RATIONAL:
            numerator, denominator = struct.unpack_from(order + "II", tiff, where)
            if denominator:
                tags[tag] = numerator / denominator
    return tags


def _first_directory(tiff: bytes) -> dict[int, int]:
    """The tags of a TIFF structure's first directory that are a single BYTE, SHORT or LONG.

    Raises:
        struct.error: the directory is cut short.
    """
    (at,) = struct.unpack_from(_byte_order(tiff) + "I", tiff, 4)
    return _directory(tiff, at)


def _byte_order(tiff: bytes) -> str:
    return {b"II": "<", b"MM": ">"}.get(tiff[:2], "<")


def _directory(tiff: bytes, at: int) -> dict[int, int]:
    """The tags of the directory at byte `at`; see `_first_directory`."""
    order = _byte_order(tiff)
    (count,) = struct.unpack_from(order + "H", tiff, at)
    tags = {}
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind, number = struct.unpack_from(order + "HHI", tiff, entry)
        if number == 1 and kind in _INTEGERS:
            (tags[tag],) = struct.unpack_from(order + _INTEGERS[kind], tiff, entry + 8)
    return tags


_INTEGERS = {1: "B", 3: "H", 4: "I"}
_RATIONAL = 5
_PARSERS = {
    Format.JPEG: _parse_jpeg,
    Format.PNG: _parse_png,
    Format.WEBP: _parse_webp,
    Format.GIF: _parse_gif,
    Format.BMP: _parse_bmp,
    Format.TIFF: _parse_tiff,
}
_EXIF: dict[Format, Callable[[bytes], bytes]] = {
    Format.JPEG: _jpeg_exif,
    Format.PNG: _png_exif,
    Format.WEBP: _webp_exif,
    Format.TIFF: bytes,  # the whole file is such a structure
    Format.GIF: lambda _: b"",
    Format.BMP: lambda _: b"",
}
