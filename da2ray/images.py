"""Bytes of an image file -> pixels: header, limits, decoding, orientation, and the closed set of errors.

In three steps, so that a caller knows the size of an image that a later step refuses:

    header = read_header(data)                      # no pixel is touched
    size = admit(header, size_rule, limits)         # a decompression bomb ends here
    pixels = decode_pixels(data, header, size, mode)

`decode` does all three. Whatever the bytes, each raises `SampleError` or `MemoryError`, nothing else.

Pixels are what `cv2.imread(IMREAD_COLOR)`, the official reader, gives, in RGB: EXIF orientation applied, alpha dropped (not
composited), 16 bits cut to the upper 8 (where cv2 rounds, in a TIFF in colour, it is one level off), grey repeated three times, the first frame of an animation.
Formats are told by signature alone: JPEG, PNG, WebP, GIF, BMP, TIFF (not BigTIFF). No other decoder is ever reached.
JPEG goes through libjpeg-turbo (simplejpeg), the rest through Pillow. Headers are parsed here, for Pillow's `open` allocates
a WebP's canvas, and refuses or warns of large images by a global (`Image.MAX_IMAGE_PIXELS`) that is not ours to set.
"""

import io
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import BmpImagePlugin, GifImagePlugin, ImageFile, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from da2ray.labels.schema import Reason, SampleError
from da2ray.teachers.base import SizeRule

Pixels: TypeAlias = NDArray[np.uint8]
Buffer: TypeAlias = bytes | bytearray | memoryview


class DecodeMode(StrEnum):
    """EXACT: every pixel of the file, as Pillow and cv2 decode it. SCALED: a JPEG at the smallest scale libjpeg offers that
    is not below the network's size in either side; other formats as EXACT.
    """

    EXACT = "exact"
    SCALED = "scaled"


class Format(StrEnum):
    JPEG = "jpeg"
    PNG = "png"
    WEBP = "webp"
    GIF = "gif"
    BMP = "bmp"
    TIFF = "tiff"


