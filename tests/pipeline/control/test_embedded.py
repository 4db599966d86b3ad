"""A run on an embedded Ray starts what it needs, and Ray says nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

# Runs a job, and before Ray is shut down prints the command line of each process below this one.
RUN = """
import sys
import psutil, ray
from da2ray.commands.options import load
from da2ray.commands.pseudolabel import PseudolabelConfig
from da2ray.console import run_command
from da2ray.pipeline.run import pseudolabel

shutdown = ray.shutdown

def look_then_shut_down():
    for process in psutil.Process().children(recursive=True):
        print("process:", process.name(), *process.cmdline())
    shutdown()

ray.shutdown = look_then_shut_down
sys.exit(run_command(lambda console: pseudolabel(load(PseudolabelConfig, sys.argv[1:]), console)))
"""

NOT_NEEDED = (
    *("dashboard.py", "monitor.py", "ray::DashboardAgent", "ray::RuntimeEnvAgent"),
    *("_StatsActor", "ActorLocationTracker", "_AutoscalingCoordinatorActor"),
)


@pytest.mark.ray
def test_an_embedded_ray_has_no_dashboard_agents_monitors_or_shared_actors_and_is_silent(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    options = ["--images", photos, "--output", tmp_path / "labels", "--teacher", "luminance"]
    finished = subprocess.run(
        [sys.executable, "-c", RUN, *map(str, options)], capture_output=True, text=True, check=False, timeout=240
    )
    assert finished.returncode == 0, finished.stderr
    assert not finished.stderr
    processes = [line for line in finished.stdout.splitlines() if line.startswith("process:")]
    assert any("raylet" in process for process in processes)
    assert any("ray::MapWorker" in process for process in processes)
    assert not [process for process in processes if any(part in process for part in NOT_NEEDED)]
