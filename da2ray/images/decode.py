"""Decode the bytes of an image file into pixels: header, limits, decoding, orientation, and the closed set of errors.

There are three steps, so that a caller knows the size of an image that a later step refuses:

    header = read_header(data)                      # touches no pixel
    size = admit(header, size_rule, limits)         # refuses a decompression bomb
    pixels = decode_pixels(data, header, size, mode)

`decode` does all three. For any bytes, each step raises only `SampleError` or `MemoryError`.

Pixels equal those of the official reader, `cv2.imread(IMREAD_COLOR)`, but in RGB: EXIF orientation is applied, alpha is dropped
(in TIFF it darkens), 16 bits are cut to the upper 8, grey is repeated, and an animation gives its first frame.

- JPEG: libjpeg-turbo (simplejpeg, and Pillow for files of which libjpeg warns; see `da2ray.images.jpeg`).
- PNG and WebP: Pillow, whose pixels equal cv2's.
- GIF, BMP and TIFF: Pillow checks that the file is whole, and cv2 gives the pixels. If cv2 cannot read the file (a TIFF with zstd
  or LZMA, a GIF with damage behind its first frame), they are Pillow's.

A file that Pillow refuses is refused, even if cv2 reads it, because Pillow notices missing pixels and cv2 fills them in. The
exception is damage to the metadata of a PNG, which costs no pixels. `tests/images/differential.py` compares the three and lists
all classes of disagreement with their reasons.

Pillow's global limit on pixels (`Image.MAX_IMAGE_PIXELS`) stays as it is; two plugins, WebP and TIFF, obey it by themselves.
Pillow's warnings are silenced. libtiff prints its own lines about a broken TIFF from C, and they reach stderr.
"""

import io
import re
import threading
import warnings
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, GifImagePlugin, ImageFile, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
from PIL.Image import DecompressionBombError

from da2ray.errors import Reason, SampleError
from da2ray.images.headers import Format, Header, png_chunks, read_header
from da2ray.images.jpeg import decode_jpeg
from da2ray.teachers.base import SizeRule

__all__ = ["DecodeMode", "Format", "Header", "Image", "Limits", "admit", "decode", "decode_pixels", "read_header"]

Pixels: TypeAlias = NDArray[np.uint8]


