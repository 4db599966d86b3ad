"""Damage that files meet on disks and in transfers, or that an attacker does to them."""

import random
import re
import struct
from collections.abc import Callable

from tests.fuzz.formats import PNG_SIGNATURE, png_chunk
from tests.fuzz.special import HUGE

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
"""Sizes, counts and offsets at which decoders overflow."""
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
