"""Compare one shard's object with its index rows: everything that a reader of either relies on."""

import itertools
import zlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from da2ray.errors import Status
from da2ray.labels.commits import Commit, object_key, own_rows
from da2ray.labels.schema import INDEX, KEPT
from da2ray.labels.shards.base import FAR_BITS, MAPS, ShardFormat
from da2ray.labels.shards.formats import read_mask, read_value
from da2ray.labels.shards.whole import read_shard

_OF_LABELS: Final = ("network_height", "network_width", "byte_offset", "byte_length", "byte_crc32", "scale", "offset")
_OF_MAPS: Final = {name: [f"{name}_offset", f"{name}_length", f"{name}_crc32"] for name in MAPS}
_OF_MAPS["mask"].append("mask_bits")

FAR_TOLERANCE: Final = 1e-4
"""Allowed difference between `far_share` and the mean of the stored map. A float32 mean on any device is closer; one pixel of
100 x 100 is not."""


class Wrong(StrEnum):
    """What can be wrong, in the word that `da2ray verify` prints."""

    COMMIT = "commit"
    """The commit cannot be read, or contradicts itself."""
    OBJECT_MISSING = "object_missing"
    SIZE = "size"
    CHECKSUM = "checksum"
    OBJECT = "object"
    """The object does not open as a Parquet or Zarr shard."""
    ROWS = "rows"
    """The object's rows are not those of the index."""
    VALUE = "value"
    """The byte range of a label or of a map beside it is not what the index says, or does not decode."""
    EXTENT = "extent"
    """The shard is a range of a file, and does not begin where the one before it ended."""
    INDEX = "index"
    """The newest snapshot has other rows than the commit they were folded from."""
    PART = "part"
    """A part of a snapshot's index is missing or corrupt."""
    SNAPSHOT = "snapshot"
    """A snapshot cannot be read, or contradicts its parts."""
    PLAN = "plan"
    """A plan cannot be read, or contradicts itself."""
    RUN = "run"
    """The configuration or the progress of a run cannot be read. No label depends on them."""
    LEASE = "lease"
    """A lease cannot be read. It binds nobody."""
    VIEW = "view"
    """A view cannot be read, or its list of rows or its snapshot is missing or another one."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a shard; `detail` is for people."""

    what: Wrong
    detail: str


def check_commit(commit: Commit, format: ShardFormat) -> list[Fault]:  # noqa: A002 - the option's name
    """The columns of a commit that contradict the rest of it."""
    rows = commit.rows
    labelled = pc.equal(rows["status"], Status.LABELLED.value)
    kept = pc.equal(own_rows(commit)["status"], KEPT)
    columns = {
        "plan": pa.repeat(commit.plan, len(rows)),
        "shard": pa.repeat(commit.shard, len(rows)),
        "row": pa.array(range(len(rows)), pa.int32()),
        "fingerprint": pc.if_else(kept, rows["fingerprint"], commit.fingerprint).combine_chunks(),
        "object": pc.if_else(
            labelled, pc.if_else(kept, rows["object"], commit.object), pa.scalar(None, pa.string())
        ).combine_chunks(),
    }
    wrong = [name for name, values in columns.items() if not rows[name].combine_chunks().equals(values)]
    if commit.object != object_key(commit.plan, commit.shard, commit.attempt, format):
        wrong.append("attempt")
    if len(pc.unique(rows["key"])) != len(rows):
        wrong.append("key")
    wrong += [name for name in _OF_LABELS if rows[name].filter(labelled).null_count]
    for first, *others in _OF_MAPS.values():
        there = pc.is_valid(rows[first])
        wrong += [name for name in others if not pc.is_valid(rows[name]).equals(there)]
        if pc.any(pc.and_(there, pc.invert(labelled))).as_py():
            wrong.append(first)
    if not pc.is_valid(rows["image_offset"]).equals(pc.is_valid(rows["image_length"])):
        wrong.append("image_length")
    if not pc.is_valid(rows["byte_offset"]).equals(labelled):
        wrong.append("status")
    return [Fault(Wrong.COMMIT, f"it contradicts itself in {', '.join(wrong)}")] if wrong else []


def check_object(commit: Commit, data: bytes, format: ShardFormat) -> list[Fault]:  # noqa: A002 - the option's name
    """What is wrong with a shard's object, according to its commit."""
    if len(data) != commit.size:
        # Nothing in the object can be believed, and further checks would only repeat that.
        return [Fault(Wrong.SIZE, f"{len(data):,} bytes, committed {commit.size:,}")]
    faults = []
    found = f"{zlib.crc32(data):08x}"
    if (commit.checksum.algorithm, commit.checksum.value) != ("crc32", found):
        faults.append(
            Fault(Wrong.CHECKSUM, f"crc32 {found}, committed {commit.checksum.algorithm} {commit.checksum.value}")
        )
    rows = own_rows(commit)
    try:
        own = read_shard(data, format)
    except ValueError as error:
        return [*faults, Fault(Wrong.OBJECT, str(error)), *check_values(rows, data, format)]
    return [*faults, *_check_rows(rows, own), *check_values(rows, data, format, own)]


