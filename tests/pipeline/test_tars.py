"""A job labels the images of tars: each once, although a tar in a tar fools its ranges, and failed ones by their own ranges."""

import hashlib
from pathlib import Path

import da2ray
from da2ray.labels.upkeep.verify import verify
from da2ray.plan.plan import corrections_of, list_plans
from da2ray.storage import open_store
from tests.jobs import RunJob, progress_of
from tests.photos import write_crops
from tests.sources.tar.tars import serial, tar_bytes, write_tar


def test_a_job_labels_each_image_of_tars_once_and_retries_one_by_its_range(run_job: RunJob, tmp_path: Path) -> None:
    crops = [path.read_bytes() for path in sorted(write_crops(tmp_path / "crops", 8).iterdir())]
    inner = tar_bytes({f"inner-{number}.jpg": body for number, body in enumerate(crops)})
    broken = b"x" * len(crops[2])
    members = {
        "0.jpg": crops[0],
        "1.jpg": crops[1],
        "x.tar": inner,
        "2.jpg": broken,
        "2.json": b"{}",
        "3.jpg": crops[3],
    }
    tars, output = tmp_path / "tars", str(tmp_path / "labels")
    path = write_tar(tars / "a.tar", members)
    write_tar(tars / "b.tar", {"4.jpg": crops[4]})
    (tars / "c.tar").write_bytes(tar_bytes({"5.jpg": crops[5], "6.jpg": crops[6]})[: 512 + len(crops[5]) + 3000])

    def label(*options: object) -> str:
        finished = run_job(
            *(
                "--images",
                tars,
                "--output",
                output,
                "--teacher",
                "luminance",
                "--shard-bytes",
                len(inner) // 5,
                *options,
            )
        )
        assert finished.code == 0, finished
        return finished.stdout

    assert "did not begin where the one before ended; reading again" in label()
    store = open_store(output)
    (plan,) = list_plans(store)
    assert plan.info.ranged
    assert corrections_of(store, plan.id)
    labels = da2ray.open_labels(output)
    keys = {*serial(path), "b.tar/4.jpg", "c.tar/5.jpg", "c.tar/6.jpg"}
    assert {label.key for label in labels} == keys
    assert len(labels) == len(keys)
    assert {label.key: label.reason for label in labels if label.reason} == {
        "a.tar/2.jpg": "not_an_image",
        "c.tar/6.jpg": "truncated",
    }
    for row in labels.index.to_pylist():
        data = Path(row["uri"]).read_bytes()[row["image_offset"] :][: row["image_length"]]
        if row["sha256"] is not None:
            assert hashlib.sha256(data).digest() == row["sha256"]
    assert verify(store, "parquet").findings == []
    assert progress_of(store).samples.exact is False

    # The broken image is mended in place. Nothing else of its tar is read.
    (row,) = (row for row in labels.index.to_pylist() if row["key"] == "a.tar/2.jpg")
    mended = bytearray(path.read_bytes())
    mended[row["image_offset"] : row["image_offset"] + row["image_length"]] = crops[2]
    mended[:512] = b"\xff" * 512
    path.write_bytes(mended)
    label("--retry-failed")
    again = da2ray.open_labels(output)
    assert sorted(label.key for label in again) == sorted(keys)
    assert {label.key: label.reason for label in again if label.reason} == {"c.tar/6.jpg": "truncated"}
