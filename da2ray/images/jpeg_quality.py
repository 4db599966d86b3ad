"""How strongly a JPEG was compressed, told from its quantisation tables: no pixel is decoded, and it takes 10 us."""

import struct

from da2ray.errors import SampleError
from da2ray.images.headers import JPEG_SCAN, Format, Header, jpeg_segments


def read_jpeg_quality(data: bytes, header: Header) -> int | None:
    """The `quality` of libjpeg (1 to 100) whose luminance table is as coarse as this file's; None where it has none.

    Exact for files that libjpeg wrote with its own tables. Others have tables of their own: then it is the quality whose
    table has the nearest sum. It is of the last encoding: what was lost before is not in it.
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
    """Sum of the table with number 0 in a segment of quantisation tables; None where it has none."""
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
# Of quality 50: ITU-T T.81, table K.1, as in libjpeg's jcparam.c, whose jpeg_quality_scaling gives the others.


def _scaled_sum(quality: int) -> int:
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return sum(min(max((value * percent + 50) // 100, 1), 255) for value in _LUMINANCE)


_SUMS = [_scaled_sum(quality) for quality in range(1, 101)]
