"""Bombs, files with lying headers, and files that are not images."""

import io
import random
import struct
import zlib
from functools import cache

from PIL import Image

from tests.fuzz.formats import LONG, ORIENTATION, PNG_SIGNATURE, SHORT, png, png_chunk, riff, saved, tiff, tiled_tiff
from tests.fuzz.whole import whole_files

HUGE = 60_000
"""Side that bombs declare. Their 3.6 gigapixels are 18 times the default limit."""
BOMBS = {
    "png": PNG_SIGNATURE + png_chunk(b"IHDR", struct.pack(">IIBBBBB", HUGE, HUGE, 8, 2, 0, 0, 0)),
    "jpeg": b"\xff\xd8\xff\xc0\0\x11\x08" + struct.pack(">HHB", HUGE, HUGE, 3) + bytes(40),
    "gif": b"GIF89a" + struct.pack("<HH", HUGE, HUGE) + bytes(40),
    "bmp": b"BM" + bytes(12) + struct.pack("<Iii", 40, HUGE, -HUGE) + bytes(40),
    "webp": b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + (struct.pack("<I", HUGE - 1)[:3] * 2) + bytes(20),
    "tiff": tiff({256: (HUGE,), 257: (HUGE,)}),
}
"""Headers that declare HUGE x HUGE pixels, by format."""


@cache
def special_files() -> dict[str, bytes]:
    """Bombs, files with lying headers, and files that are not images, by name."""
    whole = whole_files()
    photo = Image.open(io.BytesIO(whole["rgb.png"]))
    suffixes = {"jpeg": "jpg", "tiff": "tif"}
    files = {f"bomb.{suffixes.get(kind, kind)}": data for kind, data in BOMBS.items()}
    files |= _bombs_with_data() | _lying_files(whole, photo)
    for number, text in enumerate(_TEXTS):
        files[f"text{number}.jpg"] = text
    for number, size in enumerate((0, 1, 2, 3, 12, 100, 70_000)):
        files[f"zeros{number}.{('jpg', 'png', 'webp', 'gif', 'bmp', 'tif')[number % 6]}"] = bytes(size)
    chance = random.Random(0)  # noqa: S311
    for kind, magic in _MAGICS.items():
        for size in (0, 20, 400, 5000):
            files[f"magic{size}.{kind}"] = magic + chance.randbytes(size)
            files[f"ones{size}.{kind}"] = magic + b"\xff" * size
    return files


_TEXTS = (
    *(
        b"<html>404</html>",
        b'{"error": "AccessDenied"}',
        b"<?xml version='1.0'?><svg/>",
        b"%!PS-Adobe-3.0",
        b"%PDF-1.7",
    ),
    *(b"BM is a brand, not a bitmap, here", b"P6 1 1 255 abc", b"8BPS\0\1", b"\0\0\0\x20ftypavif", b"\0\0\1\0\1\0"),
    *(b"version https://git-lfs.github.com/spec/v1\n", b"PK\3\4", b"\x1f\x8b\x08", b"II+\0\x08\0\0\0", b"\xff\xd8"),
)
_MAGICS = {
    "jpg": b"\xff\xd8\xff\xe0",
    "png": PNG_SIGNATURE,
    "webp": b"RIFF\xff\xff\0\0WEBPVP8 ",
    "gif": b"GIF89a",
    "bmp": b"BM" + bytes(12) + b"\x28\0\0\0",
    "tif": b"II*\0\x08\0\0\0",
}


def _bombs_with_data() -> dict[str, bytes]:
    """Small files with pixels of one colour, in full or in part: some above the limit, some large but allowed."""
    rows = bytes((1 + 3 * 5000) * 5000)
    lines = zlib.compress(bytes(3 * HUGE * 16), 9)
    strips = {258: (8, 8, 8), 259: (8,), 262: (2,), 277: (3,), 279: (len(lines),)}
    grid = {256: (HUGE,), 257: (HUGE,), 278: (HUGE,), 273: (0,)}
    at = len(tiff(strips | grid))
    tile = zlib.compress(bytes(3 * 12_000 * 12_000), 9)
    return {
        "bomb-data.png": png(HUGE, HUGE, bytes(10_000_000)),
        "bomb-data.gif": BOMBS["gif"][:10]
        + b"\x80\0\0"
        + bytes(6)
        + b","
        + bytes(4)
        + struct.pack("<HH", HUGE, HUGE)
        + b"\0\2\x16"
        + bytes(22)
        + b"\0;",
        "bomb-data.tif": tiff(strips | grid | {273: (at,)}, lines),
        "dense.png": png(5000, 5000, rows),
        "dense-exif.png": png(5000, 5000, rows, extra=png_chunk(b"eXIf", tiff({ORIENTATION: (8,)}))),
        "dense.jpg": saved(Image.new("RGB", (5000, 5000)), "JPEG", quality=20),
        "dense.webp": saved(Image.new("RGB", (4000, 4000)), "WEBP", quality=10, method=0),
        "giant-tile.tif": tiled_tiff(64, 64, 12_000, 12_000, tile, compression=8),
        "giant-tile-raw.tif": tiled_tiff(64, 64, 12_000, 12_000, bytes(3000)),
        "scans.jpg": many_scans(1500, 20_000),
        "long-idat.png": png(64, 48, bytes(50_000_000)),
    }


