"""The README's benchmark commands run in small and print their tables. Tests do not judge the figures."""

import sys
from pathlib import Path

import pytest

from da2ray.benchmark.quality import sift
from da2ray.worlds.degrade import Degradation
from tests.jobs import RunJob, run_script

JOB = Path(__file__).parents[2] / "jobs" / "benchmark.py"


def run_benchmark(run: RunJob, *args: object) -> str:
    """Run jobs/benchmark.py. Its measurements start their own Ray, because its start counts."""
    finished = run(*args, command=(sys.executable, JOB), timeout=800)
    assert finished.code == 0, finished
    return finished.stdout


@pytest.mark.timeout(900)  # it starts Ray four times
def test_every_stage_end_to_end_and_the_plain_way_are_in_one_run(run_alone: RunJob, tmp_path: Path) -> None:
    out = run_benchmark(
        run_alone,
        *("--make-images", 8, "--decode", "scaled", "--plain", "network-size", "--shard-size", 2),
        *("--work", tmp_path / "work"),
    )
    for row in ("network-size", "decode only", "teacher only", "encode + write only", "end to end"):
        assert row in out


def test_a_resume_is_measured_on_a_plan_that_is_three_quarters_done(tmp_path: Path) -> None:
    out = run_benchmark(run_script, "--resume-shards", 40, "--work", tmp_path / "work")
    assert "10 of 40 shards are left" in out


def test_planning_is_measured_with_its_memory(tmp_path: Path) -> None:
    out = run_benchmark(run_script, "--plan", "--plan-keys", 2000, "--work", tmp_path / "work")
    assert "planned 2,000 keys as 8 shards" in out
    assert "keys a second" in out
    assert "peak memory" in out


@pytest.mark.timeout(900)  # a minute where nothing else runs; half of it is Depth Anything V2 S on one core
def test_quality_is_measured_on_worlds_of_known_depth(run_alone: RunJob, tmp_path: Path) -> None:
    out = run_benchmark(run_alone, "--quality", 24, "--work", tmp_path / "work")
    assert "24 worlds" in out
    assert "7 of them degraded" in out
    for word in ("flip_p90", "masks (flip+scale", "strict", "mirror", "lowest level", "scores without passes"):
        assert word in out
    assert "nan" not in next(line for line in out.splitlines() if "scores without passes" in line)
    for kind in ("abs_rel", "disparity"):
        assert (tmp_path / "work" / f"calibration-{kind}.json").exists()


def test_a_preset_is_judged_by_what_it_keeps_and_what_it_removes() -> None:
    kinds = {"a": None, "b": None, "c": Degradation.BLUR, "d": Degradation.BLUR, "e": Degradation.DARK}
    errors = {"a": 0.1, "b": 0.3, "c": 0.5, "d": 0.2, "e": 0.7}
    kept = {"a": True, "b": False, "c": False, "d": True, "e": False, "not judged": False}
    found = sift("default", kept, errors, kinds)
    assert found.kept == 0.4
    assert found.error_kept == pytest.approx(0.15)
    assert found.error_removed == pytest.approx(0.5)
    assert found.ratio == pytest.approx(0.5 / 0.15)
    assert found.removed[None] == 0.5
    assert found.removed[Degradation.BLUR] == 0.5
    assert found.removed[Degradation.DARK] == 1


def test_near_duplicates_are_looked_for_among_planted_ones(tmp_path: Path) -> None:
    out = run_benchmark(run_script, "--dedupe-hashes", 20_000, "--work", tmp_path / "work")
    assert " 0 were missed, 0 answers are wrong" in out


def test_images_to_measure_on_are_asked_for(tmp_path: Path) -> None:
    finished = run_script("--work", tmp_path / "work", command=(sys.executable, JOB))
    assert finished.code == 2
    assert "--make-images" in finished.stderr
