"""The README's benchmark commands, in small: they run and print their tables. What they measure is not for a test."""

import sys
from pathlib import Path

import pytest

from tests.jobs import run_job

pytestmark = pytest.mark.xdist_group("ray")

JOB = Path(__file__).parent.parent / "jobs" / "benchmark.py"


def run_benchmark(*args: object) -> str:
    finished = run_job(*args, command=(sys.executable, JOB))
    assert finished.code == 0, finished
    return finished.stdout


def test_every_stage_end_to_end_and_the_plain_way_are_in_one_run(tmp_path: Path) -> None:
    said = run_benchmark("--make-images", 8, "--decode", "scaled", "--shard-size", 2, "--work", tmp_path / "work")
    for row in ("infer-image", "network-size", "decode only", "teacher only", "encode + write only", "end to end"):
        assert row in said


def test_a_resume_is_measured_on_a_plan_that_is_three_quarters_done(tmp_path: Path) -> None:
    said = run_benchmark("--resume-shards", 40, "--work", tmp_path / "work")
    assert "10 of 40 shards are left" in said


def test_images_to_measure_on_are_asked_for(tmp_path: Path) -> None:
    finished = run_job("--work", tmp_path / "work", command=(sys.executable, JOB))
    assert finished.code == 2
    assert "--make-images" in finished.stderr