class DecodeMode(StrEnum):
    """How many of a file's pixels are decoded.

    EXACT: every pixel, as Pillow and cv2 decode it.
    SCALED: a JPEG at the smallest scale of 1, 1/2, 3/8, 1/4 and 1/8 at which neither side is below the network's size. Other
    formats as for EXACT.
    """

    EXACT = "exact"
    SCALED = "scaled"


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of the images that are labelled. Any other image becomes a `rejected` row.

    Attributes:
        min_side: smallest short side in pixels. Below 32, the network would see the image enlarged by more than 16.
        max_aspect: largest ratio of the long side to the short side.
        max_tokens: most 14 x 14 patches at the network's size. Memory grows with their number, and attention with its square.
            The default, 96 x 96, is five times a 4:3 photograph. At short side 518 an aspect of 6.7 reaches it.
        max_pixels: most pixels at full size, which bounds the memory of decoding. A JPEG takes 3 bytes a pixel (6 if it is
            turned, up to 12 if it is progressive or CMYK), other formats 6 to 14, and a WebP 18.
    """

    min_side: int = 32
    max_aspect: float = 8.0
    max_tokens: int = 96 * 96
    max_pixels: int = 200_000_000


@dataclass(frozen=True, slots=True)
class Image:
    """A decoded image.

    Attributes:
        pixels: uint8 (H, W, 3), C-contiguous RGB as displayed; may be smaller than `height` x `width` if decoded SCALED.
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
        SampleError: `read_header`, `admit` or `decode_pixels` refuses the file.
    """
    header = read_header(data)
    size = admit(header, size_rule, limits)
    pixels = decode_pixels(data, header, size, mode)
    return Image(pixels, header.width, header.height, header.orientation, size)


def admit(header: Header, size_rule: SizeRule, limits: Limits) -> tuple[int, int]:
    """Check an image against the limits, and return the network's (height, width) for it.

    Raises:
        SampleError: `too_many_pixels`, `too_small`, `aspect` or `too_many_tokens`.
    """
    width, height = header.width, header.height
    short, long = sorted((width, height))
    shape = f"{width} x {height}"
    if width * height > limits.max_pixels:
        raise SampleError(Reason.TOO_MANY_PIXELS, f"{shape} is more than {limits.max_pixels} pixels")
    if short < limits.min_side:
        raise SampleError(Reason.TOO_SMALL, f"{shape}: the short side is below {limits.min_side}")
    if long > limits.max_aspect * short:
        raise SampleError(Reason.ASPECT, f"{shape}: the aspect is above {limits.max_aspect:g}")
    rows, columns = size_rule(height, width)
    tokens = rows * columns // _PATCH**2
    if tokens > limits.max_tokens:
        raise SampleError(
            Reason.TOO_MANY_TOKENS, f"{shape}: {tokens} tokens at {columns} x {rows}, above {limits.max_tokens}"
        )
    return rows, columns


def decode_pixels(data: bytes, header: Header, size: tuple[int, int], mode: DecodeMode) -> Pixels:
    """Decode the pixels of a file: uint8 (H, W, 3), C-contiguous RGB as displayed.

    Pixels that a decoder makes up for missing data are never returned.

    Args:
        data: the file.
        header: the file's header, from `read_header`.
        size: the network's (height, width). SCALED returns at least this size if the image has it.
        mode: EXACT or SCALED.

    Raises:
        SampleError: `truncated` if pixels are missing, `corrupt` if the data cannot be decoded, `too_many_pixels` for a WebP
            or TIFF above Pillow's limit (179 million unless the process sets another).
    """
    try:
        if header.format is Format.JPEG:
            return _decode_jpeg(data, header, size, mode)
        return _decode_pillow(data, header)
    except (SampleError, MemoryError):
        raise
    except DecompressionBombError as error:
        raise SampleError(Reason.TOO_MANY_PIXELS, f"{header.format}: {error}") from error
    except Exception as error:  # decoders raise any error, and one image must not end a job
        text = f"{type(error).__name__}: {error}"
        reason = Reason.TRUNCATED if _CUT_OFF.search(text) else Reason.CORRUPT
        raise SampleError(reason, f"{header.format}: {text}") from error


_PATCH = 14
# Side of a patch of DINOv2's ViT, whose tokens `Limits.max_tokens` counts.

_CUT_OFF = re.compile("truncated|premature end|EOFError|not enough image data|unexpected end", re.IGNORECASE)
# The words of libjpeg-turbo and Pillow for missing data.


# -------------------------------------------------------------------------------------------------------- pixels


def _decode_jpeg(data: bytes, header: Header, size: tuple[int, int], mode: DecodeMode) -> Pixels:
    least = size[::-1] if header.orientation >= 5 else size
    return _turn(decode_jpeg(data, header.components, least, scaled=mode is DecodeMode.SCALED), header.orientation)


def _decode_pillow(data: bytes, header: Header) -> Pixels:
    if header.format is Format.PNG:
        data = _critical_chunks(data)
    if header.format is Format.WEBP and int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise SampleError(Reason.TRUNCATED, f"webp ends at byte {len(data)}, before the length in its header")
    with _PILLOW, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = _PLUGINS[header.format](io.BytesIO(data))
        turned = header.format is Format.TIFF  # the only format whose orientation Pillow applies by itself
        size = (header.width, header.height)
        stored = size if header.orientation < 5 else size[::-1]
        # Pillow may read another orientation of a TIFF than libtiff, which decides.
        if image.size != stored and not (turned and image.size == stored[::-1]):
            # Pillow would allocate memory for a size that `admit` has not seen.
            raise SampleError(Reason.CORRUPT, f"{header.format}: the header says {size}, the image data {image.size}")
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            _check_strips(image, len(data))
        image.load()
        official = _official(data, size) if header.format in _BY_CV2 else None
        if official is not None:
            return official
        if image.mode.startswith("I;16"):
            pixels: Pixels = np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        elif image.mode in {"I", "F"}:
            raise SampleError(Reason.CORRUPT, f"{header.format}: pixels have neither 8 nor 16 bits")
        else:
            straight = image.convert(_STRAIGHT_ALPHA[image.mode]) if image.mode in _STRAIGHT_ALPHA else image
            pixels = np.asarray(straight if straight.mode == "RGB" else straight.convert("RGB"))
    if turned and pixels.shape[:2] != size[::-1]:
        raise SampleError(Reason.CORRUPT, f"{header.format}: decoders find different orientations")
    return pixels if turned else _turn(pixels, header.orientation)


def _official(data: bytes, size: tuple[int, int]) -> Pixels | None:
    """The pixels of cv2, RGB as displayed, or None if cv2 does not read the file or finds another (width, height)."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return None
    finally:
        cv2.utils.logging.setLogLevel(level)
    if pixels is None or pixels.shape != (size[1], size[0], 3):
        return None
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


