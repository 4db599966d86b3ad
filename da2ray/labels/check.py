"""One shard's object against its index rows: everything that a reader of either relies on."""

import itertools
import zlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from da2ray.labels.commits import Commit, object_key
from da2ray.labels.schema import INDEX, Status
from da2ray.labels.shard import read_mask, read_shard, read_value

_OF_LABELS: Final = ("network_height", "network_width", "byte_offset", "byte_length", "byte_crc32", "scale", "offset")
_OF_MASKS: Final = ("mask_offset", "mask_length", "mask_crc32", "mask_bits")


class Wrong(StrEnum):
    """What can be wrong; the word is what `da2ray verify` prints."""

    COMMIT = "commit"
    """It cannot be read, or contradicts itself."""
    OBJECT_MISSING = "object_missing"
    SIZE = "size"
    CHECKSUM = "checksum"
    OBJECT = "object"
    """It does not open as a Parquet or Zarr shard."""
    ROWS = "rows"
    """The object's rows are not those of the index."""
    VALUE = "value"
    """The byte range of a label or a mask is not what the index says, or does not decode."""
    INDEX = "index"
    """The newest snapshot has other rows than the commit they were folded from."""
    PART = "part"
    """A part of the newest snapshot's index is missing or corrupt."""
    SNAPSHOT = "snapshot"
    """The newest snapshot cannot be read, or contradicts its parts."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a shard; `detail` is for people."""

    what: Wrong
    detail: str


def check_commit(commit: Commit, format: str) -> list[Fault]:  # noqa: A002 - the option's name
    """What in a commit contradicts the rest of it."""
    rows = commit.rows
    labelled = pc.equal(rows["status"], Status.LABELLED.value)
    columns = {
        "plan": pa.repeat(commit.plan, len(rows)),
        "shard": pa.repeat(commit.shard, len(rows)),
        "row": pa.array(range(len(rows)), pa.int32()),
        "fingerprint": pa.repeat(commit.fingerprint, len(rows)),
        "object": pc.if_else(labelled, pa.scalar(commit.object), pa.scalar(None, pa.string())).combine_chunks(),
    }
    wrong = [name for name, values in columns.items() if not rows[name].combine_chunks().equals(values)]
    if commit.object != object_key(commit.plan, commit.shard, commit.attempt, format):
        wrong.append("attempt")
    if len(pc.unique(rows["key"])) != len(rows):
        wrong.append("key")
    wrong += [name for name in _OF_LABELS if rows[name].filter(labelled).null_count]
    masked = pc.is_valid(rows["mask_offset"])
    wrong += [name for name in _OF_MASKS if not pc.is_valid(rows[name]).equals(masked)]
    if pc.any(pc.and_(masked, pc.invert(labelled))).as_py():
        wrong.append("mask_offset")
    if not pc.is_valid(rows["byte_offset"]).equals(labelled):
        wrong.append("status")
    return [Fault(Wrong.COMMIT, f"it contradicts itself in {', '.join(wrong)}")] if wrong else []


def check_object(commit: Commit, data: bytes, format: str) -> list[Fault]:  # noqa: A002 - the option's name
    """What is wrong with a shard's whole object, by its commit."""
    if len(data) != commit.size:
        # Nothing in it can be believed, and all else would only repeat it.
        return [Fault(Wrong.SIZE, f"{len(data):,} bytes, committed {commit.size:,}")]
    faults = []
    found = f"{zlib.crc32(data):08x}"
    if (commit.checksum.algorithm, commit.checksum.value) != ("crc32", found):
        faults.append(
            Fault(Wrong.CHECKSUM, f"crc32 {found}, committed {commit.checksum.algorithm} {commit.checksum.value}")
        )
    try:
        own = read_shard(data, format)
    except ValueError as error:
        return [*faults, Fault(Wrong.OBJECT, str(error)), *check_values(commit.rows, data, format)]
    return [*faults, *_check_rows(commit.rows, own), *check_values(commit.rows, data, format, own)]


def check_values(rows: pa.Table, data: bytes, format: str, own: pa.Table | None = None) -> list[Fault]:  # noqa: A002
    """Whether each labelled row's range decodes, and is what the shard itself (`own`, see `read_shard`) has there."""
    labelled = rows.filter(pc.equal(rows["status"], Status.LABELLED.value))
    values: dict[int, tuple[pa.Scalar, pa.Scalar]] = {}
    if own is not None:
        pairs = zip(*(itertools.chain(*own[name].chunks) for name in ("value", "mask")), strict=True)
        values = dict(zip(own["row"].to_pylist(), pairs, strict=True))
    broken: list[str] = []
    for row in labelled.select(["key", "row", *_OF_LABELS, *_OF_MASKS]).to_pylist():
        try:
            value, mask = values.get(row["row"], (None, None))
            size = row["network_height"], row["network_width"]
            read_value(_range(row, data, "byte", value), *size, format)
            if row["mask_offset"] is not None:
                read_mask(_range(row, data, "mask", mask), *size, row["mask_bits"], format)
        except (TypeError, ValueError) as error:  # not only bytes but all the numbers may be wrong
            broken.append(f"{row['key']!r}: {error}")
    return [Fault(Wrong.VALUE, f"{len(broken)} of {len(labelled)} labels, first {broken[0]}")] if broken else []


def _range(row: dict[str, Any], data: bytes, prefix: str, own: pa.Scalar | None) -> bytes:
    """The bytes of a label ("byte") or a mask ("mask"), which the shard itself holds as `own`."""
    offset, length, crc32 = (row[f"{prefix}_{name}"] for name in ("offset", "length", "crc32"))
    value = data[offset : offset + length]
    if len(value) != length or zlib.crc32(value) != crc32:
        raise ValueError("its bytes are not those of the index")
    if own is not None and own.as_buffer() != value:
        raise ValueError("the shard itself holds another label")
    return value


def _check_rows(rows: pa.Table, own: pa.Table) -> list[Fault]:
    # Zarr shards hold labelled samples only, and say so by having no such column.
    expected = rows if "status" in own.column_names else rows.filter(pc.equal(rows["status"], Status.LABELLED.value))
    if len(own) != len(expected):
        return [Fault(Wrong.ROWS, f"{len(own)} rows, committed {len(expected)}")]
    names = [name for name in own.column_names if name not in ("value", "mask")]
    differing = [name for name in names if not same(own[name], expected[name])]
    return [Fault(Wrong.ROWS, f"it differs from the index in {', '.join(differing)}")] if differing else []


def same(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    """Whether two columns hold the same bits: NaN equals itself, 0 is not -0."""
    one, other = one.combine_chunks(), other.combine_chunks()
    if one.type == other.type == pa.float32():
        one, other = one.view(pa.uint32()), other.view(pa.uint32())
    return one.equals(other)


def differing_columns(one: pa.Table, other: pa.Table) -> list[str]:
    """Columns in which two tables of schema INDEX differ; "rows" where they are not equally long."""
    if len(one) != len(other):
        return ["rows"]
    return [name for name in INDEX.names if not same(one[name], other[name])]
