"""Thousands of small image files for fuzzing: whole files of every format, mutations of them, and bombs.

The same count and seed give the same files. A file's name describes it (`00042-png16-flip_body.png`), and the numbers list the
files in the order in which they were made. For a soak test: `python -m tests.fuzz OUT --files 20000 --seed 7`.
"""

import argparse
import io
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from da2ray.benchmark.photos import packaged_photos

HUGE = 60_000
"""Side that bombs declare. Their 3.6 gigapixels are 18 times the default limit."""
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_ORIENTATION = 0x112


def main() -> None:
    parser = argparse.ArgumentParser(description="Write broken image files into a folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_fuzz(options.folder, options.files, options.seed)


def write_fuzz(folder: Path, count: int, seed: int) -> list[str]:
    """Write `count` files into `folder`, and return their names in the order of a listing."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for name, data in fuzz_files(count, seed):
        (folder / name).write_bytes(data)
        names.append(name)
    return names


def fuzz_files(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """The (name, data) of `count` files: first all whole and special files, then mutations."""
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    whole, mutations = whole_files(), list(MUTATIONS.items())
    bases = list(whole.items())
    made = list((whole | special_files()).items())
    for number in range(count):
        if number < len(made):
            label, data = made[number]
            kind = label.partition(".")[2]
        else:
            base, before = bases[chance.randrange(len(bases))]
            mutation, mutate = mutations[chance.randrange(len(mutations))]
            stem, _, kind = base.partition(".")
            data, label = mutate(before, chance, [file for _, file in bases]), f"{stem}-{mutation}"
            if mutation == "wrong_suffix":
                kind = chance.choice([each for each in ("jpg", "png", "webp", "gif", "bmp", "tif") if each != kind])
        yield f"{number:05d}-{label.partition('.')[0]}.{kind}", data


# --------------------------------------------------------------------------------------------------- whole files


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@cache
def whole_files() -> dict[str, bytes]:
    """Valid files of about 72 x 48 pixels by name. The suffix is that of the format."""
    photo = Image.open(io.BytesIO(packaged_photos()["chelsea.png"])).convert("RGB").resize((72, 48))
    grey, palette = photo.convert("L"), photo.convert("P")
    alpha = photo.convert("RGBA")
    alpha.putalpha(grey)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    frames = {"save_all": True, "append_images": [photo.rotate(90 * turn) for turn in (1, 2)]}
    turned = Image.Exif()
    turned[_ORIENTATION] = 6
    files = {
        "baseline.jpg": saved(photo, "JPEG", quality=85),
        "444.jpg": saved(photo, "JPEG", quality=95, subsampling=0),
        "progressive.jpg": saved(photo, "JPEG", progressive=True),
        "restarts.jpg": saved(photo, "JPEG", restart_marker_blocks=3),
        "cmyk.jpg": saved(photo.convert("CMYK"), "JPEG"),
        "cmyk-progressive.jpg": saved(photo.convert("CMYK"), "JPEG", progressive=True),
        "grey.jpg": saved(grey, "JPEG"),
        "rotated.jpg": saved(photo, "JPEG", exif=turned, icc_profile=bytes(300)),
        "rgb.png": saved(photo, "PNG"),
        "grey.png": saved(grey, "PNG"),
        "deep16.png": saved(deep, "PNG"),
        "palette.png": saved(palette, "PNG", transparency=3),
        "bits.png": saved(photo.convert("1"), "PNG"),
        "alpha.png": saved(alpha, "PNG"),
        "rotated.png": saved(photo, "PNG", exif=turned),
        "animated.png": saved(photo, "PNG", **frames),
        "interlaced.png": interlaced_png(photo),
        "lossy.webp": saved(photo, "WEBP", quality=80),
        "lossless.webp": saved(photo, "WEBP", lossless=True),
        "alpha.webp": saved(alpha, "WEBP", quality=80),
        "animated.webp": saved(photo, "WEBP", **frames),
        "rotated.webp": saved(photo, "WEBP", exif=turned),
        "palette.gif": saved(palette, "GIF"),
        "flat.gif": saved(palette, "GIF", interlace=0),
        "animated.gif": saved(photo, "GIF", **frames, comment=b"c" * 600),
        "rgb.bmp": saved(photo, "BMP"),
        "palette.bmp": saved(palette, "BMP"),
        "bits.bmp": saved(photo.convert("1"), "BMP"),
        "alpha.bmp": saved(alpha, "BMP"),
        "rle.bmp": rle_bmp(),
        "raw.tif": saved(photo, "TIFF"),
        "deep16.tif": saved(deep, "TIFF"),
        "alpha.tif": saved(alpha, "TIFF"),
        "cmyk.tif": saved(photo.convert("CMYK"), "TIFF"),
        "fax.tif": saved(photo.convert("1"), "TIFF", compression="group4"),
        "pages.tif": saved(photo, "TIFF", compression="tiff_lzw", **frames),
        "rotated.tif": saved(photo, "TIFF", exif=turned),
        "tiles.tif": tiled_tiff(64, 48, 16, 16, np.arange(12 * 16 * 16 * 3, dtype=np.uint8).tobytes()),
    }
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "lzma"):
        files[f"{compression.removeprefix('tiff_')}.tif"] = saved(photo, "TIFF", compression=compression)
    return files


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, rows: bytes, *, colour: int = 2, interlaced: int = 0, extra: bytes = b"") -> bytes:
    """A PNG of 8 bits, from its `rows` before compression and `extra` chunks that go before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, interlaced)
    pixels = png_chunk(b"IDAT", zlib.compress(rows, 9))
    return PNG_SIGNATURE + png_chunk(b"IHDR", header) + extra + pixels + png_chunk(b"IEND", b"")


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


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


