"""Pillow, cv2 and da2ray agree on mutants of images, except for the classes that have a reason. They agree about EXIF."""

import io
import math
import random
import struct
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from da2ray.images.decode import DecodeMode, Limits, decode
from da2ray.images.headers import read_focal, read_header
from da2ray.teachers.depth_anything.size import OfficialSize
from tests.fuzz.formats import PNG_SIGNATURE, png_chunk, riff
from tests.images.differential import CLASSES, by_cv2, by_pillow, judge, verdicts
from tests.images.mutants import bases

MUTANTS, EXIF_FILES = 2000, 1200


def test_every_disagreement_about_a_mutant_has_a_reason() -> None:
    found = list(verdicts(0, range(MUTANTS)))
    assert [verdict for verdict in found if verdict.kind not in CLASSES] == []
    counts = Counter(verdict.kind for verdict in found)
    assert counts["same"] > MUTANTS // 4
    assert counts["refused"] > MUTANTS // 8
    assert counts["jpeg damaged pixels"] < MUTANTS // 20


@pytest.mark.parametrize(
    "name", sorted(name for name in bases() if name.endswith((".jpg", ".png", ".webp", ".gif", ".bmp")))
)
def test_every_whole_file_equals_cv2(name: str) -> None:
    assert judge(bases()[name])[0] == "same"


def jpeg(at: int, *segments: bytes) -> bytes:
    data = bases()["baseline.jpg"]
    places = (2, 20, data.index(b"\xff\xc0"), data.index(b"\xff\xda"))
    return data[: places[at]] + b"".join(segments) + data[places[at] :]


HARMLESS = {
    "scan parameters of zeros": lambda data: data.replace(b"\0\x3f\0", b"\0\0\0"),
    "stray bytes after a segment": lambda data: data[:20] + b"stray" + data[20:],
    "stray bytes before the scan": lambda data: data.replace(b"\xff\xda", b"stray\xff\xda", 1),
    "stray bytes before the end": lambda data: data[:-2] + b"stray" + data[-2:],
    "JFIF 9.9": lambda data: data.replace(b"JFIF\0\1\1", b"JFIF\0\x09\x09"),
    "fill bytes": lambda data: data.replace(b"\xff\xda", b"\xff\xff\xff\xff\xda", 1),
    "no end but zeros": lambda data: data[:-2] + bytes(40),
    "stray and scan parameters": lambda data: data.replace(b"\0\x3f\0", b"\0\0\0")[:-2] + b"stray\xff\xd9",
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_warnings_that_cost_no_pixels_cost_no_row(kind: str) -> None:
    data = bases()["baseline.jpg"]
    assert HARMLESS[kind](data) != data
    assert judge(HARMLESS[kind](data))[0] == "same"


# ---------------------------------------------------------------------------------------------------------- EXIF

TEXT, FRACTION, UNKNOWN, ORIENTATION = 0x10F, 0x11A, 0x9999, 0x112


def exif(chance: random.Random) -> bytes:
    """An EXIF block of any shape: both byte orders, other tags around the orientation, odd types and counts, cut off anywhere."""
    order = chance.choice("<>")
    entries = []
    for _ in range(chance.randrange(4)):
        tag, kind = chance.choice(((TEXT, 2), (0x131, 2), (FRACTION, 5), (0x128, 3), (UNKNOWN, 7), (0x8769, 4)))
        value = struct.pack(order + "I", chance.choice((8, 30, 60, 5000, 2**32 - 1)))
        entries.append(struct.pack(order + "HHI", tag, kind, chance.choice((1, 4, 5, 20, 900))) + value)
    for _ in range(chance.choice((1, 1, 1, 2))):
        kind, count = chance.choice((3, 3, 3, 3, 4, 1, 8, 7, 99)), chance.choice((1, 1, 1, 0, 2, 9))
        value = struct.pack(order + "H", chance.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 300))) + bytes(2)
        place = chance.randrange(len(entries) + 1)
        entries.insert(place, struct.pack(order + "HHI", ORIENTATION, kind, count) + value)
    mark = chance.choice((42, 42, 42, 42, 42, 43))
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", mark, 8)
    count = len(entries) + chance.choice((0, 0, 0, 1, 40))
    block = head + struct.pack(order + "H", count) + b"".join(entries) + chance.choice((bytes(4), bytes(100), b""))
    return block[: chance.randrange(len(block))] if chance.random() < 0.1 else block


def with_exif(kind: str, chance: random.Random) -> bytes:
    """An image with one to three EXIF blocks in legal places."""
    blocks = [exif(chance) for _ in range(chance.choice((1, 1, 2, 3)))]
    data = bases()[f"{kind}"]
    if kind.endswith("jpg"):
        other = b"http://ns.adobe.com/xap/1.0/\0<x/>"
        bodies = [b"Exif\0\0" + block for block in blocks] + [other]
        chance.shuffle(bodies)
        segments = [b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body for body in bodies]
        return jpeg(chance.randrange(4), *segments)
    if kind.endswith("png"):
        assert data.startswith(PNG_SIGNATURE)
        chunks = b"".join(png_chunk(b"eXIf", block) for block in blocks)
        at = chance.choice((33, data.index(b"IEND") - 4))
        return data[:at] + chunks + data[at:]
    flags = b"VP8X" + struct.pack("<I", 10) + bytes([chance.choice((8, 8, 8, 0)), 0, 0, 0]) + b"\x47\0\0\x2f\0\0"
    chunks = b"".join(b"EXIF" + struct.pack("<I", len(block)) + block + bytes(len(block) % 2) for block in blocks)
    image = data[12:]
    return riff(flags + (chunks + image if chance.random() < 0.2 else image + chunks))


