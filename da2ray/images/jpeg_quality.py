"""The quality at which a JPEG was saved, read from its quantisation tables. It decodes no pixel and takes 10 us."""

import struct

from da2ray.errors import SampleError
from da2ray.images.headers import JPEG_SCAN, Format, Header, jpeg_segments


def read_jpeg_quality(data: bytes, header: Header) -> int | None:
    """The libjpeg `quality` (1 to 100) whose luminance table is as coarse as this file's, or None if the file has no table.

    The result is exact for files that libjpeg wrote with its own tables. For other tables it is the quality whose table has the
    nearest sum. It describes the last encoding, and not losses in earlier ones.
    """
    if header.format is not Format.JPEG:
        return None
    try:
        for marker, start, end in jpeg_segments(data):
            if marker == _JPEG_TABLES and (total := _luminance_sum(data[start:end])) is not None:
                return min(range(1, 101), key=lambda quality: abs(_SUMS[quality - 1] - total))
            if marker == JPEG_SCAN:
                return None
    except (SampleError, struct.error, IndexError):
        pass
    return None


def _luminance_sum(tables: bytes) -> int | None:
    """The sum of table number 0 in a segment of quantisation tables, or None if the segment does not have it."""
    at = 0
    while at < len(tables):
        wide, number = tables[at] >> 4, tables[at] & 15
        size = 128 if wide else 64
        if number == 0:
            return sum(struct.unpack_from(">64H" if wide else ">64B", tables, at + 1))
        at += 1 + size
    return None


_JPEG_TABLES = 0xDB
# fmt: off
_LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)
# fmt: on
# The table of quality 50: ITU-T T.81, table K.1, as in libjpeg's jcparam.c. Its jpeg_quality_scaling gives the other qualities.


def _scaled_sum(quality: int) -> int:
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return sum(min(max((value * percent + 50) // 100, 1), 255) for value in _LUMINANCE)


_SUMS = [_scaled_sum(quality) for quality in range(1, 101)]
