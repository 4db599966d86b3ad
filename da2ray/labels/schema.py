"""The index schema: one row a planned sample, and the closed sets of statuses and reasons.

Invariant 4: every planned sample gets exactly one index row. The same schema is used by commits (a shard's rows) and by
folded index parts. FORMAT.md describes each column for readers that do not use this package.
"""

from enum import StrEnum

import pyarrow as pa

FORMAT_VERSION = 1
"""Version of the dataset layout and of this schema; part of every fingerprint."""


class ShardFormat(StrEnum):
    """How shards are stored; one format for a dataset."""

    PARQUET = "parquet"
    ZARR = "zarr"


def _scores(*names: str) -> pa.Schema:
    return pa.schema([pa.field(name, pa.float32()) for name in names])


FILE_SCORES = _scores("aspect", "jpeg_quality")
"""Of the image's file, known once its header was read; null where it could not be, `jpeg_quality` also where it is no JPEG."""

IMAGE_SCORES = _scores("blur", "brightness", "dark_share", "bright_share", "image_entropy", "colourfulness")
"""Of the image as the network saw it, on the teacher's device: `da2ray.quality.image_scores`."""

DEPTH_SCORES = _scores(
    "depth_min",
    "depth_max",
    "depth_mean",
    "depth_range",
    "depth_occupancy",
    "depth_entropy",
    "zero_share",
    "far_share",
    "saturated_share",
    "nonfinite_share",
    "edge_alignment",
    "gradient_continuity",
)
"""Of the depth before it is made integer, on the teacher's device: `da2ray.quality.depth_scores`."""

CONSISTENCY_SCORES = _scores(
    "flip_mean",
    "flip_p90",
    "scale_mean",
    "scale_p90",
    "checker_mean",
    "checker_p90",
    "metric_residual",
    "confidence_mean",
)
"""What second opinions of the same image say (`--consistency`, `--checker`), and the mean of the mask."""

SCORES = pa.schema([*FILE_SCORES, *IMAGE_SCORES, *DEPTH_SCORES, *CONSISTENCY_SCORES])
"""All scores of a sample; null where not measured. Only FILE_SCORES and `nonfinite_share` may be there without a label."""

NUMBERS = pa.schema(
    [
        *IMAGE_SCORES,
        *DEPTH_SCORES,
        *CONSISTENCY_SCORES,
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
        # Where its far class lies in the same object: pixels without a distance, such as sky; null where there are none.
        pa.field("far_offset", pa.int64()),
        pa.field("far_length", pa.int64()),
        pa.field("far_crc32", pa.uint32()),
        # What it means: depth = offset + scale * q.
        pa.field("kind", pa.string()),
        pa.field("scale", pa.float32()),
        pa.field("offset", pa.float32()),
        pa.field("metric_scale", pa.float32()),
        pa.field("metric_shift", pa.float32()),
        pa.field("phash", pa.uint64()),
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