_SHORT, _LONG = 3, 4
# Types of values in a TIFF.


def tiff(tags: dict[int, tuple[int, ...]], data: bytes = b"", *, next_directory: int = 0) -> bytes:
    """A little-endian TIFF with one directory of LONGs. Tags with several values keep them behind it, before `data`."""
    start = 8 + 2 + 12 * len(tags) + 4
    entries, values = b"", b""
    for tag, value in sorted(tags.items()):
        packed = struct.pack(f"<{len(value)}I", *value)
        entries += struct.pack("<HHI", tag, _LONG, len(value))
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


# ------------------------------------------------------------------------------------------------- special files

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
        "dense-exif.png": png(5000, 5000, rows, extra=png_chunk(b"eXIf", tiff({_ORIENTATION: (8,)}))),
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
        "exif-loop.jpg": jpeg[:2] + _exif_segment({0x8769: (8,), _ORIENTATION: (6,)}) + jpeg[2:],
        "directory-loop.tif": bytes(loop) + directory + struct.pack("<I", len(tif)),
        "exif-loop.tif": saved(photo, "TIFF", tiffinfo={0x8769: 8, 0x8825: 8}),
        "many-tags.tif": _with_tags(lzw, 4_000, 1),
        "overlapping-tags.tif": _with_tags(lzw, 4_000, 40_000),
        "huge-tags.tif": _with_tags(lzw, 300, 0x3FFFFFFF),
        "many-pages.tif": _pages(tif, 3000),
        "negative.bmp": BOMBS["bmp"][:18] + struct.pack("<ii", -64, -(2**31)) + BOMBS["bmp"][26:],
        "colours.bmp": whole["palette.bmp"][:46] + b"\xff\xff\xff\xff" + whole["palette.bmp"][50:],
    }


