"""Mutants of small image files for `tests.images.differential`: every format that da2ray reads, in many revisions.

Number `n` of a seed is the same file on every machine with the same Pillow and OpenCV, and it does not depend on the other
numbers, so that a run can be split and one mutant can be made again:

    python -m tests.images.differential --only 4711 --save /tmp/mutant.jpg
"""

import io
import random
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from da2ray.benchmark.photos import packaged_photos
from da2ray.errors import SampleError
from da2ray.images.headers import jpeg_segments, png_chunks
from tests.fuzz.formats import PNG_SIGNATURE, png_chunk, riff, saved, tiff
from tests.fuzz.mutations import MUTATIONS, Mutation
from tests.fuzz.whole import whole_files

DATA = Path(__file__).parent / "data"
"""JPEGs that neither Pillow nor OpenCV can write: cjpeg of libjpeg-turbo 2.1.5 wrote them (`-arithmetic`, `-sample`, `-rgb`)."""


class Mutant(NamedTuple):
    number: int
    base: str
    mutation: str
    data: bytes

    @property
    def label(self) -> str:
        return f"{self.number} {self.base} {self.mutation}"


def mutant(seed: int, number: int) -> Mutant:
    """Mutant `number` of `seed`. The first ones are the whole files. One in eight is mutated twice."""
    files = bases()
    names = list(files)
    if number < len(names):
        return Mutant(number, names[number], "whole", files[names[number]])
    chance = random.Random(f"{seed} {number}")  # noqa: S311 - not for secrets
    base = chance.choice(names)
    data, mutations = files[base], _mutations(base)
    others = [files[name] for name in names]
    applied = []
    for _ in range(2 if chance.random() < 1 / 8 else 1):
        name = chance.choice(list(mutations))
        try:
            data = mutations[name](data, chance, others)
        except (struct.error, LookupError, ValueError, AttributeError, AssertionError, StopIteration, SampleError):
            continue  # the first mutation left no structure for a second one
        applied.append(name)
    return Mutant(number, base, "+".join(applied), data)


# --------------------------------------------------------------------------------------------------------- bases


@cache
def bases() -> dict[str, bytes]:
    """Valid files by name; the suffix is that of the format."""
    photo = Image.open(io.BytesIO(packaged_photos()["chelsea.png"])).convert("RGB").resize((72, 48))
    grey, palette = photo.convert("L"), photo.convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    alpha = photo.convert("RGBA")
    alpha.putalpha(grey)
    deep = np.asarray(photo).astype(np.uint16) * 251 + 97
    files = {name: data for name, data in whole_files().items() if name not in {"animated.webp", "animated.png"}}
    small = photo.resize((40, 28))
    frames = {"save_all": True, "append_images": [small.rotate(90)]}
    files |= {f"{path.stem}.jpg": path.read_bytes() for path in sorted(DATA.glob("*.jpg"))}
    files |= {
        "ycck.jpg": files["cmyk.jpg"].replace(b"Adobe\0\x64\0\0\0\0\0", b"Adobe\0\x64\0\0\0\0\2"),
        "restarts-progressive.jpg": saved(photo, "JPEG", progressive=True, restart_marker_blocks=4),
        "optimized.jpg": saved(photo, "JPEG", optimize=True, comment=b"a comment", quality=60),
        "422.jpg": saved(photo, "JPEG", subsampling="4:2:2"),
        "411.jpg": saved(photo, "JPEG", subsampling="4:1:1"),
        "440.jpg": cv2.imencode(".jpg", np.asarray(photo), [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x121111])[1].tobytes(),
        "deep48.png": cv2.imencode(".png", deep)[1].tobytes(),
        "deep64.png": cv2.imencode(".png", np.dstack([deep, deep[..., 0]]))[1].tobytes(),
        "grey-alpha.png": saved(alpha.convert("LA"), "PNG"),
        "palette4.png": saved(palette, "PNG", bits=4),
        "transparent-colour.png": saved(photo, "PNG", transparency=photo.getpixel((3, 3))),
        "animated.png": saved(small, "PNG", **frames),
        "icc.webp": saved(photo, "WEBP", icc_profile=bytes(200), xmp=b"<xmp/>"),
        "animated.webp": saved(small, "WEBP", **frames),
        "transparent.gif": saved(palette, "GIF", transparency=3),
        "inset.gif": inset_gif(palette),
        "rgb16.bmp": rgb16_bmp(small),
        "os2.bmp": os2_bmp(small),
        "top-down.bmp": top_down_bmp(small),
        "rle4.bmp": rle4_bmp(),
        "deep48.tif": cv2.imencode(".tif", deep)[1].tobytes(),
        "premultiplied.tif": premultiplied_tiff(small),
        "planar.tif": planar_tiff(small),
        "big-endian.tif": big_endian_tiff(grey.resize((40, 28))),
        "ycbcr.tif": saved(photo.convert("YCbCr"), "TIFF", compression="jpeg"),
        "white-is-zero.tif": tiff_of(small.convert("L"), 0),
        "lab.tif": tiff_of(small, 8),
        "palette.tif": saved(palette, "TIFF"),
        "grey-alpha.tif": saved(alpha.convert("LA"), "TIFF"),
        "fax3.tif": saved(photo.convert("1"), "TIFF", compression="group3"),
    }
    return files