@dataclass(frozen=True, slots=True)
class Limits:
    """What is labelled at all; anything else becomes a `rejected` row.

    Attributes:
        min_side: least short side in pixels. Below 32 the network would see an enlargement by more than 16.
        max_aspect: most long side over short side.
        max_tokens: most 14 x 14 patches of the network's size: memory grows with it, attention with its square. The
            default, 96 x 96, is five times a 4:3 photograph and, at short side 518, reached at an aspect of 6.7.
        max_pixels: most pixels at full size, which bounds the memory of decoding (3 bytes each, 6 while it is turned).
    """

    min_side: int = 32
    max_aspect: float = 8.0
    max_tokens: int = 96 * 96
    max_pixels: int = 200_000_000


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of its image: `width` and `height` as displayed, `orientation` the EXIF value, 1 to 8."""

    width: int
    height: int
    orientation: int
    format: Format
    components: int
    """Colour components a pixel of a JPEG (1, 3 or 4); 0 for other formats."""


@dataclass(frozen=True, slots=True)
class Image:
    """A decoded image.

    Attributes:
        pixels: uint8 (H, W, 3), C-contiguous RGB as displayed; smaller than `height` x `width` where decoded SCALED.
        width, height: as displayed, at full size.
        orientation: the EXIF value that was applied, 1 to 8.
        size: the network's (height, width).
    """

    pixels: Pixels
    width: int
    height: int
    orientation: int
    size: tuple[int, int]


def decode(data: Buffer, *, size_rule: SizeRule, limits: Limits, mode: DecodeMode) -> Image:
    """Decode an image file.

    Raises:
        SampleError: as `read_header`, `admit` and `decode_pixels`.
    """
    header = read_header(data)
    size = admit(header, size_rule, limits)
    pixels = decode_pixels(data, header, size, mode)
    return Image(pixels, header.width, header.height, header.orientation, size)


def read_header(data: Buffer) -> Header:
    """Size, orientation and format, without decoding. A malformed EXIF block counts as orientation 1.

    Raises:
        SampleError: `empty` without a byte, `not_an_image` without a signature of ours, `truncated` where the data end
            before the size is known, `corrupt` where the header makes no sense.
    """
    view = memoryview(data).cast("B")
    if not len(view):
        raise SampleError(Reason.EMPTY, "the file is empty")
    kind = _sniff(bytes(view[:32]))
    if kind is None:
        raise SampleError(Reason.NOT_AN_IMAGE, f"no JPEG, PNG, WebP, GIF, BMP or TIFF: it begins {bytes(view[:8])!r}")
    try:
        width, height, orientation, components = _PARSERS[kind](view)
    except (struct.error, IndexError):
        raise SampleError(Reason.TRUNCATED, f"{kind} ends within its header, at byte {len(view)}") from None
    if width <= 0 or height <= 0:
        raise SampleError(Reason.CORRUPT, f"{kind} header says {width} x {height} pixels")
    if orientation >= 5:
        width, height = height, width
    return Header(width, height, orientation, kind, components)


def admit(header: Header, size_rule: SizeRule, limits: Limits) -> tuple[int, int]:
    """The network's (height, width) for an image that the limits let pass.

    Raises:
        SampleError: `too_many_pixels`, `too_small`, `aspect` or `too_many_tokens`.
    """
    width, height = header.width, header.height
    short, long = sorted((width, height))
    said = f"{width} x {height}"
    if width * height > limits.max_pixels:
        raise SampleError(Reason.TOO_MANY_PIXELS, f"{said} is more than {limits.max_pixels} pixels")
    if short < limits.min_side:
        raise SampleError(Reason.TOO_SMALL, f"{said}: the short side is below {limits.min_side}")
    if long > limits.max_aspect * short:
        raise SampleError(Reason.ASPECT, f"{said}: the aspect is above {limits.max_aspect:g}")
    rows, columns = size_rule(height, width)
    tokens = rows * columns // _PATCH**2
    if tokens > limits.max_tokens:
        raise SampleError(
            Reason.TOO_MANY_TOKENS, f"{said}: {tokens} tokens at {columns} x {rows}, above {limits.max_tokens}"
        )
    return rows, columns


def decode_pixels(data: Buffer, header: Header, size: tuple[int, int], mode: DecodeMode) -> Pixels:
    """The pixels of `data`, whose header is `header`: uint8 (H, W, 3), C-contiguous RGB as displayed.

    Args:
        data, header: the file and what `read_header` said of it.
        size: the network's (height, width), the least that SCALED returns where the image has as much.
        mode: EXACT or SCALED.

    Raises:
        SampleError: `truncated` where pixels are missing, `corrupt` where the data cannot be decoded. Never returns pixels
            that a decoder made up for missing data.
    """
    try:
        if header.format is Format.JPEG:
            pixels = _decode_jpeg(data, header, size, mode)
        else:
            pixels = _decode_pillow(memoryview(data).cast("B"), header)
    except (SampleError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise what they like; one image must not end a job
        text = f"{type(error).__name__}: {error}"
        reason = Reason.TRUNCATED if _CUT_OFF.search(text) else Reason.CORRUPT
        raise SampleError(reason, f"{header.format}: {text}") from error
    return pixels


_PATCH = 14
# Side of a ViT patch of DINOv2, whose tokens `Limits.max_tokens` counts.

_CUT_OFF = re.compile("truncated|premature end|EOFError|not enough image data|unexpected end", re.IGNORECASE)
# How libjpeg-turbo and Pillow say that data are missing.


# ------------------------------------------------------------------------------------------------------- headers

_Parsed: TypeAlias = tuple[int, int, int, int]
# Width and height as stored, orientation, JPEG components.


def _sniff(head: bytes) -> Format | None:
    if head.startswith(b"\xff\xd8\xff"):
        return Format.JPEG
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return Format.PNG
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return Format.WEBP
    if head.startswith((b"GIF87a", b"GIF89a")):
        return Format.GIF
    if head.startswith((b"II*\0", b"MM\0*")):
        return Format.TIFF
    # Two letters begin many a text: the size of the second header, one of few, tells a BMP.
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in {12, 16, 40, 52, 56, 64, 108, 124}:
        return Format.BMP
    return None


def _parse_jpeg(data: memoryview) -> _Parsed:
    orientation, at = 1, 2
    while True:
        while data[at] == 0xFF and data[at + 1] == 0xFF:  # fill bytes
            at += 1
        if data[at] != 0xFF:
            raise SampleError(Reason.CORRUPT, f"jpeg: no marker at byte {at}")
        marker = data[at + 1]
        if marker in _JPEG_STANDALONE:
            at += 2
            continue
        if marker in {0xD9, 0xDA}:  # end of image, start of scan
            raise SampleError(Reason.CORRUPT, "jpeg: no frame header before the first scan")
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker in _JPEG_FRAMES:
            height, width, components = struct.unpack_from(">HHB", data, at + 5)
            return width, height, orientation, components
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            orientation = _exif_orientation(data[at + 10 : at + 2 + length])
        at += 2 + length


_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# SOF0 to SOF15; the three between are Huffman tables, an extension, arithmetic conditioning.
_JPEG_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
# TEM, RST0 to RST7 and SOI have no length.


def _parse_png(data: memoryview) -> _Parsed:
    width, height = struct.unpack_from(">II", data, 16)
    exif = next((data[start:end] for name, start, end in _png_chunks(data) if name == b"eXIf"), data[:0])
    return width, height, _exif_orientation(exif), 0


def _png_chunks(data: memoryview) -> Iterator[tuple[bytes, int, int]]:
    """(name, start, end) of the chunks that are wholly there."""
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            return
        yield bytes(data[at + 4 : at + 8]), at + 8, end
        at = end + 4


def _parse_webp(data: memoryview) -> _Parsed:
    width = height = 0
    orientation, at = 1, 12
    while at + 8 <= len(data):
        name, (length,) = bytes(data[at : at + 4]), struct.unpack_from("<I", data, at + 4)
        body = data[at + 8 : at + 8 + length]
        if name == b"VP8X":
            width = 1 + int.from_bytes(_exactly(body[4:7], 3), "little")
            height = 1 + int.from_bytes(_exactly(body[7:10], 3), "little")
        elif name == b"VP8 " and not width:
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", body, 6))
        elif name == b"VP8L" and not width:
            (bits,) = struct.unpack_from("<I", body, 1)
            width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        elif name == b"EXIF":
            orientation = _exif_orientation(body)
        at += 8 + length + (length & 1)
    if not width:
        _exactly(data[at:], 8)
    return width, height, orientation, 0


def _exactly(data: memoryview, count: int) -> memoryview:
    if len(data) < count:
        raise IndexError
    return data


def _parse_gif(data: memoryview) -> _Parsed:
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height, 1, 0


def _parse_bmp(data: memoryview) -> _Parsed:
    if data[14] == 12:
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
    return width, abs(height), 1, 0  # a negative height: rows from the top


def _parse_tiff(data: memoryview) -> _Parsed:
    tags = _first_directory(data)
    orientation = tags.get(_ORIENTATION, 1)
    return tags.get(256, 0), tags.get(257, 0), orientation if 1 <= orientation <= 8 else 1, 0


_ORIENTATION = 0x112


def _exif_orientation(exif: memoryview) -> int:
    """1 to 8; 1 where EXIF is absent or malformed, for a picture shown unturned is worth more than none."""
    if exif[:6] == b"Exif\0\0":  # some writers of PNG and WebP leave the JPEG prefix in
        exif = exif[6:]
    try:
        orientation = _first_directory(exif).get(_ORIENTATION, 1)
    except (struct.error, IndexError):
        return 1
    return orientation if 1 <= orientation <= 8 else 1


def _first_directory(tiff: memoryview) -> dict[int, int]:
    """Tags of a TIFF structure's first directory that are a single BYTE, SHORT or LONG.

    Raises:
        struct.error: it is cut short.
    """
    order = {b"II": "<", b"MM": ">"}.get(bytes(tiff[:2]), "<")
    (at,) = struct.unpack_from(order + "I", tiff, 4)
    (count,) = struct.unpack_from(order + "H", tiff, at)
    tags = {}
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind, number = struct.unpack_from(order + "HHI", tiff, entry)
        if number == 1 and kind in _INTEGERS:
            (tags[tag],) = struct.unpack_from(order + _INTEGERS[kind], tiff, entry + 8)
    return tags


_INTEGERS = {1: "B", 3: "H", 4: "I"}
_PARSERS = {
    Format.JPEG: _parse_jpeg,
    Format.PNG: _parse_png,
    Format.WEBP: _parse_webp,
    Format.GIF: _parse_gif,
    Format.BMP: _parse_bmp,
    Format.TIFF: _parse_tiff,
}


# -------------------------------------------------------------------------------------------------------- pixels


def _decode_jpeg(data: Buffer, header: Header, size: tuple[int, int], mode: DecodeMode) -> Pixels:
    height, width = 0, 0  # no lower bound: full size
    if mode is DecodeMode.SCALED:
        height, width = size[::-1] if header.orientation >= 5 else size
    options = {
        "colorspace": "CMYK" if header.components == 4 else "RGB",
        "fastdct": False,  # the slower two are what Pillow and cv2 use: equal bit for bit
        "fastupsample": False,
        "min_height": height,
        "min_width": width,
    }
    try:
        pixels = simplejpeg.decode_jpeg(data, strict=True, **options)
    except ValueError as error:
        # The one warning after which every pixel is known to be there: libjpeg reports the first, and at the end of the
        # image (0xd9) entropy decoding is over. Web crawls are full of them.
        if not str(error).endswith("extraneous bytes before marker 0xd9"):
            raise
        pixels = simplejpeg.decode_jpeg(data, strict=False, **options)
    if header.components == 4:
        pixels = _cmyk_to_rgb(pixels)
    return _turn(pixels, header.orientation)


def _cmyk_to_rgb(inverted: Pixels) -> Pixels:
    """(H, W, 4) as Adobe stores it, 255 = no ink, -> (H, W, 3): c * k / 255, as cv2 and Pillow do, rounded."""
    black = inverted[..., 3:].astype(np.uint16)
    product = inverted[..., :3] * black + 127
    return (product // 255).astype(np.uint8)


def _decode_pillow(data: memoryview, header: Header) -> Pixels:
    _check_complete(data, header.format)
    with _PILLOW, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = _PLUGINS[header.format](io.BytesIO(data))
        turned = header.format is Format.TIFF  # the one format whose orientation Pillow applies by itself
        size = (header.width, header.height)
        if image.size != (size if turned or header.orientation < 5 else size[::-1]):
            # Pillow would allocate for a size that `admit` has not seen.
            raise SampleError(Reason.CORRUPT, f"{header.format}: header says {size}, image data {image.size}")
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            _check_strips(image, len(data))
        image.load()
        if image.mode.startswith("I;16"):
            pixels = np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        elif image.mode in {"I", "F"}:
            raise SampleError(Reason.CORRUPT, f"{header.format}: pixels are neither 8 nor 16 bits")
        else:
            straight = image.convert(_STRAIGHT_ALPHA[image.mode]) if image.mode in _STRAIGHT_ALPHA else image
            pixels = np.array(straight.convert("RGB"))
    return pixels if turned else _turn(pixels, header.orientation)


def _check_complete(data: memoryview, kind: Format) -> None:
    """Pillow's own check is off where a process sets ImageFile.LOAD_TRUNCATED_IMAGES; these two tell their end."""
    if kind is Format.PNG and not any(name == b"IEND" for name, _, _ in _png_chunks(data)):
        raise SampleError(Reason.TRUNCATED, f"png ends at byte {len(data)}, before its last chunk")
    if kind is Format.WEBP and int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise SampleError(Reason.TRUNCATED, f"webp ends at byte {len(data)}, before the length it says")


