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
    ]
)
"""Scores of a labelled sample, computed on the teacher's device before quantising."""

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
        # What it means: depth = offset + scale * q.
        pa.field("kind", pa.string()),
        pa.field("scale", pa.float32()),
        pa.field("offset", pa.float32()),
        *SCORES,
        pa.field("fingerprint", pa.string(), nullable=False),
    ]
)
