"""The index schema: one row for each planned sample.

Invariant 4: every planned sample gets exactly one index row. Commits (a shard's rows) and index parts (folded commits) share this
schema. FORMAT.md describes each column for readers that do not use this package.
"""

import pyarrow as pa

from da2ray.labels.scores import Group, names_of

FORMAT_VERSION = 1
"""Version of the dataset layout and of this schema; part of every fingerprint."""

GONE = "gone"
"""A status that only commits hold, never a snapshot: the sample is not in its source any more."""
KEPT = "kept"
"""A status that only shard objects hold: the bytes are those of a label that lies in another object. The commit says in which."""


def _columns(*groups: Group) -> pa.Schema:
    return pa.schema([pa.field(name, pa.float32()) for name in names_of(*groups)])


FILE_SCORES = _columns(Group.FILE)
"""Null if the header could not be read; `jpeg_quality` also for other formats than JPEG."""

IMAGE_SCORES = _columns(Group.IMAGE)
DEPTH_SCORES = _columns(Group.DEPTH)
CONSISTENCY_SCORES = _columns(Group.CONSISTENCY)

SCORE_COLUMNS = _columns(*Group)
"""All scores of a sample; null if not measured. Rows without a label have FILE_SCORES and `nonfinite_share` at most."""

NUMBERS = pa.schema(
    [
        *_columns(Group.IMAGE, Group.DEPTH, Group.CONSISTENCY),
        pa.field("metric_scale", pa.float32()),
        pa.field("metric_shift", pa.float32()),
        pa.field("focal", pa.float32()),
    ]
)
"""What the teacher's device says about an image, one number each."""

INDEX = pa.schema(
    [
        # What was labelled.
        pa.field("key", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        # Where the image lies in the object at `uri`: its bytes, or its row in a Parquet file; null if the object is the image.
        pa.field("image_offset", pa.int64()),
        pa.field("image_length", pa.int64()),
        pa.field("image_row", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("etag_listed", pa.bool_()),
        pa.field("version", pa.string()),
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
        # Where the label lies: one range GET of `object`.
        pa.field("plan", pa.string(), nullable=False),
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("object", pa.string()),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("byte_offset", pa.int64()),
        pa.field("byte_length", pa.int64()),
        pa.field("byte_crc32", pa.uint32()),
        # Where the mask lies in the same object, and whose confidence it holds.
        pa.field("mask_offset", pa.int64()),
        pa.field("mask_length", pa.int64()),
        pa.field("mask_crc32", pa.uint32()),
        pa.field("mask_bits", pa.int8()),
        pa.field("mask_source", pa.string()),
        # Where the far class lies in the same object: pixels without a distance, such as sky; null if there are none.
        pa.field("far_offset", pa.int64()),
        pa.field("far_length", pa.int64()),
        pa.field("far_crc32", pa.uint32()),
        # What the label means: depth = offset + scale * q.
        pa.field("kind", pa.string()),
        pa.field("scale", pa.float32()),
        pa.field("offset", pa.float32()),
        pa.field("metric_scale", pa.float32()),
        pa.field("metric_shift", pa.float32()),
        pa.field("phash", pa.uint64()),
        *SCORE_COLUMNS,
        pa.field("fingerprint", pa.string(), nullable=False),
    ]
)


def conform(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows with exactly the columns of `schema`: missing ones become null, unknown ones are left out.

    Within a format version, releases may add columns, so rows of another release may have fewer or more.

    Raises:
        pa.ArrowInvalid, pa.ArrowNotImplementedError: a column has another type, or a column that must not be null is missing.
    """
    names = set(rows.column_names)
    columns = [
        rows[field.name].cast(field.type) if field.name in names else pa.nulls(len(rows), field.type)
        for field in schema
    ]
    missing = [
        field.name for field, column in zip(schema, columns, strict=True) if column.null_count and not field.nullable
    ]
    if missing:
        raise pa.ArrowInvalid(f"no values in {', '.join(missing)}")
    return pa.table(columns, schema=schema)