def _check_strips(image: TiffImagePlugin.TiffImageFile, length: int) -> None:
    """Strips (tags 273, 279) or tiles (324, 325) must end within the file: codecs inside a TIFF may fill in what lacks."""
    for offsets, counts in ((273, 279), (324, 325)):
        ends = zip(image.tag_v2.get(offsets, ()), image.tag_v2.get(counts, ()), strict=False)
        if any(offset + count > length for offset, count in ends):
            raise SampleError(Reason.TRUNCATED, f"tiff ends at byte {length}, before its pixels do")


_PILLOW = threading.Lock()
# Pillow warns (malformed metadata) where there is nothing to do. warnings.catch_warnings is process-wide state: two threads
# that leave it in the wrong order would leave warnings off for good. JPEG, the hot path, takes no lock.

_PLUGINS: dict[Format, type[ImageFile.ImageFile]] = {
    Format.PNG: PngImagePlugin.PngImageFile,
    Format.WEBP: WebPImagePlugin.WebPImageFile,
    Format.GIF: GifImagePlugin.GifImageFile,
    Format.BMP: BmpImagePlugin.BmpImageFile,
    Format.TIFF: TiffImagePlugin.TiffImageFile,
}

_STRAIGHT_ALPHA = {"RGBa": "RGBA", "La": "LA"}
# Premultiplied alpha, which Pillow converts to nothing else.


def _turn(pixels: Pixels, orientation: int) -> Pixels:
    """Stored -> displayed, C-contiguous, by the EXIF orientation: 1 upright, 3 half a turn, 6 and 8 a quarter clockwise and
    anticlockwise; 2, 4, 5 and 7 the same mirrored. cv2 works in tiles: five times as fast as numpy at 12 MP.
    """
    if orientation == 1:
        return np.ascontiguousarray(pixels)
    if orientation in {5, 7}:
        pixels = cv2.transpose(pixels)
        return pixels if orientation == 5 else cv2.flip(pixels, -1)
    if orientation in {6, 8}:
        return cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE if orientation == 6 else cv2.ROTATE_90_COUNTERCLOCKWISE)
    return cv2.flip(pixels, {2: 1, 3: -1, 4: 0}[orientation])
