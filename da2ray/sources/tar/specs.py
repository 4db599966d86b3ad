"""The specification of a shard of tars: a range of one tar, or single members of some. JSON, because it is small and few."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from pydantic import TypeAdapter


@dataclass(frozen=True, slots=True)
class TarRange:
    """A range of a tar.

    Attributes:
        key, uri: of the tar.
        size, etag: as listed; None if not listed.
        begin, stop: the range in bytes; `stop` is None if it goes to the end, wherever that is.
        start: where its first header starts; None if nobody knows yet.
        most: samples to read at most; None for all.
        given: see `Extent`.
        repeated: keys of members that earlier shards of the tar have too.
        index: URI of an index of the tar; None if there is none.
    """

    key: str
    uri: str
    size: int | None
    etag: str | None
    begin: int
    stop: int | None
    start: int | None = None
    most: int | None = None
    given: dict[str, str] = field(default_factory=dict)
    repeated: tuple[str, ...] = ()
    index: str | None = None


@dataclass(frozen=True, slots=True)
class Pick:
    """A member by itself.

    Attributes:
        of: the range that has it.
        row: its row there.
        key: None if it is not known.
        offset, length: of its bytes; None if they are not known, or not one range.
        on: read also what follows in the range: the row stood for a place at which the archive was broken.
    """

    of: TarRange
    row: int
    key: str | None = None
    offset: int | None = None
    length: int | None = None
    on: bool = False


_SPEC: Final = TypeAdapter(TarRange | list[Pick])


def pack(spec: TarRange | Sequence[Pick]) -> bytes:
    return _SPEC.dump_json(spec if isinstance(spec, TarRange) else list(spec), exclude_defaults=True)


def unpack(spec: bytes) -> TarRange | list[Pick]:
    return _SPEC.validate_json(spec)


def of_range(spec: bytes) -> TarRange:
    """The range in a specification.

    Raises:
        TypeError: it has members by themselves.
    """
    found = unpack(spec)
    if not isinstance(found, TarRange):
        raise TypeError("this shard has members by themselves, which have no neighbours")
    return found
