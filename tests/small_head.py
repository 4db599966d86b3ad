"""A Ray node without dashboard, job server and monitors, for tests whose drivers join a cluster.

`python -m tests.small_head` starts one, prints its address, and ends when its standard input does. A head that `ray start` makes
(`tests.ray_head`) costs 8 s of CPU more, and twice as much while it idles (8 % of a core, measured on two cores).
"""

import logging
import os
import subprocess
import sys

from rich.console import Console

from da2ray.pipeline.control.cluster import WORKER_ENVIRONMENT
from da2ray.pipeline.control.embedded import init_embedded
from tests import AUTH
from tests.jobs import CLUSTER_VARIABLES, kill_with_children
from tests.s3_server import end_with_parent

CPUS, STORE_BYTES = 2, 512 << 20


class SmallHead:
    """A Ray node that runs until `close`.

    Attributes:
        driver_env: the environment with which a driver joins it.
    """

    def __init__(self) -> None:
        inherited = {name: value for name, value in os.environ.items() if name not in CLUSTER_VARIABLES}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.small_head"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=inherited | AUTH | WORKER_ENVIRONMENT | {"RAY_USAGE_STATS_ENABLED": "0"},
            start_new_session=True,
            preexec_fn=end_with_parent,  # noqa: PLW1509  Safe: one prctl, no Python lock. Its reaper ends the rest.
        )
        assert self._process.stdout is not None
        address = self._process.stdout.readline().strip()
        if not address:
            self.close()
            raise RuntimeError(f"Ray did not start; try: {sys.executable} -m tests.small_head")
        self.driver_env = {"RAY_ADDRESS": address, **AUTH}

    def close(self) -> None:
        """Kill the node, which has nothing to save."""
        kill_with_children(self._process)


def main() -> None:
    import ray

    console = Console(stderr=True)
    init_embedded(
        console,
        runtime_envs=True,  # for the environment variables of single jobs
        num_cpus=CPUS,
        object_store_memory=STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
