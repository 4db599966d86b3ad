"""The headers of tar archives: a pure function from 512 bytes to what they say, and the records of pax headers.

The forms are those of POSIX.1-2001 (ustar and pax), of GNU tar (long names, base-256 numbers, sparse files) and of the tar of
Unix version 7. https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html#tag_20_94_13,
https://www.gnu.org/software/tar/manual/html_node/Standard.html
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

BLOCK: Final = 512
MOST_EXTENDED: Final = 16 << 20
"""Bytes of a pax header or a long name at most; GNU tar writes a few hundred, extended attributes some kilobytes."""

HARD_LINK: Final = "1"
SPARSE: Final = "S"
LOCAL: Final = "x"
GLOBAL: Final = "g"
LONG: Final = {"L": "path", "K": "linkpath"}
"""GNU tar's headers of long names, and the pax records that say the same."""
EXTENDED: Final = frozenset({LOCAL, GLOBAL, *LONG, "X"})
"""Headers that say something about the next member. `X` is Solaris's name for `x`."""
_WITHOUT_DATA: Final = frozenset("123456")
"""Links, devices, folders and pipes. They have no data, whatever their size says."""
_REGULAR: Final = frozenset("07")
_CHECKSUM: Final = slice(148, 156)
_CHECKSUM_BYTES: Final = np.isin(np.arange(256), [*b"01234567 \0"])
_RECORD: Final = re.compile(rb"(\d{1,20}) ([^=]+)=", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Header:
    """What one block says.

    Attributes:
        type: the type flag; `0` for the NUL of old archives, and `5` for an old folder, whose name ends in a slash.
        size: of the data that follow, in bytes, 0 if none do. Pax records may override it.
        name, link: raw bytes.
        more_sparse: another block of the map of a sparse file follows (GNU).
    """

    type: str
    size: int
    name: bytes
    link: bytes
    more_sparse: bool = False

    @property
    def is_regular(self) -> bool:
        """Whether it is a file with its data. A sparse one is not."""
        return self.type in _REGULAR


def parse(block: bytes) -> Header | None:
    """The header in a block of 512 bytes; None if the block does not have the checksum of a header."""
    if len(block) != BLOCK or not has_checksum(block):
        return None
    size = number(block[124:136])
    if size is None or size < 0:
        return None
    name = _text(block[:100])
    magic = block[257:265]
    if magic.startswith(b"ustar\0") and (prefix := _text(block[345:500])):
        name = prefix + b"/" + name
    flag = chr(block[156]) if block[156] else "0"
    if flag == "0" and name.endswith(b"/"):
        flag = "5"
    return Header(flag, data_size(flag, size), name, _text(block[157:257]), flag == SPARSE and block[482] != 0)


def has_checksum(block: bytes) -> bool:
    """Whether a block of 512 bytes has the checksum of a header. Some old programs summed up signed bytes."""
    wanted = number(block[_CHECKSUM])
    if wanted is None:
        return False
    values = np.frombuffer(block, np.uint8)
    field = values[_CHECKSUM]
    unsigned = int(values.sum(dtype=np.int64) - field.sum(dtype=np.int64)) + 8 * ord(" ")
    # A block of zeros ends an archive; its field of zeros is not the sum of eight blanks.
    if wanted == unsigned:
        return True
    high = int((values > 127).sum()) - int((field > 127).sum())
    return wanted == unsigned - 256 * high


def candidates(blocks: np.ndarray) -> np.ndarray:
    """The numbers of the blocks, uint8 (N, 512), that may be headers: their checksum's field has octal digits only."""
    fields = _CHECKSUM_BYTES[blocks[:, _CHECKSUM]].all(axis=1)
    return np.flatnonzero(fields & blocks.any(axis=1))


def data_size(flag: str, size: int) -> int:
    """The bytes of data behind a header of this type that states a size."""
    return 0 if flag in _WITHOUT_DATA else size


def number(field: bytes) -> int | None:
    """A number in octal digits, or in base 256 if its first byte is 0x80 or 0xff; None if it is neither. An empty one is 0."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:] if field[0] == 0x80 else field, "big", signed=field[0] == 0xFF)
    digits = field.partition(b"\0")[0].strip()
    try:
        # int() would take signs, underscores and blanks too.
        return int(digits, 8) if not digits.strip(b"01234567") else None
    except ValueError:
        return 0


def padded(size: int) -> int:
    """The bytes that data of a size take in an archive: whole blocks."""
    return -(-size // BLOCK) * BLOCK


def records(data: bytes) -> dict[str, bytes] | None:
    """The records of a pax header; None if its data are not such records."""
    found: dict[str, bytes] = {}
    at = 0
    while at < len(data) and data[at]:
        head = _RECORD.match(data, at)
        if head is None:
            return None
        end = at + int(head[1])
        if end > len(data) or end <= head.end() or data[end - 1] != ord("\n"):
            return None
        found[head[2].decode("utf-8", "backslashreplace")] = data[head.end() : end - 1]
        at = end
    return found


def is_sparse(said: Mapping[str, bytes]) -> bool:
    """Whether pax records describe a sparse file, in any of GNU tar's three forms of them."""
    return any(name.startswith("GNU.sparse.") for name in said)


def text(name: bytes) -> str:
    """A name as text, with escapes for bytes that are not UTF-8."""
    return name.decode("utf-8", "backslashreplace")


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]
