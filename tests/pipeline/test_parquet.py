"""The whole job from Parquet with image bytes: the labels are those of the same images as loose files."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from da2ray.labels.reader import Labels, open_labels
from tests.jobs import RunJob


def test_labels_of_parquet_are_those_of_loose_files(
    run_job: RunJob, photos: Path, luminance_labels: Labels, tmp_path: Path
) -> None:
    loose = {row["key"]: row for row in luminance_labels.index.to_pylist()}
    keys = sorted(loose)
    images = [{"bytes": (photos / key).read_bytes(), "path": None} for key in keys]
    table = pa.table({"image": pa.array(images), "key": keys})
    pq.write_table(table, tmp_path / "photos.parquet", row_group_size=7, write_page_index=True)
    output = tmp_path / "labels"
    finished = run_job(
        *("--images", tmp_path / "photos.parquet", "--output", output, "--teacher", "luminance", "--shard-size", 4)
    )
    assert finished.code == 0, finished
    rows = open_labels(str(output)).index.to_pylist()
    assert sorted(row["key"] for row in rows) == keys
    same = ("status", "reason", "sha256", "width", "height", "scale", "offset", "phash", "byte_crc32")
    for row in rows:
        assert {name: row[name] for name in same} == {name: loose[row["key"]][name] for name in same}
        assert row["uri"] == str(tmp_path / "photos.parquet")
        assert row["image_row"] == keys.index(row["key"])