def many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated. Each scan costs a pass over all blocks, and takes some 50 bytes."""
    file = saved(Image.new("L", (side, side)), "JPEG", progressive=True)
    last = file.rindex(b"\xff\xda")
    return file[:-2] + file[last:-2] * scans + file[-2:]


def _lying_files(whole: dict[str, bytes], photo: Image.Image) -> dict[str, bytes]:
    """Files with two different sizes, with metadata of any size, or with directories that loop or overlap."""
    jpeg, rgb, webp, gif, tif, lzw = (
        whole[name] for name in ("baseline.jpg", "rgb.png", "alpha.webp", "palette.gif", "raw.tif", "lzw.tif")
    )
    canvas = webp.index(b"VP8X")
    second = webp[canvas : canvas + 12] + struct.pack("<I", 16_000)[:3] * 2
    small = webp[canvas : canvas + 12] + struct.pack("<I", 71)[:3] + struct.pack("<I", 47)[:3]
    noise = random.Random(1).randbytes(60_000)  # noqa: S311
    profile = b"icc\0\0" + zlib.compress(bytes(30_000_000), 9)
    loop = bytearray(tif)
    loop[4:8] = struct.pack("<I", len(tif))
    entries = struct.unpack_from("<H", tif, struct.unpack_from("<I", tif, 4)[0])[0]
    first = struct.unpack_from("<I", tif, 4)[0]
    directory = tif[first : first + 2 + 12 * entries]
    return {
        "second-header.png": rgb[:33] + png_chunk(b"IHDR", BOMBS["png"][16:29]) + rgb[33:],
        "canvas-after.webp": riff(webp[12 : canvas + 18] + second + webp[canvas + 18 :]),
        "canvas-before.webp": riff(second + small + webp[canvas + 18 :]),
        "wide-frame.gif": gif[:6] + struct.pack("<HH", 40, 40) + gif[10:],
        "many-comments.gif": gif[:-1] + (b"!\xfe\xff" + bytes(255) + b"\0") * 3000 + b";",
        "only-comments.gif": gif[:13] + (b"!\xfe\xff" + bytes(255) + b"\0") * 3000,
        "profile.png": rgb[:33] + png_chunk(b"iCCP", profile) + rgb[33:],
        "text.png": rgb[:33] + png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(30_000_000), 9)) + rgb[33:],
        "chunks.png": rgb[:33] + png_chunk(b"teSt", b"") * 20_000 + rgb[33:],
        "exif.jpg": jpeg[:2] + (b"\xff\xe1\xea\x68Exif\0\0" + noise) * 12 + jpeg[2:],
        "profiles.jpg": jpeg[:2] + (b"\xff\xe2\xea\x6eICC_PROFILE\0" + noise) * 12 + jpeg[2:],
        "exif-loop.jpg": jpeg[:2] + _exif_segment({0x8769: (8,), ORIENTATION: (6,)}) + jpeg[2:],
        "directory-loop.tif": bytes(loop) + directory + struct.pack("<I", len(tif)),
        "exif-loop.tif": saved(photo, "TIFF", tiffinfo={0x8769: 8, 0x8825: 8}),
        "many-tags.tif": _with_tags(lzw, 4_000, 1),
        "overlapping-tags.tif": _with_tags(lzw, 4_000, 40_000),
        "huge-tags.tif": _with_tags(lzw, 300, 0x3FFFFFFF),
        "many-pages.tif": _pages(tif, 3000),
        "negative.bmp": BOMBS["bmp"][:18] + struct.pack("<ii", -64, -(2**31)) + BOMBS["bmp"][26:],
        "colours.bmp": whole["palette.bmp"][:46] + b"\xff\xff\xff\xff" + whole["palette.bmp"][50:],
    }


def _exif_segment(tags: dict[int, tuple[int, ...]]) -> bytes:
    body = b"Exif\0\0" + tiff(tags)
    return b"\xff\xe1" + struct.pack(">H", 2 + len(body)) + body


def _with_tags(file: bytes, count: int, length: int) -> bytes:
    """A TIFF with a new first directory at its end.

    The directory has the file's own entries, and `count` private ones of `length` LONGs each, all at the same place.
    """
    (start,) = struct.unpack_from("<I", file, 4)
    (own,) = struct.unpack_from("<H", file, start)
    entries = file[start + 2 : start + 2 + 12 * own]
    added = b"".join(struct.pack("<HHII", tag, LONG, length, 8) for tag in range(50_000, 50_000 + count))
    directory = struct.pack("<H", own + count) + entries + added + bytes(4)
    return file[:4] + struct.pack("<I", len(file)) + file[8:] + directory


def _pages(file: bytes, count: int) -> bytes:
    """A TIFF whose directory is followed by `count` more directories, each with one tag."""
    (start,) = struct.unpack_from("<I", file, 4)
    (own,) = struct.unpack_from("<H", file, start)
    pages = b"".join(
        struct.pack("<HHHIII", 1, 256, SHORT, 1, 9, len(file) + 18 * (number + 1) if number + 1 < count else 0)
        for number in range(count)
    )
    link = start + 2 + 12 * own
    return file[:link] + struct.pack("<I", len(file)) + file[link + 4 :] + pages
