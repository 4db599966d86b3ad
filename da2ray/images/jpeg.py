"""Decode a JPEG into the pixels of `cv2.imread`, and refuse one whose coded pixels are damaged.

libjpeg goes on after nearly any damage. It warns and makes pixels up, and Pillow and cv2 ignore its warnings. It also warns of
much that does not matter: stray bytes, metadata, values that it does not use. A warning is judged by what it means for pixels:

1. `simplejpeg` decodes strictly. A file without a warning, which nearly every file is, is done.
2. Otherwise the file is reduced to what its pixels are decoded from (`pixel_segments`). A warning that comes again is about coded
   pixels: something is missing or wrong, so the file is refused. There is one exception, bytes that are left over behind coded
   pixels. The smallest scale has every warning, and takes a tenth of the time.
3. Pillow must read the file as it is. A file whose end is missing fails here.
4. For left-over bytes, and for sampling factors that simplejpeg cannot read, no decoder tells whether pixels are complete.
   `_is_complete` finds out: more bytes behind complete pixels change nothing, and behind incomplete ones they become pixels.
"""

import contextlib
import io
import re
import struct

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import JpegImagePlugin

from da2ray.errors import Reason, SampleError
from da2ray.images.headers import JPEG_FRAMES, JPEG_SCAN, jpeg_scan_end, jpeg_segments

Pixels = NDArray[np.uint8]


def decode_jpeg(data: bytes, components: int, least: tuple[int, int], *, scaled: bool) -> Pixels:
    """Decode a JPEG into RGB as stored, without applying the orientation.

    Args:
        data: the file.
        components: colour components of a pixel, from its header.
        least: (height, width) that a scaled image must have at least.
        scaled: whether to decode at the smallest scale that has `least`.

    Raises:
        SampleError: `truncated` or `corrupt`.
        ValueError, OSError: a decoder refuses the file.
    """
    _check_scans(data, components)
    options: dict[str, object] = {
        "colorspace": "CMYK" if components == 4 else "RGB",
        "fastdct": False,  # like Pillow and cv2, so the bits are equal; the faster ones gain nothing measurable
        "fastupsample": False,
        "min_height": least[0] if scaled else 0,
        "min_width": least[1] if scaled else 0,
        # Scales of 7/8 to 5/8 have no vector code. They take up to twice the time of full size (17, 14, 11 ms against 8).
        "min_factor": 2 if scaled else 1,
    }
    try:
        pixels = simplejpeg.decode_jpeg(data, strict=True, **options)
    except ValueError:
        pixels = _decode_judged(data, options, least if scaled else None)
    return _cmyk_to_rgb(pixels) if components == 4 else pixels


def _decode_judged(data: bytes, options: dict[str, object], least: tuple[int, int] | None) -> Pixels:
    """Decode a JPEG that has a warning, or that simplejpeg cannot read; see the module's docstring."""
    bare = pixel_segments(data)
    clean = _is_readable(bare) and _is_clean(bare, options)
    whole = _pillow(data, least)
    if clean:
        return simplejpeg.decode_jpeg(bare, strict=True, **options)
    pixels = _pillow(bare, least)
    if not np.array_equal(pixels, whole):
        raise SampleError(Reason.CORRUPT, "jpeg: an unknown marker among coded pixels")
    if not _is_complete(data, bare, pixels, least):
        raise SampleError(Reason.TRUNCATED, "jpeg: coded pixels end before the image does")
    return pixels


def _is_clean(bare: bytes, options: dict[str, object]) -> bool:
    """Whether a JPEG of `pixel_segments` has no bytes left over.

    Raises:
        SampleError: `truncated` or `corrupt`: coded pixels are missing or wrong.
    """
    try:
        simplejpeg.decode_jpeg(bare, strict=True, **options | {"min_height": 1, "min_width": 1, "min_factor": 1})
    except ValueError as error:
        if _LEFT_OVER.search(str(error)):
            return False
        ended = "premature end" in str(error).lower()
        raise SampleError(Reason.TRUNCATED if ended else Reason.CORRUPT, f"jpeg: {error}") from error
    return True


_LEFT_OVER = re.compile(r"\d+ extraneous bytes before marker")


def _is_readable(data: bytes) -> bool:
    """Whether simplejpeg reads files of this kind; it does not know all sampling factors."""
    try:
        simplejpeg.decode_jpeg_header(data, strict=False)
    except ValueError:
        return False
    return True


def _is_complete(data: bytes, bare: bytes, pixels: Pixels, least: tuple[int, int] | None) -> bool:
    """Whether every scan and restart interval has data for all of its pixels.

    libjpeg skips bytes behind the last coded pixel of a scan or an interval. If pixels are missing, it decodes those bytes.
    Arithmetic coding is exempt, because it may leave out zeros at its end. `bare`: the `pixel_segments` of `data`.
    """
    if any(marker in _ARITHMETIC for marker, _, _ in jpeg_segments(bare)):
        return True
    return np.array_equal(_pillow(pixel_segments(data, behind=_FILLER), least), pixels)


