"""An image that kills or hangs its process, or takes all its memory, costs only its own label."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from da2ray.labels.reader import Labels, open_labels
from tests.jobs import RunJob
from tests.photos import png, write_crops

POISON = Path(__file__).parent.parent / "poison"
DECODING = {"segfault": "crashed", "hang": "timeout", "lock": "timeout"}
"""The faults that `tests/poison/sitecustomize.py` knows, and the failure class that each must get."""
TEACHER = {
    "0000-10.png": "teacher_error",
    "0003-20.png": "non_finite",
    "0006-30.png": "out_of_memory",
    "0009-40.png": "crashed",
    "0009-50.png": "timeout",
    "0009-60.png": "crashed",
}
"""Images by their faults, and the failure class that each must get. 60 holds Python's lock while it hangs, which the process
cannot tell from a crash. 40 and 50 share a micro-batch, and 60 has a good image in its own."""
OPTIONS = ("--teacher", "luminance", "--shard-size", 6, "--batch-size", 2, "--sample-timeout", 2)


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_crops(tmp_path_factory.mktemp("crops"), 18)


@pytest.fixture(scope="module")
def undisturbed(run_job: RunJob, crops: Path, tmp_path_factory: pytest.TempPathFactory) -> Labels:
    output = tmp_path_factory.mktemp("undisturbed")
    assert run_job("--images", crops, "--output", output, *OPTIONS).code == 0
    return open_labels(str(output))


@pytest.fixture
def run_poisoned(run_alone: RunJob) -> RunJob:
    """Run the job with its own Ray, because each Python process of it gets the poison."""
    return partial(run_alone, *OPTIONS, env={"PYTHONPATH": str(POISON)})


def label_poisoned(run_poisoned: RunJob, images: Path, output: Path) -> Labels:
    finished = run_poisoned("--images", images, "--output", output, timeout=600)
    assert finished.code == 0, finished
    return open_labels(str(output))


def assert_only_these_failed(labels: Labels, reasons: dict[str, str], undisturbed: Labels) -> None:
    expected = {label.key: label for label in undisturbed}
    found = {label.key: label for label in labels}
    assert {key: label.reason for key, label in found.items() if label.status != "labelled"} == reasons
    assert found.keys() == expected.keys() | reasons.keys()
    # Fixed: libraries, instruction set and threads. luminance computes each pixel by itself, so batches do not matter.
    for key, label in expected.items():
        np.testing.assert_array_equal(found[key].depth, label.depth)


def test_an_image_that_kills_or_hangs_its_decoder_fails_alone(
    run_poisoned: RunJob, crops: Path, undisturbed: Labels, tmp_path: Path
) -> None:
    images = Path(shutil.copytree(crops, tmp_path / "images"))
    good = (crops / "0000.jpg").read_bytes()
    reasons = {}
    for number, (what, reason) in enumerate(DECODING.items()):
        # In three shards, between good images.
        name = f"{6 * number + 2:04d}-{what}.jpg"
        (images / name).write_bytes(good + b"POISON:" + what.encode())
        reasons[name] = reason
    assert_only_these_failed(label_poisoned(run_poisoned, images, tmp_path / "labels"), reasons, undisturbed)


@pytest.mark.timeout(700)  # 70 s where nothing else runs: three images end the teacher's process nine times
def test_an_image_that_the_teacher_cannot_take_fails_alone(
    run_poisoned: RunJob, crops: Path, undisturbed: Labels, tmp_path: Path
) -> None:
    images = Path(shutil.copytree(crops, tmp_path / "images"))
    for name in TEACHER:
        pixels = np.asarray(Image.open(crops / "0001.jpg")).copy()
        pixels[0, 0] = (254, 1, int(name[5:7]))
        (images / name).write_bytes(png(Image.fromarray(pixels)))
    assert_only_these_failed(label_poisoned(run_poisoned, images, tmp_path / "labels"), TEACHER, undisturbed)


def test_a_write_that_hangs_ends_the_run_with_a_message_and_what_was_written_stays(
    run_job: RunJob, run_poisoned: RunJob, crops: Path, tmp_path: Path
) -> None:
    images, output = Path(shutil.copytree(crops, tmp_path / "images")), tmp_path / "labels"
    shutil.copy(crops / "0001.jpg", images / "hang-write.jpg")
    finished = run_poisoned("--images", images, "--output", output)
    assert finished.code == 75, finished
    assert "workers died, and died again when their shard was retried 3 times" in finished.stderr
    assert "Traceback" not in finished.stdout + finished.stderr
    # Without the poison a run labels the remaining shards only.
    again = run_job("--images", images, "--output", output, *OPTIONS)
    assert again.code == 0, again
    assert len(open_labels(str(output))) == len(list(images.iterdir()))