def riff(chunks: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


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
    added = b"".join(struct.pack("<HHII", tag, _LONG, length, 8) for tag in range(50_000, 50_000 + count))
    directory = struct.pack("<H", own + count) + entries + added + bytes(4)
    return file[:4] + struct.pack("<I", len(file)) + file[8:] + directory


def _pages(file: bytes, count: int) -> bytes:
    """A TIFF whose directory is followed by `count` more directories, each with one tag."""
    (start,) = struct.unpack_from("<I", file, 4)
    (own,) = struct.unpack_from("<H", file, start)
    pages = b"".join(
        struct.pack("<HHHIII", 1, 256, _SHORT, 1, 9, len(file) + 18 * (number + 1) if number + 1 < count else 0)
        for number in range(count)
    )
    link = start + 2 + 12 * own
    return file[:link] + struct.pack("<I", len(file)) + file[link + 4 :] + pages


# ----------------------------------------------------------------------------------------------------- mutations

Mutation = Callable[[bytes, random.Random, list[bytes]], bytes]


def _flip(data: bytes, chance: random.Random, end: int) -> bytes:
    flipped = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        flipped[chance.randrange(min(end, len(data)))] ^= 1 << chance.randrange(8)
    return bytes(flipped)


def flip_header(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    return _flip(data, chance, 80)


def flip_body(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    return _flip(data, chance, len(data))


def overwrite(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    at, size = chance.randrange(len(data)), chance.randint(1, 24)
    return data[:at] + chance.randbytes(size) + data[at + size :]


def extreme_number(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    """Write an extreme size, count or offset into the first bytes or, for a TIFF, into its directory."""
    start = 0
    if data[:4] == b"II*\0":
        start = min(struct.unpack_from("<I", data, 4)[0], len(data) - 4)
    at = start + chance.randrange(min(180, len(data) - start))
    size = chance.choice((1, 2, 4))
    number = (chance.choice(EXTREMES) & (1 << 8 * size) - 1).to_bytes(size, chance.choice(("big", "little")))
    return data[:at] + number + data[at + size :]


def truncate(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    return data[: chance.randrange(len(data))]


def truncate_end(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    return data[: -chance.randint(1, min(32, len(data)))]


def wrong_suffix(data: bytes, *_: object) -> bytes:
    return data


def blank(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    """Write a run of zeros, as if a block of a disk or a part of a transfer were missing."""
    at = chance.randrange(len(data))
    size = min(chance.randint(1, 600), len(data) - at)
    return data[:at] + bytes(size) + data[at + size :]


def insert(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + chance.randbytes(chance.randint(1, 60)) + data[at:]


def concatenate(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    return data + chance.choice(others)


def splice(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    other = chance.choice(others)
    return data[: chance.randrange(len(data))] + other[chance.randrange(len(other)) :]


def shuffle_chunks(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    """Swap two chunks (segments, entries of a directory), drop one, or double one."""
    head, parts, tail = chunks_of(data)
    one, other = (chance.randrange(len(parts)) for _ in range(2))
    match chance.randrange(3):
        case 0:
            parts[one], parts[other] = parts[other], parts[one]
        case 1:
            del parts[one]
        case _:
            parts.insert(other, parts[one])
    return head + b"".join(parts) + tail


def other_size(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    """Write another width and height into the header, from 0 to huge, with a correct checksum if the format has one."""
    width, height = (
        chance.choice((0, 1, 31, 47, 71, 73, 97, 1000, 12_000, 0x3FFF, 0x7FFF, HUGE, 0xFFFF)) for _ in range(2)
    )
    if data[:8] == PNG_SIGNATURE:
        return data[:8] + png_chunk(b"IHDR", struct.pack(">II", width, height) + data[24:29]) + data[33:]
    if data[:3] == b"GIF":
        return data[:6] + struct.pack("<HH", width, height) + data[10:]
    if data[:2] == b"BM":
        return data[:18] + struct.pack("<ii", width, height * chance.choice((1, -1))) + data[26:]
    if data[:4] == b"II*\0":
        patched = bytearray(data)
        (start,) = struct.unpack_from("<I", data, 4)
        for at in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", data, start)[0], 12):
            tag = struct.unpack_from("<H", data, at)[0]
            if tag in {256, 257}:
                patched[at + 8 : at + 12] = struct.pack("<I", width if tag == 256 else height)
        return bytes(patched)
    if data[:4] == b"RIFF":
        at = {b"VP8X": 24, b"VP8 ": 26, b"VP8L": 21}[data[12:16]]
        sides = struct.pack("<I", width)[:3] + struct.pack("<I", height)[:3]
        return data[:at] + (sides if at == 24 else sides[:2] + sides[3:5]) + data[at + (6 if at == 24 else 4) :]
    frame = re.search(rb"\xff[\xc0-\xc2]\0.\x08", data, re.DOTALL)
    assert frame
    return data[: frame.end()] + struct.pack(">HH", height, width) + data[frame.end() + 4 :]


def right_checksums(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    """Flip bits in a chunk of a PNG and correct its checksum, so that the decoder sees them. Flip any bits in other formats."""
    if data[:8] != PNG_SIGNATURE:
        return _flip(data, chance, len(data))
    head, parts, _tail = chunks_of(data)
    number = chance.randrange(len(parts))
    if len(parts[number]) > 12:
        parts[number] = png_chunk(parts[number][4:8], _flip(parts[number][8:-4], chance, len(data)))
    return head + b"".join(parts)


MUTATIONS: dict[str, Mutation] = {
    each.__name__: each
    for each in (
        *(flip_header, flip_body, overwrite, extreme_number, truncate, truncate_end, wrong_suffix, blank, insert),
        *(concatenate, splice, shuffle_chunks, other_size, right_checksums),
    )
}


def chunks_of(data: bytes) -> tuple[bytes, list[bytes], bytes]:
    """A whole file in three parts: the bytes before its chunks, the chunks, and the bytes after them."""
    parts = []
    if data[:8] == PNG_SIGNATURE:
        at = 8
        while at < len(data):
            size = 12 + struct.unpack_from(">I", data, at)[0]
            parts.append(data[at : at + size])
            at += size
        return data[:8], parts, b""
    if data[:4] == b"RIFF":
        at = 12
        while at < len(data):
            size = 8 + (struct.unpack_from("<I", data, at + 4)[0] + 1) // 2 * 2
            parts.append(data[at : at + size])
            at += size
        return data[:12], parts, b""
    if data[:3] == b"\xff\xd8\xff":
        at = 2
        while data[at + 1] != 0xDA:
            size = 2 + struct.unpack_from(">H", data, at + 2)[0]
            parts.append(data[at : at + size])
            at += size
        return data[:2], parts, data[at:]
    if data[:4] == b"II*\0":
        (start,) = struct.unpack_from("<I", data, 4)
        at, count = start + 2, struct.unpack_from("<H", data, start)[0]
        return data[:at], [data[at + 12 * i : at + 12 * i + 12] for i in range(count)], data[at + 12 * count :]
    # GIF and BMP are cut into equal parts behind the signature.
    size = max(1, (len(data) - 6) // 8)
    return data[:6], [data[at : at + size] for at in range(6, len(data), size)], b""


if __name__ == "__main__":
    main()
