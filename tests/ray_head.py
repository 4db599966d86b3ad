"""A Ray head with its own ports and folder, for tests of the job server.

Tests whose drivers only join a cluster use `tests.small_head`.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from ray.job_submission import JobSubmissionClient

from da2ray.pipeline.control.cluster import WORKER_ENVIRONMENT
from tests import AUTH
from tests.jobs import kill_with_children
from tests.s3_server import end_with_parent

BIN = Path(sys.executable).parent
START_TIMEOUT_S = 90


class RayHead:
    """A Ray head that runs until `close`.

    Attributes:
        client: a client of its job API.
        env: the environment with which `ray job submit` reaches it.
    """

    def __init__(self) -> None:
        with ExitStack() as sockets:
            held = [sockets.enter_context(socket.socket()) for _ in range(6)]
            for each in held:
                each.bind(("127.0.0.1", 0))
            gcs, dashboard, agent, agent_grpc, client, metrics = (each.getsockname()[1] for each in held)
        # Short, because the paths of Unix sockets below it may have 107 characters.
        self._folder = tempfile.mkdtemp(prefix="r", dir="/tmp")
        self._process = subprocess.Popen(
            [
                *(str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1"),
                *("--num-cpus=2", f"--object-store-memory={512 << 20}", f"--temp-dir={self._folder}", f"--port={gcs}"),
                *(
                    "--include-dashboard=true",
                    f"--dashboard-port={dashboard}",
                    f"--dashboard-agent-listen-port={agent}",
                ),
                *(f"--dashboard-agent-grpc-port={agent_grpc}", f"--ray-client-server-port={client}"),
                *(f"--metrics-export-port={metrics}", "--disable-usage-stats"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # With this PATH, `python` in a job's entrypoint is that of this environment.
            env=os.environ | AUTH | WORKER_ENVIRONMENT | {"PATH": f"{BIN}:{os.environ['PATH']}"},
            start_new_session=True,
            preexec_fn=end_with_parent,  # noqa: PLW1509  Safe: one prctl, no Python lock. Its reaper ends the rest.
        )
        address = f"http://127.0.0.1:{dashboard}"
        self.env = {"RAY_ADDRESS": address, **AUTH}
        try:
            self.client = _connected(address, {"Authorization": f"Bearer {AUTH['RAY_AUTH_TOKEN']}"})
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Kill the head, which has nothing to save. `ray stop` would end every Ray on the machine."""
        kill_with_children(self._process)
        shutil.rmtree(self._folder, ignore_errors=True)


def _connected(address: str, headers: dict[str, str]) -> JobSubmissionClient:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            client = JobSubmissionClient(address, headers=headers)
            client.list_jobs()
        except (ConnectionError, RuntimeError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return client
