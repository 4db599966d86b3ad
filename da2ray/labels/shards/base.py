"""What passes between the write stage, the shard formats and the readers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
import pyarrow as pa


class ShardFormat(StrEnum):
    """How a dataset stores its shards; `da2ray.labels.shards.formats` has the code of each."""

    PARQUET = "parquet"
    ZARR = "zarr"


MAPS: Final = {"mask": "mask", "far": "far class"}
"""Maps of small integers that a shard may hold beside a depth, and what messages call them. All are stored alike, and the index
has `<name>_offset`, `<name>_length` and `<name>_crc32` for each."""

FAR_BITS: Final = 1


@dataclass(frozen=True, slots=True)
class Range:
    """Where the bytes of a depth, or of a map beside it, lie in the shard, and their CRC-32 as zip and gzip define it."""

    offset: int
    length: int
    crc32: int


Ranges = Mapping[str, list[Range | None]]
"""The ranges of a shard's depths ("byte") and of each of MAPS, one for each row; None if the row has no such map."""


@dataclass(frozen=True, slots=True)
class Masks:
    """Maps of small integers beside the depths of a shard's rows: confidences, or another of MAPS.

    Attributes:
        bits: 1 to 8.
        levels: for each row uint8 (network_height, network_width), or None if it has no map. Confidences run from 0 (least
            sure) to 2^bits - 1 (surest).
    """

    bits: int
    levels: Sequence[np.ndarray | None]


@dataclass(frozen=True, slots=True)
class BuiltShard:
    """A shard that can be written in one PUT. The same rows and maps give the same bytes (invariant 5).

    Attributes:
        data: the whole object.
        rows: INDEX, in the plan's order, with byte ranges; `object` is still null, because the commit names the object.
        format: of `data`.
    """

    data: bytes
    rows: pa.Table
    format: ShardFormat
