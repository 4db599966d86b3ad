"""The index schema: one row a planned sample, and the closed sets of statuses and reasons.

Invariant 4: every planned sample gets exactly one index row. The same schema is used by commits (a shard's rows) and by
folded index parts. FORMAT.md describes each column for readers that do not use this package.
"""

from enum import StrEnum

import pyarrow as pa

FORMAT_VERSION = 1
"""Version of the dataset layout and of this schema; part of every fingerprint."""


class Status(StrEnum):
    """What became of a planned sample."""

    LABELLED = "labelled"
    REJECTED = "rejected"
    FAILED = "failed"


class Reason(StrEnum):
    """Why a sample has no label. The first group are policies (`rejected`), the second errors (`failed`)."""

    TOO_SMALL = "too_small"
    ASPECT = "aspect"
    TOO_MANY_TOKENS = "too_many_tokens"
    TOO_MANY_PIXELS = "too_many_pixels"

    NOT_FOUND = "not_found"
    FORBIDDEN = "forbidden"
    UNREADABLE = "unreadable"
    EMPTY = "empty"
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    CRASHED = "crashed"
    TIMEOUT = "timeout"
    TEACHER_ERROR = "teacher_error"
    OUT_OF_MEMORY = "out_of_memory"
    NON_FINITE = "non_finite"

    @property
    def status(self) -> Status:
        return Status.REJECTED if self in _POLICIES else Status.FAILED


_POLICIES = frozenset({Reason.TOO_SMALL, Reason.ASPECT, Reason.TOO_MANY_TOKENS, Reason.TOO_MANY_PIXELS})


class SampleError(Exception):
    """One sample cannot be labelled; it becomes an index row with this reason and the job goes on."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message

    def __reduce__(self) -> tuple[type["SampleError"], tuple[Reason, str]]:
        return SampleError, (self.reason, self.message)


SCORES = pa.schema(
    [
        pa.field("depth_min", pa.float32()),
        pa.field("depth_max", pa.float32()),
        pa.field("depth_mean", pa.float32()),
        pa.field("zero_share", pa.float32()),
        pa.field("checker_mean", pa.float32()),
        pa.field("checker_p90", pa.float32()),
        pa.field("metric_residual", pa.float32()),
    ]
)
"""Scores of a labelled sample, computed on the teacher's device before quantising; null where not measured."""

NUMBERS = pa.schema(
    [
        *SCORES,
        pa.field("metric_scale", pa.float32()),
        pa.field("metric_shift", pa.float32()),
        pa.field("focal", pa.float32()),
    ]
)
"""All that the device says of an image in one number."""

INDEX = pa.schema(
    [
        # What was labelled.
        pa.field("key", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("etag", pa.string()),
        pa.field("sha256", pa.binary(32)),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("message", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("orientation", pa.int8()),
        pa.field("focal", pa.float32()),
        pa.field("focal_source", pa.string()),
        pa.field("network_width", pa.int32()),
        pa.field("network_height", pa.int32()),
        # Where its label lies: one range GET of `object`.
        pa.field("plan", pa.string(), nullable=False),
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("object", pa.string()),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("byte_offset", pa.int64()),
        pa.field("byte_length", pa.int64()),
        pa.field("byte_crc32", pa.uint32()),
        # Where its mask lies in the same object, and whose confidence it holds.
        pa.field("mask_offset", pa.int64()),
        pa.field("mask_length", pa.int64()),
        pa.field("mask_crc32", pa.uint32()),
        pa.field("mask_bits", pa.int8()),
        pa.field("mask_source", pa.string()),
        # What it means: depth = offset + scale * q.
        pa.field("kind", pa.string()),
        pa.field("scale", pa.float32()),
        pa.field("offset", pa.float32()),
        pa.field("metric_scale", pa.float32()),
        pa.field("metric_shift", pa.float32()),
        *SCORES,
        pa.field("fingerprint", pa.string(), nullable=False),
    ]
)


def conform(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows with the columns of `schema`: those that an older release did not write are null, others are left out.

    Raises:
        pa.ArrowInvalid, pa.ArrowNotImplementedError: a column is of another type, or one is missing that must not be null.
    """
    columns = [
        rows[field.name].cast(field.type) if field.name in rows.column_names else pa.nulls(len(rows), field.type)
        for field in schema
    ]
    missing = [
        field.name for field, column in zip(schema, columns, strict=True) if column.null_count and not field.nullable
    ]
    if missing:
        raise pa.ArrowInvalid(f"no values in {', '.join(missing)}")
    return pa.table(columns, schema=schema)