def inset_gif(image: Image.Image) -> bytes:
    """A GIF whose frame covers a part of the screen."""
    file = saved(image, "GIF", interlace=0)
    at = file.index(b",", 13 + 3 * (2 << (file[10] & 7)))
    return file[:6] + struct.pack("<HH", 90, 60) + file[10 : at + 1] + struct.pack("<HH", 9, 6) + file[at + 5 :]


def _bmp(header: bytes, pixels: bytes, palette: bytes = b"") -> bytes:
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + palette + pixels


def rgb16_bmp(image: Image.Image) -> bytes:
    red, green, blue = (np.asarray(image).astype(np.uint16)[::-1, :, channel] >> 3 for channel in range(3))
    pixels = (red << 10 | green << 5 | blue).astype("<u2").tobytes()
    return _bmp(struct.pack("<IiiHHIIiiII", 40, *image.size, 1, 16, 0, len(pixels), 0, 0, 0, 0), pixels)


def os2_bmp(image: Image.Image) -> bytes:
    pixels = np.ascontiguousarray(np.asarray(image)[::-1, :, ::-1]).tobytes()
    return _bmp(struct.pack("<IHHHH", 12, *image.size, 1, 24), pixels)


def top_down_bmp(image: Image.Image) -> bytes:
    pixels = np.ascontiguousarray(np.asarray(image)[..., ::-1]).tobytes()
    header = struct.pack("<IiiHHIIiiII", 40, image.width, -image.height, 1, 24, 0, len(pixels), 0, 0, 0, 0)
    return _bmp(header, pixels)


def rle4_bmp() -> bytes:
    rows = b"".join(b"\x28" + bytes([17 * (row % 16)]) + b"\0\0" for row in range(28)) + b"\0\1"
    palette = b"".join(bytes([17 * i, 9 * i, i, 0]) for i in range(16))
    return _bmp(struct.pack("<IiiHHIIiiII", 40, 40, 28, 1, 4, 2, len(rows), 0, 0, 16, 0), rows, palette)


def tiff_of(image: Image.Image, photometric: int, **tags: tuple[int, ...]) -> bytes:
    """An uncompressed TIFF of 8 bits in one strip."""
    data, bands = image.tobytes(), len(image.getbands())
    entries = {256: (image.width,), 257: (image.height,), 258: (8,) * bands, 259: (1,), 262: (photometric,)}
    entries |= {273: (0,), 277: (bands,), 278: (image.height,), 279: (len(data),)}
    entries |= {int(name.removeprefix("tag_")): value for name, value in tags.items()}
    entries[273] = (len(tiff(entries)),)
    return tiff(entries, data)