def with_orientation(name: str, chance: random.Random) -> bytes:
    """A TIFF with one or two orientations of odd types and counts, in a directory that need not be in order."""
    data = bases()[name]
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, start)
    entries = [data[at : at + 12] for at in range(start + 2, start + 2 + 12 * count, 12)]
    for _ in range(chance.choice((1, 1, 1, 2))):
        kind, number = chance.choice((3, 3, 3, 3, 4, 1, 8, 6, 9, 7, 99)), chance.choice((1, 1, 1, 1, 0, 2, 9))
        value = chance.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9))
        stored = struct.pack(order + {1: "B", 6: "B", 4: "I", 9: "I"}.get(kind, "H"), value).ljust(4, b"\0")
        entries.append(struct.pack(order + "HHI", ORIENTATION, kind, number) + stored)
    if chance.random() < 0.8:
        entries.sort(key=lambda entry: struct.unpack_from(order + "H", entry)[0])
    directory = struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4)
    return data[:4] + struct.pack(order + "I", len(data)) + data[8:] + directory


TIFFS = ("big-endian.tif", "planar.tif", "palette.tif", "deep48.tif", "ycbcr.tif")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["baseline.jpg", "rgb.png", "lossless.webp", "tif"])
def test_orientation_equals_cv2_for_generated_exif_and_pillow_nearly_always_agrees(kind: str) -> None:
    chance = random.Random(kind)  # noqa: S311 - not for secrets
    turned, agreed = Counter(), 0
    for _ in range(EXIF_FILES // 4):
        data = with_orientation(chance.choice(TIFFS), chance) if kind == "tif" else with_exif(kind, chance)
        official, pillow = by_cv2(data), by_pillow(data)
        assert official is not None
        image = decode(data, size_rule=OfficialSize(), limits=Limits(min_side=1), mode=DecodeMode.EXACT)
        assert np.array_equal(image.pixels, official), data.hex()
        turned[image.orientation] += 1
        agreed += pillow is not None and np.array_equal(pillow, official)
    assert set(turned) == set(range(1, 9))
    # `images/exif.py` lists where they differ; half of these blocks are odd on purpose.
    assert agreed > EXIF_FILES // 4 * 0.4


FILM, FOCAL, ACROSS, RESOLUTION, UNIT = 0xA405, 0x920A, 0xA002, 0xA20E, 0xA210


def camera_exif(chance: random.Random) -> bytes:
    """An EXIF block with camera tags: some are missing, in other legal types, or 0, and the directory may lie anywhere."""
    order = chance.choice("<>")
    values: dict[int, tuple[int, tuple[int, ...]]] = {
        FILM: (chance.choice((3, 3, 4)), (chance.choice((0, 14, 24, 26, 50, 200)),)),
        FOCAL: (5, (chance.choice((0, 42, 500, 5000)), chance.choice((10, 10, 1, 0)))),
        ACROSS: (chance.choice((3, 4)), (chance.choice((0, 72, 4000, 6000)),)),
        RESOLUTION: (5, (chance.choice((0, 4000, 60_000)), chance.choice((1, 10, 0)))),
        UNIT: (3, (chance.choice((1, 2, 3)),)),
    }
    kept = sorted(tag for tag in values if chance.random() < 0.7)
    start = 8 + 2 + 12 + 4 + chance.choice((0, 6, 40))
    behind = start + 2 + 12 * len(kept) + 4
    directory, fractions = struct.pack(order + "H", len(kept)), b""
    for tag in kept:
        kind, value = values[tag]
        directory += struct.pack(order + "HHI", tag, kind, 1)
        if kind == 5:
            directory += struct.pack(order + "I", behind + len(fractions))
            fractions += struct.pack(order + "II", *value)
        else:
            directory += struct.pack(order + {3: "H2x", 4: "I"}[kind], *value)
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, 8)
    first = struct.pack(order + "HHHII", 1, 0x8769, 4, 1, start) + bytes(4)
    return (head + first).ljust(start, b"\0") + directory + bytes(4) + fractions


def focal_of_pillow(data: bytes) -> float | None:
    """The focal length in pixels of the tags that Pillow reads."""
    image = Image.open(io.BytesIO(data))
    # A fraction with denominator 0 is NaN.
    tags = {tag: float(value) for tag, value in image.getexif().get_ifd(0x8769).items() if not math.isnan(value)}
    diagonal = math.hypot(*image.size)
    if tags.get(FILM):
        focal = tags[FILM] * diagonal / math.hypot(36, 24)
    elif tags.get(ACROSS, image.width) and tags.get(UNIT, 2) in {2, 3}:
        per_mm = tags.get(RESOLUTION, 0) / {2: 25.4, 3: 10}[int(tags.get(UNIT, 2))]
        focal = tags.get(FOCAL, 0) * per_mm * image.width / tags.get(ACROSS, image.width)
    else:
        return None
    return focal if 0.05 * diagonal <= focal <= 50 * diagonal else None


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_focal_lengths_are_those_of_pillows_tags_for_generated_exif(format: str) -> None:  # noqa: A002
    chance = random.Random(format)  # noqa: S311 - not for secrets
    image, known = Image.new("RGB", (72, 48)), 0
    for _ in range(EXIF_FILES // 4):
        file = io.BytesIO()
        image.save(file, format, exif=b"Exif\0\0" + camera_exif(chance))
        data = file.getvalue()
        expected = focal_of_pillow(data)
        assert read_focal(data, read_header(data)) == (None if expected is None else pytest.approx(expected))
        known += expected is not None
    assert EXIF_FILES // 16 < known < EXIF_FILES // 4