_ARITHMETIC = frozenset({0xC9, 0xCA, 0xCB})
_FILLER = bytes.fromhex("5aa53c966996c31e") * 2


def pixel_segments(data: bytes, behind: bytes = b"") -> bytes:
    """A JPEG reduced to what libjpeg decodes pixels from.

    Metadata and bytes between segments are left out. Values that libjpeg warns of and ignores are replaced by those that it
    assumes: the scan parameters of a sequential JPEG, an unknown version of JFIF, an unknown colour transform of Adobe.

    Args:
        data: the file.
        behind: bytes to put behind the coded pixels of each scan and restart interval.
    """
    segments = []
    with contextlib.suppress(SampleError, struct.error, IndexError):  # the bytes behind the last scan may be anything
        for segment in jpeg_segments(data):
            segments.append(segment)  # noqa: PERF402 - those before an error are kept
    frame, frame_start, _ = next(segment for segment in segments if segment[0] in JPEG_FRAMES)
    transform = 2 if data[frame_start + 5] == 4 else 1
    kept = [b"\xff\xd8"]
    for marker, start, end in segments:
        body = bytearray(data[start:end])
        if marker == JPEG_SCAN:
            if frame not in _PROGRESSIVE:
                body[-3:] = b"\0\x3f\0"
        elif marker == 0xE0:
            if not body.startswith(b"JFIF\0"):
                continue
            body[5:6] = b"\1"
        elif marker == 0xEE:
            if not body.startswith(b"Adobe") or len(body) < 12:
                continue
            body[11] = body[11] if body[11] in {0, transform} else transform
        elif marker not in _TABLES and marker not in JPEG_FRAMES:
            continue
        kept.append(bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body)
        if marker == JPEG_SCAN:
            coded = data[end : jpeg_scan_end(data, end)]
            kept.append((_RESTART.sub(lambda restart: behind + restart[0], coded) if behind else coded) + behind)
    return b"".join([*kept, b"\xff\xd9"])


_PROGRESSIVE = frozenset({0xC2, 0xCA})
_TABLES = frozenset({0xC4, 0xCC, 0xDB, 0xDD})
# Huffman tables, arithmetic conditioning, quantisation tables, restart interval.
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")


def _pillow(data: bytes, least: tuple[int, int] | None) -> Pixels:
    """Decode with Pillow, which is silent about warnings: RGB, or CMYK as stored by Adobe.

    Raises:
        OSError, SyntaxError, …: Pillow refuses the file.
    """
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    if least is not None:
        image.draft(None, least[::-1])
    image.load()
    if image.mode == "CMYK":
        return 255 - np.asarray(image)
    return np.asarray(image.convert("RGB"))


def _check_scans(data: bytes, components: int) -> None:
    """Refuse a JPEG with too many scans.

    Each scan is a pass over all blocks and takes as little as 10 bytes, so 300 kB of scans would take minutes.

    Raises:
        SampleError: `corrupt`: there are too many scans.
    """
    scans, progressive = 0, False
    try:
        for marker, start, _ in jpeg_segments(data):
            if marker in JPEG_FRAMES:
                progressive = marker in _PROGRESSIVE
            elif marker == JPEG_SCAN:
                scans += 1
                if scans > _MOST_SCANS or (not progressive and data[start] == components):
                    break  # in a sequential JPEG, libjpeg reads only the first scan with all components
    except (SampleError, struct.error, IndexError):
        pass  # the file is cut off, perhaps only behind its pixels; the decoder will tell
    if scans > _MOST_SCANS:
        raise SampleError(Reason.CORRUPT, f"jpeg: more than {_MOST_SCANS} scans")


_MOST_SCANS = 100
# Encoders make some 10. libtiff has the same limit.


def _cmyk_to_rgb(inverted: Pixels) -> Pixels:
    """CMYK as Adobe stores it (255 = no ink), (H, W, 4) -> RGB (H, W, 3), with the rounding of cv2: k - ((255 - c) * k >> 8)."""
    rgb = np.empty((*inverted.shape[:2], 3), dtype=np.uint8)
    for top in range(0, len(inverted), _ROWS):
        part = inverted[top : top + _ROWS].astype(np.uint16)
        rgb[top : top + _ROWS] = part[..., 3:] - ((255 - part[..., :3]) * part[..., 3:] >> 8)
    return rgb


_ROWS = 64
# Rows converted at a time. The products of a whole image would take 22 bytes a pixel.