def premultiplied_tiff(image: Image.Image) -> bytes:
    pixels = np.dstack([np.asarray(image) // 2, np.full(image.size[::-1], 128, np.uint8)])
    return tiff_of(Image.fromarray(pixels), 2, tag_338=(1,))


def planar_tiff(image: Image.Image) -> bytes:
    planes = [band.tobytes() for band in image.split()]
    entries = {256: (image.width,), 257: (image.height,), 258: (8, 8, 8), 259: (1,), 262: (2,), 277: (3,), 284: (2,)}
    entries |= {273: (0, 0, 0), 278: (image.height,), 279: tuple(map(len, planes))}
    start = len(tiff(entries))
    entries[273] = tuple(start + len(planes[0]) * number for number in range(3))
    return tiff(entries, b"".join(planes))


def big_endian_tiff(image: Image.Image) -> bytes:
    data, start = image.tobytes(), 8 + 2 + 12 * 9 + 4
    values = {256: image.width, 257: image.height, 258: 8, 259: 1, 262: 1, 273: start, 277: 1, 278: image.height}
    values[279] = len(data)
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in sorted(values.items()))
    return b"MM\0*" + struct.pack(">IH", 8, len(values)) + entries + bytes(4) + data


# ----------------------------------------------------------------------------------------------------- mutations


def _segments(data: bytes) -> list[tuple[int, int, int]]:
    return list(jpeg_segments(data))


def stray_between_segments(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    at = chance.choice([start - 4 for _, start, _ in _segments(data)] + [len(data) - 2])
    stray = bytes(chance.randrange(255) for _ in range(chance.randint(1, 12)))
    return data[:at] + chance.choice((stray, b"\xff" * len(stray), stray + b"\xff\0")) + data[at:]


def scan_header(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    """Other spectral selection and successive approximation, or other tables, in a scan's header."""
    _, start, end = chance.choice([segment for segment in _segments(data) if segment[0] == 0xDA])
    changed = bytearray(data)
    if chance.random() < 0.7:
        changed[end - 3 : end] = chance.choice((b"\0\0\0", b"\0\x3f\x01", b"\x01\x3f\0", b"\0\x3f\x10", b"\0\xff\0"))
    else:
        changed[chance.randrange(start, end)] = chance.choice((0, 1, 0x11, 0x10, 2, 3, 0x33, 0xFF))
    return bytes(changed)


def frame_header(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    """Another kind of frame, precision, sampling, component or table."""
    _, start, end = next(segment for segment in _segments(data) if 0xC0 <= segment[0] <= 0xCF and segment[0] != 0xC4)
    changed = bytearray(data)
    match chance.randrange(4):
        case 0:
            changed[start - 3] = chance.choice((0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC9, 0xCA, 0xCB))
        case 1:
            changed[start] = chance.choice((8, 12, 16, 2))
        case 2:
            at = chance.randrange(start + 6, end, 3) + 1
            changed[min(at, end - 1)] = chance.choice((0x11, 0x12, 0x21, 0x22, 0x41, 0x14, 0x31, 0x44, 0, 0x10, 0x55))
        case _:
            changed[chance.randrange(start + 5, end)] = chance.choice((0, 1, 2, 3, 4, 5, 82, 71, 66, 255))
    return bytes(changed)


def _segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def extra_segment(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    """A private, damaged, repeated or empty segment."""
    segments = _segments(data)
    _, start, end = chance.choice(segments)
    extra = chance.choice(
        (
            _segment(0xE0 + chance.randrange(16), chance.randbytes(chance.randrange(40))),
            _segment(0xFE, chance.randbytes(chance.randrange(40))),
            _segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([chance.choice((0, 1, 2, 3, 255))])),
            _segment(0xEE, b"Adobe\0"),
            _segment(0xE0, b"JFIF\0" + bytes([chance.randrange(4), chance.randrange(4), 0, 0, 1, 0, 1, 0, 0])),
            _segment(0xE0, b"JFXX\0\x10"),
            _segment(0xE2, b"ICC_PROFILE\0" + bytes([chance.randrange(4), chance.randrange(4)]) + b"icc"),
            _segment(0xE1, b"Exif\0\0" + tiff({0x112: (chance.randrange(10),)})),
            _segment(0xDD, struct.pack(">H", chance.choice((0, 1, 7)))),
            _segment(0xDC, struct.pack(">H", 20)),
            _segment(0xF0 + chance.randrange(14), b"jpg"),
            b"\xff\x01",
            b"\xff\xd0",
            b"\xff\xd8",
            b"\xff\xe5\0\0",
            b"\xff\xe5\0\1",
            b"\xff\xe5\xff\xff",
            data[start - 4 : end],
        )
    )
    return data[: start - 4] + extra + data[start - 4 :]


def entropy_end(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    """Cut a scan's coded pixels short, or lengthen them, and keep what follows."""
    segments = _segments(data)
    number = chance.choice([number for number, segment in enumerate(segments) if segment[0] == 0xDA])
    after = segments[number + 1][1] - 4 if number + 1 < len(segments) else data.rindex(b"\xff\xd9")
    begin = segments[number][2]
    if chance.random() < 0.5:
        return data[: chance.randrange(begin, after + 1)] + data[after:]
    stray = bytes(chance.randrange(255) for _ in range(chance.randint(1, 40)))
    return data[:after] + stray + data[after:]


def restart(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    """Drop, double or renumber a restart marker, or put stray bytes before it."""
    places = [at for at in range(len(data) - 1) if data[at] == 0xFF and 0xD0 <= data[at + 1] <= 0xD7]
    at = chance.choice(places) if places else chance.randrange(data.index(b"\xff\xda") + 14, len(data))
    other = bytes((0xFF, 0xD0 + chance.randrange(8)))
    return data[:at] + chance.choice((b"", data[at : at + 2] * 2, other, b"abc" + data[at : at + 2])) + data[at + 2 :]


def no_end(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    """Take a file's end away, and perhaps put something else in its place."""
    end = data.rindex(b"\xff\xd9") if data[:2] == b"\xff\xd8" else len(data) - chance.choice((1, 2, 4, 8, 12))
    return data[:end] + chance.choice((b"", b"\0", b"\xff", bytes(40), bytes(4000), chance.randbytes(30)))


def trailer(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    return data + chance.choice((b"\0", bytes(600), chance.randbytes(50), b"\r\n", data, chance.choice(others)))


def exif(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    """EXIF with an orientation somewhere in the file."""
    body = tiff({0x112: (chance.randrange(1, 9),)})
    if data[:8] == PNG_SIGNATURE:
        at = chance.choice([start - 8 for name, start, _ in png_chunks(data) if name != b"IHDR"])
        return data[:at] + png_chunk(b"eXIf", body) + data[at:]
    if data[:4] == b"RIFF":
        return _riff_with(data, chance, b"EXIF", chance.choice((b"", b"Exif\0\0")) + body)
    at = chance.choice([start - 4 for _, start, _ in _segments(data)])
    return data[:at] + _segment(0xE1, b"Exif\0\0" + body) + data[at:]


def private_chunk(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    """A chunk, or a directory's entry, that no reader knows, or a known one with wrong content."""
    body = chance.randbytes(chance.randrange(60))
    if data[:8] == PNG_SIGNATURE:
        starts = [start - 8 for _, start, _ in png_chunks(data)]
        names = (
            b"prIv tEXt zTXt iTXt iCCP gAMA cHRM sRGB tRNS PLTE PrIv acTL fcTL fdAT eXIf bKGD sBIT tIME IDAT cICP IEND"
        )
        chunk = png_chunk(chance.choice(names.split()), chance.choice((body, zlib.compress(body))))
        if chance.random() < 0.3:
            chunk = chunk[:-1] + bytes([chunk[-1] ^ 1])
        at = chance.choice(starts)
        return data[:at] + chunk + data[at:]
    if data[:4] == b"RIFF":
        name = chance.choice((b"prIv", b"ICCP", b"EXIF", b"XMP ", b"ALPH", b"VP8X", b"ANIM", b"ANMF", b"VP8 ", b"VP8L"))
        return _riff_with(data, chance, name, body)
    if data[:3] == b"GIF":
        at = 13 + (3 * (2 << (data[10] & 7)) if data[10] & 0x80 else 0)
        block = b"!" + bytes([chance.choice((0xFE, 0xFF, 0xF9, 0x01, 0x77))]) + bytes([len(body)]) + body + b"\0"
        return data[:at] + block + data[at:]
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, start)
    entries = [data[start + 2 + 12 * n : start + 14 + 12 * n] for n in range(count)]
    tag = chance.choice((65000, 700, 34675, 0x112, 269, 306, 285, 317, 338, 339, 266, 258))
    kind, number = chance.choice((1, 2, 3, 4, 5, 7, 9, 12, 13, 99)), chance.choice((0, 1, 2, 6, 70_000))
    entries.append(struct.pack(order + "HHII", tag, kind, number, chance.choice((0, 1, 2, 6, 8, 1 << 16, 6 << 16))))
    if chance.random() < 0.7:
        entries.sort(key=lambda entry: struct.unpack_from(order + "H", entry)[0])
    directory = struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4)
    return data[:4] + struct.pack(order + "I", len(data)) + data[8:] + directory


def _riff_with(data: bytes, chance: random.Random, name: bytes, body: bytes) -> bytes:
    places, at = [], 12
    while at < len(data):
        places.append(at)
        at += 8 + (struct.unpack_from("<I", data, at + 4)[0] + 1) // 2 * 2
    at = chance.choice([*places[1:], len(data)] if chance.random() < 0.9 else places)
    chunk = name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
    return riff(data[12:at] + chunk + data[at:])


def field(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    """Another small value in one entry of a TIFF's directory: type, count or value."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", data, 4)
    at = start + 2 + 12 * chance.randrange(struct.unpack_from(order + "H", data, start)[0])
    changed = bytearray(data)
    place, form = chance.choice(((2, "H"), (4, "I"), (8, "I"), (8, "H"), (8, "I")))
    struct.pack_into(
        order + form, changed, at + place, chance.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 34712, 65535))
    )
    return bytes(changed)


_OF_JPEG = (
    stray_between_segments,
    scan_header,
    frame_header,
    extra_segment,
    entropy_end,
    restart,
    no_end,
    trailer,
    exif,
)
_OF_FORMAT: dict[str, tuple[Mutation, ...]] = {
    "jpg": _OF_JPEG,
    "png": (private_chunk, private_chunk, exif, trailer, no_end),
    "webp": (private_chunk, private_chunk, exif, trailer, no_end),
    "gif": (private_chunk, trailer, no_end),
    "bmp": (trailer, no_end),
    "tif": (private_chunk, private_chunk, field, field, trailer, no_end),
}


@cache
def _mutations(base: str) -> dict[str, Mutation]:
    """The mutations of a format by name; those that are listed twice are drawn twice as often."""
    own = _OF_FORMAT[base.rpartition(".")[2]]
    named = {mutate.__name__: mutate for mutate in own}
    named |= {f"{mutate.__name__}2": mutate for mutate in own if own.count(mutate) > 1}
    return {name: mutate for name, mutate in MUTATIONS.items() if name != "wrong_suffix"} | named
