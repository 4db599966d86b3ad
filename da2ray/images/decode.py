"""Bytes of an image file -> pixels: header, limits, decoding, orientation, and the closed set of errors.

In three steps, so that a caller knows the size of an image that a later step refuses:

    header = read_header(data)                      # no pixel is touched
    size = admit(header, size_rule, limits)         # a decompression bomb ends here
    pixels = decode_pixels(data, header, size, mode)

`decode` does all three. Whatever the bytes, each raises `SampleError` or `MemoryError`, nothing else.

Pixels are what the official reader, `cv2.imread(IMREAD_COLOR)`, gives, in RGB: EXIF orientation applied, alpha dropped,
16 bits cut to the upper 8, grey repeated, the first frame of an animation. Known differences, all in TIFF: cv2 rounds 16
bits in colour (one level), and darkens by alpha, which is dropped here as it is in PNG.

JPEG goes through libjpeg-turbo (simplejpeg), the rest through Pillow, by the plugin of the format: no other decoder is
ever reached. Pillow's global limit on pixels (`Image.MAX_IMAGE_PIXELS`) is left as it is: two plugins, WebP and TIFF, heed
it by themselves. Pillow's warnings are silenced; libtiff's own lines about a broken TIFF, printed from C, reach stderr.
"""

import io
import re
import struct
import threading
import warnings
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import BmpImagePlugin, GifImagePlugin, ImageFile, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
from PIL.Image import DecompressionBombError

from da2ray.errors import Reason, SampleError
from da2ray.images.headers import JPEG_FRAMES, JPEG_SCAN, Format, Header, jpeg_segments, png_chunks, read_header
from da2ray.teachers.base import SizeRule

__all__ = ["DecodeMode", "Format", "Header", "Image", "Limits", "admit", "decode", "decode_pixels", "read_header"]

Pixels: TypeAlias = NDArray[np.uint8]


class DecodeMode(StrEnum):
    """EXACT: every pixel of the file, as Pillow and cv2 decode it.

    SCALED: a JPEG at the smallest of 1, 1/2, 3/8, 1/4 and 1/8 that is not below the network's size in either side;
    other formats as EXACT.
    """

    EXACT = "exact"
    SCALED = "scaled"


@dataclass(frozen=True, slots=True)
class Limits:
    """What is labelled at all; anything else becomes a `rejected` row.

    Attributes:
        min_side: least short side in pixels. Below 32 the network would see an enlargement by more than 16.
        max_aspect: most long side over short side.
        max_tokens: most 14 x 14 patches of the network's size: memory grows with it, attention with its square. The
            default, 96 x 96, is five times a 4:3 photograph and, at short side 518, reached at an aspect of 6.7.
        max_pixels: most pixels at full size, which bounds the memory of decoding: bytes a pixel are 3 for a JPEG (6 where it
            is turned, up to 12 where it is progressive or CMYK), 6 to 14 for other formats, 18 for a WebP.
    """

    min_side: int = 32
    max_aspect: float = 8.0
    max_tokens: int = 96 * 96
    max_pixels: int = 200_000_000


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


def decode(data: bytes, *, size_rule: SizeRule, limits: Limits, mode: DecodeMode) -> Image:
    """Decode an image file.

    Raises:
        SampleError: as `read_header`, `admit` and `decode_pixels`.
    """
    header = read_header(data)
    size = admit(header, size_rule, limits)
    pixels = decode_pixels(data, header, size, mode)
    return Image(pixels, header.width, header.height, header.orientation, size)


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


def decode_pixels(data: bytes, header: Header, size: tuple[int, int], mode: DecodeMode) -> Pixels:
    """The pixels of `data`, whose header is `header`: uint8 (H, W, 3), C-contiguous RGB as displayed.

    Args:
        data: the file.
        header: what `read_header` said of it.
        size: the network's (height, width), the least that SCALED returns where the image has as much.
        mode: EXACT or SCALED.

    Raises:
        SampleError: `truncated` where pixels are missing, `corrupt` where the data cannot be decoded, `too_many_pixels`
            for a WebP or TIFF above Pillow's limit (179 million unless the process sets another). Pixels that a decoder
            makes up for missing data are never returned.
    """
    try:
        if header.format is Format.JPEG:
            return _decode_jpeg(data, header, size, mode)
        return _decode_pillow(data, header)
    except (SampleError, MemoryError):
        raise
    except DecompressionBombError as error:
        raise SampleError(Reason.TOO_MANY_PIXELS, f"{header.format}: {error}") from error
    except Exception as error:  # decoders raise what they like; one image must not end a job
        text = f"{type(error).__name__}: {error}"
        reason = Reason.TRUNCATED if _CUT_OFF.search(text) else Reason.CORRUPT
        raise SampleError(reason, f"{header.format}: {text}") from error


