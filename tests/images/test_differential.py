"""Pillow, cv2 and da2ray agree on mutants of images, except for the classes that have a reason. They agree about EXIF."""

import random
import struct
from collections import Counter

import pytest

from da2ray.images.decode import DecodeMode, Limits, decode
from da2ray.teachers.depth_anything.size import OfficialSize
from tests.fuzz import PNG_SIGNATURE, png_chunk, riff
from tests.images.differential import CLASSES, by_cv2, judge, verdicts
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


@pytest.mark.parametrize("kind", ["baseline.jpg", "rgb.png", "lossless.webp"])
def test_orientation_equals_cv2_for_generated_exif(kind: str) -> None:
    chance = random.Random(kind)  # noqa: S311 - not for secrets
    turned = Counter()
    for _ in range(EXIF_FILES // 3):
        data = with_exif(kind, chance)
        official = by_cv2(data)
        assert official is not None
        image = decode(data, size_rule=OfficialSize(), limits=Limits(min_side=1), mode=DecodeMode.EXACT)
        assert (image.pixels == official).all() if image.pixels.shape == official.shape else False, data.hex()
        turned[image.orientation] += 1
    assert set(turned) == set(range(1, 9))
