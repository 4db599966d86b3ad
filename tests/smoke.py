"""A smoke test that needs nothing but da2ray and its demo's photographs: `python -m tests.smoke FOLDER`.

The main job labels a few photographs in both shard formats, `da2ray verify` reads every shard, and the labels of both formats
must hold the same values. `make pythons` runs it on each Python. The test suite checks the same and much more.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np

import da2ray
from da2ray.benchmark.photos import packaged_photos

JOB = Path(__file__).parents[1] / "jobs" / "pseudolabel.py"
FORMATS = ("parquet", "zarr")
PHOTOS = 6


def smoke(folder: Path) -> None:
    """Label, verify and read back below `folder`.

    Raises:
        CalledProcessError: a command failed.
        AssertionError: labels are missing, or differ between the formats.
    """
    images = folder / "images"
    images.mkdir(parents=True)
    for name, data in sorted(packaged_photos().items())[:PHOTOS]:
        (images / name).write_bytes(data)
    for shard_format in FORMATS:
        output = folder / shard_format
        options = {"images": images, "output": output, "teacher": "luminance", "format": shard_format, "shard-size": 4}
        run(sys.executable, str(JOB), *(f"--{name}={value}" for name, value in options.items()))
        run(str(Path(sys.executable).with_name("da2ray")), "verify", str(output))
    parquet, zarr = (da2ray.open_labels(str(folder / shard_format)) for shard_format in FORMATS)
    assert len(parquet) == len(zarr) == PHOTOS
    for one, other in zip(parquet, zarr, strict=True):
        assert one.status == other.status == "labelled"
        assert (one.key, one.scores) == (other.key, other.scores)
        np.testing.assert_array_equal(one.depth, other.depth)


def run(*command: str) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    smoke(Path(sys.argv[1]))
    print("smoke test passed")