_PATCH = 14
# Side of a ViT patch of DINOv2, whose tokens `Limits.max_tokens` counts.

_CUT_OFF = re.compile("truncated|premature end|EOFError|not enough image data|unexpected end", re.IGNORECASE)
# How libjpeg-turbo and Pillow say that data are missing.


# -------------------------------------------------------------------------------------------------------- pixels


def _decode_jpeg(data: bytes, header: Header, size: tuple[int, int], mode: DecodeMode) -> Pixels:
    height, width = 0, 0  # no lower bound: full size
    if mode is DecodeMode.SCALED:
        height, width = size[::-1] if header.orientation >= 5 else size
    options: dict[str, object] = {
        "colorspace": "CMYK" if header.components == 4 else "RGB",
        "fastdct": False,  # as Pillow and cv2: equal bit for bit; the faster ones gain nothing measurable
        "fastupsample": False,
        "min_height": height,
        "min_width": width,
        # Scales of 7/8 to 5/8 have no vector code: they take up to twice the time of full size (17, 14, 11 ms to 8).
        "min_factor": 1 if mode is DecodeMode.EXACT else 2,
    }
    _check_scans(data, header.components)
    pixels = _decode_strictly(data, options)
    if header.components == 4:
        pixels = _cmyk_to_rgb(pixels)
    return _turn(pixels, header.orientation)


def _decode_strictly(data: bytes, options: dict[str, object]) -> Pixels:
    """Decode, and raise at a warning after which pixels may be made up. libjpeg reports the first of its warnings."""
    try:
        return simplejpeg.decode_jpeg(data, strict=True, **options)
    except ValueError as error:
        warning = str(error)
        # At the end of the image (0xd9) entropy decoding is over. Web crawls are full of these.
        if warning.endswith("extraneous bytes before marker 0xd9"):
            return simplejpeg.decode_jpeg(data, strict=False, **options)
        bare = _without_profile(data) if warning.endswith("bad ICC marker") else data
        if len(bare) == len(data):
            raise
    return _decode_strictly(bare, options)


def _without_profile(data: bytes) -> bytes:
    """A JPEG less its colour profile, whose damage is none to the pixels."""
    kept, at = [], 0
    for marker, start, end in jpeg_segments(data):
        if marker == JPEG_SCAN:
            break
        if marker == 0xE2 and data[start : start + 12] == b"ICC_PROFILE\0":
            kept.append(data[at : start - 4])
            at = end
    return b"".join([*kept, data[at:]])


def _check_scans(data: bytes, components: int) -> None:
    """Each scan is a pass over all blocks, in as little as 10 bytes: 300 kB of them would take minutes.

    Raises:
        SampleError: `corrupt` with too many scans, or with stray bytes between segments, which libjpeg would warn of.
    """
    scans, progressive = 0, False
    try:
        for marker, start, _ in jpeg_segments(data):
            if marker in JPEG_FRAMES:
                progressive = marker in {0xC2, 0xCA}
            elif marker == JPEG_SCAN:
                scans += 1
                if scans > _MOST_SCANS or (not progressive and data[start] == components):
                    break  # of a sequential JPEG, a scan with all components is the only one that libjpeg reads
    except (struct.error, IndexError):
        pass  # cut off, perhaps only behind its pixels: the decoder will say
    if scans > _MOST_SCANS:
        raise SampleError(Reason.CORRUPT, f"jpeg: more than {_MOST_SCANS} scans")


_MOST_SCANS = 100
# Encoders make some 10; libtiff draws the line here too.


