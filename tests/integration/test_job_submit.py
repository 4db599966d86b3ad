"""`ray job submit` on a Ray head: the job finishes there, and `ray job stop` leaves it resumable."""

import sys
import time
from pathlib import Path

from ray.job_submission import JobStatus, JobSubmissionClient

import da2ray
from da2ray.storage import open_store
from tests.jobs import RunJob, commits_of, count_commits, progress_of, shard_objects
from tests.photos import REASONS, write_crops
from tests.ray_head import RayHead

ROOT = Path(__file__).parent.parent.parent
RUNTIME_ENV = {
    "working_dir": str(ROOT),
    "excludes": [".git", ".venv", "/scratch", "/demo", "*.egg-info"],
    # `ray job stop` kills after 3 s by default; with this variable it waits for the shards in flight.
    "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"},
}
ENDED = {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED}


def submit(client: JobSubmissionClient, *args: object) -> str:
    entrypoint = " ".join([sys.executable, "jobs/pseudolabel.py", *map(str, args)])
    return client.submit_job(entrypoint=entrypoint, runtime_env=RUNTIME_ENV)


def wait_until_ended(client: JobSubmissionClient, job: str, timeout: float = 150) -> JobStatus:
    deadline = time.monotonic() + timeout
    while (status := client.get_job_status(job)) not in ENDED:
        assert time.monotonic() < deadline, client.get_job_logs(job)
        time.sleep(0.2)
    return status


def test_a_submitted_job_labels_on_the_cluster(
    ray_head: RayHead, photos: Path, tmp_path: Path, luminance_labels: da2ray.Labels
) -> None:
    output = tmp_path / "labels"
    job = submit(ray_head.client, "--images", photos, "--output", output, "--teacher", "luminance", "--shard-size", 4)
    assert wait_until_ended(ray_head.client, job) == JobStatus.SUCCEEDED, ray_head.client.get_job_logs(job)
    labels = da2ray.open_labels(str(output))
    assert {label.key: label.reason for label in labels} == REASONS
    # Fixed: libraries, instruction set, and the labelling actor's threads (its share of the machine's cores).
    assert labels.index.drop_columns("object").equals(luminance_labels.index.drop_columns("object"))
    assert f"snapshot 1: {len(REASONS)} rows" in ray_head.client.get_job_logs(job)


def test_a_job_that_is_stopped_commits_what_is_in_flight_and_can_go_on(
    ray_head: RayHead, run_job: RunJob, tmp_path: Path
) -> None:
    shards = 200
    images = write_crops(tmp_path / "images", 2 * shards)
    output = tmp_path / "labels"
    command = ["--images", images, "--output", output, "--teacher", "luminance", "--shard-size", 2]
    store = open_store(str(output))
    job = submit(ray_head.client, *command)
    deadline = time.monotonic() + 90
    while count_commits(store) < 2:
        assert time.monotonic() < deadline, ray_head.client.get_job_logs(job)
        time.sleep(0.05)
    ray_head.client.stop_job(job)
    assert wait_until_ended(ray_head.client, job) == JobStatus.STOPPED, ray_head.client.get_job_logs(job)

    committed = commits_of(store)
    assert 2 <= len(committed) < shards, "stopped too late to show anything"
    assert {commit.object for commit in committed.values()} == shard_objects(store), (
        "a shard was written, not committed"
    )
    progress = progress_of(store)
    assert progress.state == "stopped"
    assert (progress.shards.done, progress.shards.in_flight) == (len(committed), 0)
    planned = run_job(*command, "--dry-run")
    assert planned.code == 0, planned
    left = shards - len(committed)
    assert f"to label   {2 * left} samples in {left} shards" in planned.stdout
