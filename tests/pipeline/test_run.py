"""The main job end to end: rows, labels, resume, signals and limits in runs of jobs/pseudolabel.py."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import da2ray
from da2ray.errors import Status
from da2ray.images.decode import DecodeMode, Limits, decode
from da2ray.labels.runs import SampleCounts, ShardCounts
from da2ray.labels.schema import INDEX
from da2ray.labels.snapshots import list_snapshots
from da2ray.plan.plan import list_plans
from da2ray.storage import open_store
from da2ray.teachers.base import LoadOptions, PixelBatch
from da2ray.teachers.registry import resolve
from tests.jobs import (
    Finished,
    RunJob,
    StartJob,
    commits_of,
    count_commits,
    progress_of,
    shard_objects,
)
from tests.photos import REASONS, jpeg, write_crops

# ---------------------------------------------------------------------------------------------------- a whole run


SHARDS = 4
"""Shards of three photographs."""


@pytest.fixture(scope="module")
def photos_command(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    output = tmp_path_factory.mktemp("labelled")
    return [
        *("--images", photos, "--output", output, "--teacher", "random-tiny"),
        *("--shard-size", 3, "--batch-size", 2),
    ]


@pytest.fixture(scope="module")
def first_run(run_job: RunJob, photos_command: list[object]) -> Finished:
    return run_job(*photos_command)


@pytest.fixture(scope="module")
def labels(first_run: Finished, photos_command: list[object]) -> da2ray.Labels:
    assert first_run.code == 0, first_run
    return da2ray.open_labels(str(photos_command[3]))


def test_every_planned_sample_has_exactly_one_row_with_its_status(labels: da2ray.Labels) -> None:
    assert labels.index.schema.equals(INDEX)
    rows = labels.index.to_pylist()
    assert [row["key"] for row in rows] == list(REASONS)
    assert {row["key"]: row["reason"] for row in rows} == REASONS
    assert [row["status"] for row in rows] == [reason.status if reason else "labelled" for reason in REASONS.values()]
    assert [(row["shard"], row["row"]) for row in rows] == [divmod(number, 3) for number in range(len(rows))]
    for label, row in zip(labels, rows, strict=True):
        assert (label.depth is not None) == (label.status == "labelled")
        if label.depth is not None:
            assert label.depth.shape == (row["network_height"], row["network_width"])
            assert label.depth.dtype == np.float32


def test_depth_is_what_the_teacher_alone_gives(labels: da2ray.Labels, photos: Path) -> None:
    spec = resolve("random-tiny")
    teacher = spec.load(LoadOptions())
    for row, label in zip(labels.index.to_pylist(), labels, strict=True):
        if label.depth is None:
            continue
        data = (photos / label.key).read_bytes()
        image = decode(data, size_rule=spec.size_rule, limits=Limits(), mode=DecodeMode.EXACT)
        assert label.size == (image.height, image.width)
        pixels = torch.from_numpy(image.pixels.reshape(-1).copy())
        depth = teacher.predict(PixelBatch(pixels, [image.pixels.shape[:2]], image.size)).depth[0].numpy()
        assert depth.std() > 10 * row["scale"], "a map this flat would agree with anything"
        # Half a step of quantisation, plus the float32 rounding of another batch size and thread count.
        np.testing.assert_allclose(label.depth, depth, rtol=0, atol=0.55 * row["scale"], err_msg=label.key)
        assert label.scores["depth_mean"] == pytest.approx(depth.mean(), rel=1e-4)


def test_a_run_says_what_it_did_and_progress_json_says_the_same(first_run: Finished, labels: da2ray.Labels) -> None:
    labelled = sum(reason is None for reason in REASONS.values())
    assert f"snapshot 1: {len(REASONS)} rows (4 failed, {labelled} labelled, 1 rejected)" in first_run.stdout
    for reason in filter(None, REASONS.values()):
        assert f"{reason}: 1" in first_run.stdout
    assert f"da2ray.open_labels('{labels.store.url}')" in first_run.stdout
    assert "Traceback" not in first_run.stderr
    progress = progress_of(labels.store)
    assert progress.state == "labelled"
    assert progress.samples == SampleCounts(total=len(REASONS), done=len(REASONS), this_run=len(REASONS), exact=True)
    assert progress.shards == ShardCounts(total=4, done=4, this_run=4, in_flight=0)
    assert progress.by_status == {"failed": 4, "labelled": labelled, "rejected": 1}
    assert progress.by_reason == {reason.value: 1 for reason in REASONS.values() if reason}
    assert progress.eta_seconds in (0, None)


def test_the_same_command_again_labels_nothing_and_makes_no_new_snapshot(
    run_job: RunJob, labels: da2ray.Labels, photos_command: list[object]
) -> None:
    objects = shard_objects(labels.store)
    again = run_job(*photos_command)
    assert again.code == 0, again
    assert f"resuming: 4 of 4 shards committed ({len(REASONS)} images)" in again.stdout
    assert shard_objects(labels.store) == objects
    assert list_snapshots(labels.store) == [1]


# ------------------------------------------------------------------------------------------------ kills and signals


def test_a_killed_and_resumed_run_gives_the_bytes_of_an_undisturbed_one(
    run_job: RunJob, start_alone: StartJob, photos_command: list[object], labels: da2ray.Labels, tmp_path: Path
) -> None:
    command = [tmp_path / "labels" if part == labels.store.url else part for part in map(str, photos_command)]
    store = open_store(str(tmp_path / "labels"))
    # Its own Ray, because the test kills the driver and all processes below it.
    job = start_alone(*command)
    job.wait_until(lambda: count_commits(store) >= 1)
    job.kill()
    assert job.wait(30).code == -9
    committed = count_commits(store)
    assert committed < SHARDS, "killed too late to show anything"
    assert list_snapshots(store) == []

    resumed = run_job(*command)
    assert resumed.code == 0, resumed
    assert f"resuming: {committed} of {SHARDS} shards committed" in resumed.stdout
    assert progress_of(store).shards.this_run == SHARDS - committed
    # Fixed: libraries, instruction set, and the labelling actor's threads (its share of the machine's cores).
    found, wanted = commits_of(store), commits_of(labels.store)
    assert sorted(found) == sorted(wanted) == list(range(SHARDS))
    for shard, commit in wanted.items():
        assert store.get(found[shard].object) == labels.store.get(commit.object), f"shard {shard}"
    # The objects' names hold a random attempt id.
    index = da2ray.open_labels(store.url).index.drop_columns("object")
    assert index.equals(labels.index.drop_columns("object"))


def test_sigterm_finishes_what_is_in_flight_exits_75_and_the_same_command_goes_on(
    run_job: RunJob, start_job: StartJob, tmp_path: Path
) -> None:
    # Small images let many shards into memory at once, so there are enough shards that some still wait.
    folder = write_crops(tmp_path / "images", 160)
    command = ["--images", folder, "--output", tmp_path / "labels", "--teacher", "luminance", "--shard-size", 2]
    store = open_store(str(tmp_path / "labels"))
    job = start_job(*command)
    job.wait_until(lambda: count_commits(store) >= 2)
    job.terminate()
    stopped = job.wait()
    assert stopped.code == 75, stopped
    assert "run the same command again" in stopped.stdout
    assert "Traceback" not in stopped.stdout + stopped.stderr, stopped.stderr
    committed = commits_of(store)
    assert 2 <= len(committed) < 80, "stopped too late to show anything"
    assert {commit.object for commit in committed.values()} == shard_objects(store), (
        "a shard was written, not committed"
    )
    progress = progress_of(store)
    assert progress.state == "stopped"
    assert (progress.shards.this_run, progress.shards.in_flight) == (len(committed), 0)

    resumed = run_job(*command)
    assert resumed.code == 0, resumed
    assert progress_of(store).shards.this_run == 80 - len(committed)
    index = da2ray.open_labels(str(tmp_path / "labels")).index
    assert index["key"].to_pylist() == sorted(path.name for path in folder.iterdir())
    assert set(index["status"].to_pylist()) == {Status.LABELLED}


# --------------------------------------------------------------------------------------------------------- options


def test_limit_labels_that_many_and_max_failed_ends_with_1_after_the_snapshot(
    run_job: RunJob, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "labels"
    command = ["--images", photos, "--output", output, "--teacher", "luminance", "--limit", 5]
    finished = run_job(*command, "--max-failed", 0)
    labels = da2ray.open_labels(str(output))
    assert [label.key for label in labels] == list(REASONS)[:5]
    assert finished.code == 1, finished
    assert "1 sample failed, more than --max-failed 0" in finished.stdout
    assert run_job(*command, "--max-failed", "20%").code == 0
    assert run_job(*command, "--max-failed", "19%").code == 1
    assert list_snapshots(labels.store) == [1]


def test_a_dry_run_writes_nothing_and_counts_what_would_be_done(
    run_job: RunJob, photos: Path, photos_command: list[object], labels: da2ray.Labels, tmp_path: Path
) -> None:
    output = tmp_path / "labels"
    fresh = run_job("--images", photos, "--output", output, "--teacher", "luminance", "--shard-size", 4, "--dry-run")
    assert fresh.code == 0, fresh
    assert not output.exists()
    assert numbers(fresh.stdout, "samples") == [len(REASONS)]
    assert numbers(fresh.stdout, "shards")[0] == 3
    assert numbers(fresh.stdout, "to label") == [len(REASONS), 3]
    assert numbers(fresh.stdout, "committed") == [0, 0]

    before = {key for batch in labels.store.list() for key in batch["key"].to_pylist()}
    done = run_job(*photos_command, "--dry-run")
    assert done.code == 0, done
    assert numbers(done.stdout, "committed") == [len(REASONS), 4]
    assert numbers(done.stdout, "to label") == [0, 0]
    assert {key for batch in labels.store.list() for key in batch["key"].to_pylist()} == before
    assert len(list_plans(labels.store)) == 1


def numbers(text: str, name: str) -> list[int]:
    """The integers in the line of a dry run that begins with `name`."""
    (line,) = [line for line in text.splitlines() if line.strip().startswith(f"{name} ")]
    return [int(word.replace(",", "")) for word in line.split() if word.replace(",", "").isdecimal()]


# ---------------------------------------------------------------------------------------------------------- memory

STORE_BYTES = 100 << 20
# Runs a job on a Ray whose object store is far smaller than what goes through it, and asks the node before it goes.
SPILLING = f"""
import json, sys
import ray
from da2ray.commands.pseudolabel import PseudolabelConfig
from da2ray.commands.options import load
from da2ray.console import run_command
from da2ray.pipeline.run import pseudolabel
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