def check_values(rows: pa.Table, data: bytes, format: ShardFormat, own: pa.Table | None = None) -> list[Fault]:  # noqa: A002
    """Check that each labelled row's range decodes and equals what the shard itself has (`own`, from `read_shard`)."""
    labelled = rows.filter(pc.equal(rows["status"], Status.LABELLED.value))
    values: dict[int, dict[str, pa.Scalar]] = {}
    if own is not None:
        found = zip(own["row"].to_pylist(), *(own[name] for name in ("value", *MAPS)), strict=True)
        values = {row: dict(zip(("byte", *MAPS), each, strict=True)) for row, *each in found}
    broken: list[str] = []
    columns = ["key", "row", "far_share", *_OF_LABELS, *itertools.chain(*_OF_MAPS.values())]
    for row in labelled.select(columns).to_pylist():
        try:
            _check_row(row, data, format, values.get(row["row"], {}))
        except (TypeError, ValueError) as error:  # the numbers of a row may be as wrong as its bytes
            broken.append(f"{row['key']!r}: {error}")
    return [Fault(Wrong.VALUE, f"{len(broken)} of {len(labelled)} labels, first {broken[0]}")] if broken else []


def _check_row(row: dict[str, Any], data: bytes, format: ShardFormat, own: dict[str, pa.Scalar]) -> None:  # noqa: A002
    """Decode the label and the maps beside it. `own` holds them as the shard itself has them; it is empty if that is not known.

    Raises:
        ValueError, TypeError: a map is broken, missing or another one, or `far_share` belongs to another map.
    """
    size = row["network_height"], row["network_width"]
    read_value(_range(row, data, "byte", own), *size, format)
    far_share = 0.0
    for name, what in MAPS.items():
        if row[f"{name}_offset"] is not None:
            bits = FAR_BITS if name == "far" else row["mask_bits"]
            levels = read_mask(_range(row, data, name, own), *size, bits, format)
            far_share = float(levels.mean()) if name == "far" else far_share
        elif own and own[name].is_valid:
            raise ValueError(f"the shard itself holds a {what}, but the index has none")
    share = row["far_share"]
    if row["far_offset"] is None and share is None:
        return  # the teacher has no far class
    if share is None or not abs(share - far_share) <= FAR_TOLERANCE:  # true for NaN too
        shown = "missing" if share is None else f"{share:.6g}"
        raise ValueError(f"far_share is {shown}, but the mean of its far class is {far_share:.6g}")


def _range(row: dict[str, Any], data: bytes, prefix: str, own: dict[str, pa.Scalar]) -> bytes:
    """The bytes of a label ("byte") or of one of MAPS, checked."""
    offset, length, crc32 = (row[f"{prefix}_{name}"] for name in ("offset", "length", "crc32"))
    value = data[offset : offset + length]
    if len(value) != length or zlib.crc32(value) != crc32:
        raise ValueError(f"the bytes of its {MAPS.get(prefix, 'depth')} do not match the index")
    if own and own[prefix].as_buffer() != value:
        raise ValueError(f"the shard itself holds another {MAPS.get(prefix, 'depth')}")
    return value


def _check_rows(rows: pa.Table, own: pa.Table) -> list[Fault]:
    # Zarr shards hold labelled samples only, and have no column `status`.
    expected = rows if "status" in own.column_names else rows.filter(pc.equal(rows["status"], Status.LABELLED.value))
    if len(own) != len(expected):
        return [Fault(Wrong.ROWS, f"{len(own)} rows, committed {len(expected)}")]
    names = [name for name in own.column_names if name not in ("value", *MAPS)]
    differing = [name for name in names if not same(own[name], expected[name])]
    return [Fault(Wrong.ROWS, f"it differs from the index in {', '.join(differing)}")] if differing else []


def same(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    """Whether two columns hold the same bits: NaN equals itself, and 0 differs from -0."""
    one, other = one.combine_chunks(), other.combine_chunks()
    if one.type == other.type == pa.float32():
        one, other = one.view(pa.uint32()), other.view(pa.uint32())
    return one.equals(other)


def differing_columns(one: pa.Table, other: pa.Table) -> list[str]:
    """The columns in which two tables of schema INDEX differ; "rows" if their lengths differ."""
    if len(one) != len(other):
        return ["rows"]
    return [name for name in INDEX.names if not same(one[name], other[name])]
