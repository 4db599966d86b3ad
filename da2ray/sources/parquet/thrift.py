"""Thrift's compact protocol, as far as Parquet needs it: pyarrow neither reads single pages nor tells where they lie.

A struct is read as a dictionary of its fields by their numbers, and written from (number, type, value) triples. Specification:
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

import struct
from collections.abc import Iterable
from typing import Any, Final

I32: Final = 5
I64: Final = 6
BINARY: Final = 8
LIST: Final = 9
STRUCT: Final = 12

_TRUE, _FALSE, _BYTE, _I16, _DOUBLE, _SET, _MAP = 1, 2, 3, 4, 7, 10, 11
_DEEPEST: Final = 32
"""Parquet's structs are seven deep at most."""


class ShortError(ValueError):
    """The data ends within a struct."""


def read_struct(data: bytes | memoryview, at: int = 0) -> tuple[dict[int, Any], int]:
    """Read the struct that begins at `at`: its fields, and where it ends.

    Raises:
        ShortError: the data ends before the struct does.
        ValueError: the data is not a struct.
    """
    reader = _Reader(memoryview(data), at)
    return reader.struct(0), reader.at


def write_struct(fields: Iterable[tuple[int, int, Any]]) -> bytes:
    """Write a struct of fields: (number, type, value) each, in ascending order.

    The value of a LIST is (type, values), that of a STRUCT again such triples.
    """
    out = bytearray()
    last = 0
    for number, kind, value in fields:
        out.append((number - last) << 4 | kind)
        out += _written(kind, value)
        last = number
    return bytes(out) + b"\0"


class _Reader:
    def __init__(self, data: memoryview, at: int) -> None:
        self.data = data
        self.at = at

    def struct(self, depth: int) -> dict[int, Any]:
        if depth > _DEEPEST:
            raise ValueError("nested too deep")
        fields: dict[int, Any] = {}
        number = 0
        while head := self.byte():
            step, kind = head >> 4, head & 15
            number = number + step if step else self.integer()
            fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self.value(kind, depth)
        return fields

    def value(self, kind: int, depth: int) -> Any:
        if kind in (_I16, I32, I64):
            return self.integer()
        if kind == BINARY:
            return self.take(self.varint())
        if kind == STRUCT:
            return self.struct(depth + 1)
        if kind in (LIST, _SET, _MAP):
            return self.pairs(depth + 1) if kind == _MAP else self.values(depth + 1)
        if kind == _DOUBLE:
            return struct.unpack("<d", self.take(8))[0]
        if kind in (_TRUE, _FALSE, _BYTE):  # in a list, a boolean is a byte
            return self.byte()
        raise ValueError(f"type {kind} is not known")

    def values(self, depth: int) -> list[Any]:
        if depth > _DEEPEST:
            raise ValueError("nested too deep")
        head = self.byte()
        size = self.varint() if head >> 4 == 15 else head >> 4
        if size > len(self.data) - self.at:  # each takes a byte at least
            raise ShortError(f"a list of {size}")
        return [self.value(head & 15, depth) for _ in range(size)]

    def pairs(self, depth: int) -> list[tuple[Any, Any]]:
        size = self.varint()
        if size > len(self.data) - self.at:
            raise ShortError(f"a map of {size}")
        kinds = self.byte() if size else 0
        return [(self.value(kinds >> 4, depth), self.value(kinds & 15, depth)) for _ in range(size)]

    def integer(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("an integer of more than 64 bits")

    def byte(self) -> int:
        if self.at >= len(self.data):
            raise ShortError("it ends early")
        self.at += 1
        return self.data[self.at - 1]

    def take(self, length: int) -> memoryview:
        if self.at + length > len(self.data):
            raise ShortError("it ends early")
        self.at += length
        return self.data[self.at - length : self.at]


def _written(kind: int, value: Any) -> bytes:
    if kind in (I32, I64):
        return _varint(value << 1 if value >= 0 else (-value << 1) - 1)
    if kind == BINARY:
        return _varint(len(value)) + value
    if kind == LIST:
        each, values = value
        head = bytes([len(values) << 4 | each]) if len(values) < 15 else bytes([15 << 4 | each]) + _varint(len(values))
        return head + b"".join(_written(each, one) for one in values)
    if kind == STRUCT:
        return write_struct(value)
    raise ValueError(f"type {kind} is not written")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
