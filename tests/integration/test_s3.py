"""S3 -> S3 on a real server: every format and client gives the same labels."""

from pathlib import Path

import numpy as np
import pytest

import da2ray
from da2ray.storage import open_store
from tests.jobs import RunJob
from tests.s3_server import S3Server

PLACE = ["uri", "etag", "plan", "object"]
"""Columns with the place of an image or a label. A plan depends on the URL of its source."""
BYTES = ["byte_offset", "byte_length", "byte_crc32"]
"""Columns that depend on the format of the shard."""


@pytest.fixture(scope="module")
def bucket(s3: S3Server, photos: Path) -> str:
    """A bucket with the photographs under `photos`."""
    url = s3.create_bucket()
    store = open_store(f"{url}/photos")
    for path in photos.iterdir():
        store.put(path.name, path.read_bytes())
    return url


@pytest.mark.parametrize(("kind", "client"), [("parquet", "obstore"), ("zarr", "fsspec")])
def test_labels_from_s3_to_s3_equal_those_of_a_local_run(
    run_job: RunJob, bucket: str, luminance_labels: da2ray.Labels, kind: str, client: str
) -> None:
    output = f"{bucket}/labels-{kind}-{client}"
    finished = run_job(
        *("--images", f"{bucket}/photos", "--output", output, "--teacher", "luminance", "--shard-size", 4),
        *("--format", kind, "--storage-client", client),
    )
    assert finished.code == 0, finished
    labels = da2ray.open_labels(output, client=client)
    # Fixed: libraries, instruction set, and the labelling actor's threads (its share of the machine's cores).
    left_out = PLACE if kind == "parquet" else PLACE + BYTES
    assert labels.index.drop_columns(left_out).equals(luminance_labels.index.drop_columns(left_out))
    rows = labels.index.to_pylist()
    assert [row["uri"] for row in rows] == [f"{bucket}/photos/{row['key']}" for row in rows]
    assert all(row["etag"] for row in rows)
    for label, local in zip(labels, luminance_labels, strict=True):
        assert (label.key, label.status, label.reason, label.kind) == (
            local.key,
            local.status,
            local.reason,
            local.kind,
        )
        np.testing.assert_array_equal(label.depth, local.depth)