cpus = int(sys.argv.pop(1))
ray.init(
    address="local", include_dashboard=False, object_store_memory={STORE_BYTES}, num_cpus=cpus, log_to_driver=False
)
shutdown = ray.shutdown

def ask_then_shut_down():
    stats = get_memory_info_reply(get_state_from_address(ray.get_runtime_context().gcs_address)).store_stats
    names = "spilled_bytes_total", "cumulative_created_bytes"
    print(json.dumps({{name: getattr(stats, name) for name in names}}), file=sys.stderr)
    shutdown()

ray.shutdown = ask_then_shut_down
sys.exit(run_command(lambda console: pseudolabel(load(PseudolabelConfig, sys.argv[1:]), console)))
"""


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_job_many_times_the_object_store_ends_and_spills_nothing(
    run_alone: RunJob, tmp_path: Path, cpus: int
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    image = jpeg(Image.effect_noise((1600, 1000), 50).convert("RGB"), quality=30)
    for number in range(48):
        (folder / f"{number:03d}.jpg").write_bytes(image)
    options = ["--images", folder, "--output", tmp_path / "labels", "--teacher", "luminance", "--shard-size", "4"]
    # Its own Ray, because the object store must have that size.
    finished = run_alone(*options, command=[sys.executable, "-c", SPILLING, cpus], timeout=120)
    assert finished.code == 0, finished
    (stats,) = [json.loads(line) for line in finished.stderr.splitlines() if line.startswith("{")]
    assert stats["cumulative_created_bytes"] > 2 * STORE_BYTES, "too little data to show anything"
    assert stats["spilled_bytes_total"] == 0