def _cmyk_to_rgb(inverted: Pixels) -> Pixels:
    """(H, W, 4) as Adobe stores it, 255 = no ink, -> (H, W, 3): c * k / 255, as cv2 and Pillow do, rounded."""
    rgb = np.empty((*inverted.shape[:2], 3), dtype=np.uint8)
    for top in range(0, len(inverted), _ROWS):
        part = inverted[top : top + _ROWS]
        product = part[..., :3] * part[..., 3:].astype(np.uint16)
        product += 127
        product //= 255
        rgb[top : top + _ROWS] = product
    return rgb


_ROWS = 64
# At a time: of a whole image the products take 21 bytes a pixel.


def _decode_pillow(data: bytes, header: Header) -> Pixels:
    if header.format is Format.PNG:
        data = _critical_chunks(data)
    if header.format is Format.WEBP and int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise SampleError(Reason.TRUNCATED, f"webp ends at byte {len(data)}, before the length it says")
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
            pixels: Pixels = np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        elif image.mode in {"I", "F"}:
            raise SampleError(Reason.CORRUPT, f"{header.format}: pixels are neither 8 nor 16 bits")
        else:
            straight = image.convert(_STRAIGHT_ALPHA[image.mode]) if image.mode in _STRAIGHT_ALPHA else image
            pixels = np.asarray(straight if straight.mode == "RGB" else straight.convert("RGB"))
    return pixels if turned else _turn(pixels, header.orientation)


def _critical_chunks(data: bytes) -> bytes:
    """A PNG less its text, profiles and the like, at whose damage or size Pillow would give up pixels that are there.

    Raises:
        SampleError: `truncated` without a last chunk: Pillow's own check is off where a process sets
            ImageFile.LOAD_TRUNCATED_IMAGES.
    """
    chunks = [(name, start, end) for name, start, end in png_chunks(data) if name[0] < 0x60]  # a capital: critical
    if not any(name == b"IEND" for name, _, _ in chunks):
        raise SampleError(Reason.TRUNCATED, f"png ends at byte {len(data)}, before its last chunk")
    view = memoryview(data)
    return b"".join([view[:8], *(view[start - 8 : end + 4] for _, start, end in chunks)])


def _check_strips(image: TiffImagePlugin.TiffImageFile, length: int) -> None:
    """Strips (tags 273, 279) or tiles (324, 325) must end within the file: codecs in a TIFF may fill in what lacks.
    Memory is taken for a whole tile (322 x 323), whatever the image needs of it.
    """
    for offsets, counts in ((273, 279), (324, 325)):
        ends = zip(image.tag_v2.get(offsets, ()), image.tag_v2.get(counts, ()), strict=False)
        if any(offset + count > length for offset, count in ends):
            raise SampleError(Reason.TRUNCATED, f"tiff ends at byte {length}, before its pixels do")
    width, height = image.tag_v2.get(322, 0), image.tag_v2.get(323, 0)
    if width * height > max(image.width * image.height, _LARGEST_TILE):
        raise SampleError(
            Reason.CORRUPT, f"tiff: tiles of {width} x {height} for {image.width} x {image.height} pixels"
        )


_LARGEST_TILE = 2048 * 2048
# Pixels of a tile that may be larger than its image. Usual are 256 x 256 to 1024 x 1024.

_PILLOW = threading.Lock()
# Pillow warns (malformed metadata) where there is nothing to do. warnings.catch_warnings is process-wide state: two
# threads that leave it in the wrong order would leave warnings off for good. JPEG, the hot path, takes no lock.

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
    """Stored -> displayed, C-contiguous. EXIF orientations: 1 upright, 3 half a turn, 6 and 8 a quarter clockwise and
    anticlockwise; 2, 4, 5 and 7 are mirrored.
    """
    if orientation == 1:
        return np.ascontiguousarray(pixels)
    if orientation in _ROTATIONS:
        turned = cv2.rotate(pixels, _ROTATIONS[orientation])
    elif orientation in _FLIPS:
        turned = cv2.flip(pixels, _FLIPS[orientation])
    else:
        turned = cv2.transpose(pixels if orientation == 5 else cv2.flip(pixels, -1))
    return turned.astype(np.uint8, copy=False)


_ROTATIONS = {3: cv2.ROTATE_180, 6: cv2.ROTATE_90_CLOCKWISE, 8: cv2.ROTATE_90_COUNTERCLOCKWISE}
_FLIPS = {2: 1, 4: 0}
