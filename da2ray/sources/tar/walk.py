"""Walk the members of an archive, or of a range of it, from header to header.

A member belongs to the range that its first header starts in; pax headers and long names are headers of the member that follows
them. A range other than the first does not know where its first header lies, so it looks for the first block with the checksum of
a header. That may be a header of an archive that is itself a member: `Walk.extent` says from where to where the walk went, and
`da2ray.plan.joints` compares it with that of the range before.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from da2ray.errors import Reason
from da2ray.sources.tar import headers
from da2ray.sources.tar.bytes import ArchiveBytes
from da2ray.sources.tar.headers import BLOCK, Header, padded

SCAN: Final = 1 << 20
"""Bytes that are looked at together for a header."""
CARRIED: Final = ("path", "linkpath", "size")
"""The records of a global pax header that decide how later members are read."""
NO_END: Final = 1 << 62
BREAKS_OFF: Final = "the archive breaks off in a header"


@dataclass(frozen=True, slots=True)
class Entry:
    """A member.

    Attributes:
        first: where its first header starts.
        data, size: where its bytes lie; not those of a sparse file, which lie elsewhere.
        end: where the header of the next member may start.
        type: of its header.
        name, link: raw bytes.
        sparse: whether the file has holes, so that its bytes are not one range.
    """

    first: int
    data: int
    size: int
    end: int
    type: str
    name: bytes
    link: bytes
    sparse: bool

    @property
    def is_file(self) -> bool:
        """Whether it is a file: with data, with holes, or a hard link to one."""
        return self.type in "07" or self.type == headers.HARD_LINK or self.sparse


@dataclass(frozen=True, slots=True)
class Break:
    """A place at which the archive is broken.

    Attributes:
        at: where the first header of the broken member starts, or where a header should be.
        name: of the member whose bytes are cut off; None if its header is.
        data, size: where its bytes should lie.
    """

    at: int
    reason: Reason
    message: str
    name: bytes | None = None
    data: int = 0
    size: int = 0


@dataclass(slots=True)
class Walk:
    """The members of a range, in order: iterate over it once.

    Attributes:
        data: the archive's bytes.
        begin, stop: the range.
        start: where the first header of the range lies, if that is known; it may lie behind `stop`.
        carried: records of global pax headers before the range.

        at: where the walk is.

    After the walk:
        quiet: all blocks from here up to `first` are zeros.
        first: where the first header was found, or the first block that should be one; None if there is none.
        end: where the next header may start; None if the archive is broken, so that nobody knows.
    """

    data: ArchiveBytes
    begin: int
    stop: int = NO_END
    start: int | None = None
    carried: dict[str, str] = field(default_factory=dict)
    quiet: int = 0
    first: int | None = None
    end: int | None = None
    at: int = 0

    def __iter__(self) -> Iterator[Entry | Break]:
        self.at = self.begin
        self.quiet = self.begin if self.start is None else self.start
        at = self._find(self.begin) if self.start is None else self.start
        if self.start is None:
            self.first = at
        last: Entry | None = None
        while at is not None and at < self.stop:
            self.at = at
            block = self.data.take(at, BLOCK)
            if not block.strip(b"\0"):
                if len(block) < BLOCK:  # the end of the file, which a stream tells here
                    if last and self.data.size is not None and last.data + last.size > self.data.size:
                        yield _cut(last, self.data.size)
                    break
                at += BLOCK
                continue
            if self.first is None:
                self.first = at
            found = self._entry(at)
            yield found
            if isinstance(found, Entry):
                at, last = found.end, found
            elif found.reason is Reason.TRUNCATED:
                at = max(found.data + padded(found.size), self.data.size or 0)
                break
            else:
                at = self._find(at + BLOCK)
        self.end = at

    def _find(self, begin: int) -> int | None:
        """The first block at or behind `begin`, in the range, with the checksum of a header."""
        at = begin
        while at < self.stop:
            data = self.data.take(at, min(SCAN, self.stop - at))
            whole = len(data) // BLOCK * BLOCK
            blocks = np.frombuffer(data, np.uint8, whole).reshape(-1, BLOCK)
            place = next(
                (
                    int(number)
                    for number in headers.candidates(blocks)
                    if headers.parse(data[number * BLOCK : (number + 1) * BLOCK])
                ),
                None,
            )
            if self.first is None:
                self._hear(at, data if place is None else data[: place * BLOCK])
            if place is not None:
                return at + place * BLOCK
            at += len(data)
            if len(data) < SCAN:
                break
        return None

    def _hear(self, at: int, data: bytes) -> None:
        """Note the last block of `data`, which lies at `at`, that is not zeros."""
        if length := len(data.rstrip(b"\0")):
            self.quiet = at + padded(length)

    def _entry(self, first: int) -> Entry | Break:
        said: dict[str, bytes] = {}
        try:
            at, header = first, self._header(first)
            while header.type in headers.EXTENDED:
                at = self._extended(at, header, said)
                if header.type == headers.GLOBAL and not said:
                    return Entry(first, at, 0, at, headers.GLOBAL, b"", b"", sparse=False)
                header = self._header(at)
            found = self._member(first, at, header, said)
        except _BrokenError as error:
            return Break(first, error.reason, str(error))
        if self.data.size is not None and found.data + found.size > self.data.size:
            return _cut(found, self.data.size)
        return found

    def _header(self, at: int) -> Header:
        block = self.data.take(at, BLOCK)
        if len(block) < BLOCK:
            raise _BrokenError(Reason.TRUNCATED, BREAKS_OFF)
        header = headers.parse(block)
        if header is None:
            raise _BrokenError(Reason.CORRUPT, f"no header at byte {at}")
        return header

    def _extended(self, at: int, header: Header, said: dict[str, bytes]) -> int:
        """Add what a header at `at` says of the next member. Returns where the next header lies."""
        if header.size > headers.MOST_EXTENDED:
            raise _BrokenError(Reason.CORRUPT, f"a header of {header.size} bytes at byte {at}")
        data = self.data.take(at + BLOCK, header.size)
        if len(data) < header.size:
            raise _BrokenError(Reason.TRUNCATED, BREAKS_OFF)
        if header.type in headers.LONG:
            said[headers.LONG[header.type]] = data.partition(b"\0")[0]
            return at + BLOCK + padded(header.size)
        found = headers.records(data)
        if found is None:
            raise _BrokenError(Reason.CORRUPT, f"the pax header at byte {at} is broken")
        if header.type == headers.GLOBAL:
            self.carried |= {name: headers.text(found[name]) for name in CARRIED if name in found}
        else:
            said |= found
        return at + BLOCK + padded(header.size)

    def _member(self, first: int, at: int, header: Header, said: Mapping[str, bytes]) -> Entry:
        said = {name: value.encode() for name, value in self.carried.items()} | dict(said)
        size = header.size
        if "size" in said:
            if not said["size"].isdigit():
                raise _BrokenError(Reason.CORRUPT, f"the pax header of the member at byte {at} has no size")
            size = headers.data_size(header.type, int(said["size"]))
        data, more = at + BLOCK, header.more_sparse
        while more:
            block = self.data.take(data, BLOCK)
            more = len(block) == BLOCK and block[504] != 0
            data += BLOCK
        return Entry(
            first,
            data,
            size,
            data + padded(size),
            header.type,
            said.get("GNU.sparse.name") or said.get("path") or header.name,
            said.get("linkpath") or header.link,
            sparse=header.type == headers.SPARSE or headers.is_sparse(said),
        )


class _BrokenError(Exception):
    """The member cannot be read."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def _cut(found: Entry, size: int) -> Break:
    """The break in an archive of `size` bytes that ends within a member."""
    message = f"the archive breaks off: {found.data + found.size - size} bytes are missing"
    return Break(found.first, Reason.TRUNCATED, message, found.name, found.data, found.size)
