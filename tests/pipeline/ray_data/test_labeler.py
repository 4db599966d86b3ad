"""What the labelling actor does when its device breaks."""

import subprocess
import sys

BREAK = """
import asyncio
from da2ray.pipeline.ray_data.labeler import Labeler
from tests.pipeline.stages.test_device import host_batch, lost_device

labeler = object.__new__(Labeler)
labeler._device = lost_device()
try:
    asyncio.run(labeler._label(host_batch(1, 2)))
finally:
    print("alive")
"""
"""A labelling actor without a cluster, whose constructor would ask the cluster for the actor's id."""


def test_a_broken_device_ends_the_process_so_that_ray_tries_again_elsewhere() -> None:
    finished = subprocess.run([sys.executable, "-c", BREAK], capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 1
    assert finished.stdout == "", "an exception would end the whole run"
    assert "an illegal memory access" in finished.stderr
