"""An embedded Ray starts what a run needs, and says nothing."""

import subprocess
import sys

import pytest

START = """
import psutil, ray
from da2ray.commands.options import load
from da2ray.commands.pseudolabel import PseudolabelConfig
from da2ray.pipeline.control.cluster import connect

connect(load(PseudolabelConfig, ["--images", "images", "--output", "output"]))
for process in psutil.Process().children(recursive=True):
    print(process.name(), *process.cmdline())
ray.shutdown()
"""


@pytest.mark.ray
def test_an_embedded_ray_has_no_dashboard_monitor_or_log_monitor_and_is_silent() -> None:
    finished = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, check=False, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert not finished.stderr
    names = [line.split()[0] for line in finished.stdout.splitlines()]
    assert {"gcs_server", "raylet"} <= set(names)
    for part in ("dashboard/dashboard.py", "_private/monitor.py", "log_monitor.py"):
        assert part not in finished.stdout