_BY_CV2 = frozenset({Format.GIF, Format.BMP, Format.TIFF})
# The formats in which cv2 and Pillow differ about pixels of some kinds. Pillow checks that the file is whole, and cv2 gives the
# pixels. A PNG or a WebP is decoded once, because both libraries give the same pixels.


def _critical_chunks(data: bytes) -> bytes:
    """A PNG without its text, profiles and other ancillary chunks.

    If one of those is damaged or huge, Pillow would give up on pixels that are intact.

    Raises:
        SampleError: `truncated`: the last chunk is missing. Pillow's own check is off if a process sets
            ImageFile.LOAD_TRUNCATED_IMAGES. An animation may lack later frames.
    """
    chunks = list(png_chunks(data))
    names = [name for name, _, _ in chunks]
    if b"IEND" not in names and not (b"IDAT" in names and {b"fcTL", b"fdAT"} & {*names[names.index(b"IDAT") :]}):
        raise SampleError(Reason.TRUNCATED, f"png ends at byte {len(data)}, before its last chunk")
    view = memoryview(data)
    # Critical chunks begin with a capital.
    critical = [view[start - 8 : end + 4] for name, start, end in chunks if name[0] < 0x60 and name != b"IEND"]
    return b"".join([view[:8], *critical, _PNG_END])


_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


def _check_strips(image: TiffImagePlugin.TiffImageFile, length: int) -> None:
    """Check that strips (tags 273, 279) or tiles (324, 325) end within the file, and that tiles (322 x 323) are not huge.

    Codecs in a TIFF may fill in missing data. They take memory for a whole tile, even if the image needs less of it.

    Raises:
        SampleError: `truncated`: a strip or tile ends behind the file. `corrupt`: tiles are far larger than the image.
    """
    # Pillow itself notices that uncompressed pixels are missing, and a count may exceed what they need.
    packed = image.tag_v2.get(259, 1) != 1
    for offsets, counts in ((273, 279), (324, 325)) if packed else ():
        ends = zip(image.tag_v2.get(offsets, ()), image.tag_v2.get(counts, ()), strict=False)
        if any(offset + count > length for offset, count in ends):
            raise SampleError(Reason.TRUNCATED, f"tiff ends at byte {length}, before its pixels do")
    width, height = image.tag_v2.get(322, 0), image.tag_v2.get(323, 0)
    if width * height > max(image.width * image.height, _LARGEST_TILE):
        raise SampleError(
            Reason.CORRUPT, f"tiff: tiles of {width} x {height} for {image.width} x {image.height} pixels"
        )


_LARGEST_TILE = 2048 * 2048
# Most pixels of a tile that is larger than its image. Usual tiles have 256 x 256 to 1024 x 1024 pixels.

_PILLOW = threading.Lock()
# Pillow warns of malformed metadata, and nobody can act on that. warnings.catch_warnings changes state of the whole process:
# two threads that leave it in the wrong order would leave warnings off for good. JPEG, the hot path, takes no lock.

_PLUGINS: dict[Format, type[ImageFile.ImageFile]] = {
    Format.PNG: PngImagePlugin.PngImageFile,
    Format.WEBP: WebPImagePlugin.WebPImageFile,
    Format.GIF: GifImagePlugin.GifImageFile,
    Format.BMP: BmpImagePlugin.BmpImageFile,
    Format.TIFF: TiffImagePlugin.TiffImageFile,
}

_STRAIGHT_ALPHA = {"RGBa": "RGBA", "La": "LA"}
# Premultiplied alpha, which Pillow converts only to these.


def _turn(pixels: Pixels, orientation: int) -> Pixels:
    """Turn pixels from the stored to the displayed orientation, C-contiguous.

    EXIF orientations: 1 is upright, 3 half a turn, 6 a quarter clockwise, 8 a quarter anticlockwise; 2, 4, 5 and 7 are mirrored.
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
