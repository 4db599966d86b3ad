"""Runs that fail early, runs that retry failures, and two runs at once; each test runs jobs/pseudolabel.py."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import da2ray
from da2ray.labels.snapshots import list_snapshots
from da2ray.pipeline.control.retries import LOAD_RETRIES
from da2ray.plan.plan import list_plans
from da2ray.storage import open_store
from tests.jobs import JOB, RunJob, StartJob, commits_of, count_commits, shard_objects
from tests.photos import REASONS, write_crops

TEACHER_THAT_DOES_NOT_LOAD = """
from da2ray.errors import UserError

class MyTeacher:
    kind = "disparity"

    def __init__(self, options):
        with open("tried", "a") as file:
            file.write(".")
        raise UserError("this device has no bf16: use --precision fp16")

    def predict(self, batch): ...
"""


def statuses(output: Path) -> dict[str, str | None]:
    """Each key and its reason."""
    return {label.key: label.reason for label in da2ray.open_labels(str(output))}


def test_a_run_over_its_budget_stops_early_and_goes_on_with_a_larger_one(run_job: RunJob, tmp_path: Path) -> None:
    images = write_crops(tmp_path / "images", 40)
    for number in range(12):
        (images / f"a{number:03d}.jpg").write_bytes(b"")
        (images / f"{number:04d}-empty.jpg").write_bytes(b"")
    output = tmp_path / "labels"
    command = ["--images", images, "--output", output, "--teacher", "luminance", "--shard-size", 2]
    # In waves, because the readers of a busy machine may be done with all shards before the teacher has started.
    stopped = run_job(*command, "--max-failed", 2, "--wave-size", 8)
    assert stopped.code == 1, stopped
    assert "more than --max-failed 2: stopped with" in stopped.stdout
    store = open_store(str(output))
    assert 0 < count_commits(store) < 32
    assert not list_snapshots(store)

    finished = run_job(*command, "--max-failed", 24)
    assert finished.code == 0, finished
    assert sorted(reason for reason in statuses(output).values() if reason) == ["empty"] * 24


def test_failures_are_tried_again_by_class_and_supersede_their_rows(
    run_job: RunJob, photos: Path, tmp_path: Path
) -> None:
    images, output = Path(shutil.copytree(photos, tmp_path / "images")), tmp_path / "labels"
    command = ["--images", images, "--output", output, "--teacher", "luminance", "--shard-size", 3]
    early = run_job(*command, "--retry-failed")
    assert early.code == 2
    assert "--retry-failed" in early.stderr
    assert "no snapshot" in early.stderr

    assert run_job(*command).code == 0
    before = {label.key: label for label in da2ray.open_labels(str(output))}
    assert {key: label.reason for key, label in before.items()} == REASONS
    # Two files were repaired. A retry of one class reads only files of that class.
    for name in ("truncated.jpg", "corrupt.jpg"):
        shutil.copy(photos / "astronaut.jpg", images / name)
    tried = run_job(*command, "--retry-failed", "truncated", "empty")
    assert tried.code == 0, tried
    assert "2 images in 1 shard" in tried.stdout
    assert statuses(output) == REASONS | {"truncated.jpg": None}
    after = da2ray.open_labels(str(output))
    assert len(after) == len(before)
    for label in after:
        if label.key != "truncated.jpg" and label.status == "labelled":
            # Equal on every machine: these rows are copied from the first run.
            assert label.depth.tobytes() == before[label.key].depth.tobytes()

    assert run_job(*command, "--retry-failed").code == 0
    assert statuses(output) == REASONS | {"truncated.jpg": None, "corrupt.jpg": None}
    # The older snapshot did not change.
    assert {label.key: label.reason for label in da2ray.open_labels(str(output), snapshot=1)} == REASONS


def test_two_jobs_at_once_make_one_dataset_and_the_second_is_told_what_the_first_did(
    start_job: StartJob, tmp_path: Path
) -> None:
    images, output = write_crops(tmp_path / "images", 90), tmp_path / "labels"
    command = ["--images", images, "--output", output, "--teacher", "random-tiny", "--shard-size", 3]
    store = open_store(str(output))
    first = start_job(*command)
    first.wait_until(lambda: count_commits(store) > 0)
    second = start_job(*command)
    ended = first.wait(), second.wait()
    assert [finished.code for finished in ended] == [0, 0], ended
    assert "; waiting for it" in ended[1].stdout
    assert re.search(r"run .* on .* committed \d+ shards? meanwhile", ended[1].stdout)
    assert len(commits_of(store)) == 30
    # No shard was labelled twice: a commit names every object.
    assert shard_objects(store) == {commit.object for commit in commits_of(store).values()}
    assert len(list_plans(store)) == 1
    assert list_snapshots(store) == [1]
    assert len(da2ray.open_labels(str(output))) == 90


def test_a_mistake_that_only_a_worker_can_find_keeps_the_teachers_message(run_alone: RunJob, tmp_path: Path) -> None:
    """Workers try a few times, so that a run survives a node that fails to load its teacher."""
    write_crops(tmp_path / "images", 2)
    (tmp_path / "mymod.py").write_text(TEACHER_THAT_DOES_NOT_LOAD)
    script = f'cd {shlex.quote(str(tmp_path))} && exec {sys.executable} {JOB} "$@"'
    options = ("--images", "images", "--output", "labels", "--teacher", "mymod:MyTeacher")
    # Its own Ray: workers start in the driver's folder, which has the module and gets the file `tried`.
    finished = run_alone(*options, command=("sh", "-c", script, "sh"))
    assert finished.code == 2, finished
    assert "error: this device has no bf16: use --precision fp16\n" in finished.stderr
    assert "workers died" not in finished.stderr
    assert (tmp_path / "tried").read_text() == "." * (1 + LOAD_RETRIES)
