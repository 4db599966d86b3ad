"""Run the main job, as a process or in this one, and inspect the dataset that it wrote.

Tests use the fixtures `run_job`, `run_alone`, `start_job` and `start_alone`, which mark them `ray`.
"""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import psutil
import ray

from da2ray.commands.pseudolabel import COMMAND
from da2ray.labels.commits import Commit, list_commits, read_commit
from da2ray.labels.runs import RunProgress, newest_progress
from da2ray.plan.plan import list_plans
from da2ray.storage import Store
from tests import AUTH

JOB = Path(__file__).parent.parent / "jobs" / "pseudolabel.py"
TIMEOUT_S = 240
CLUSTER_VARIABLES = ("RAY_ADDRESS", *AUTH)
"""Environment variables that name a cluster. A job that is to start its own Ray must not have them."""

Command = Callable[..., tuple[int, str, str]]
"""Type of the fixtures `command` and `job_without_ray`: from arguments to exit code, stdout and stderr."""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a job ended."""

    code: int
    stdout: str
    stderr: str


RunJob = Callable[..., Finished]
"""Type of the fixtures `run_job` and `run_alone`."""
StartJob = Callable[..., "RunningJob"]
"""Type of the fixtures `start_job` and `start_alone`."""


def run_script(
    *args: object,
    env: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT_S,
    command: Sequence[object] = (sys.executable, JOB),
) -> Finished:
    """Run jobs/pseudolabel.py, or another `command`, as a process to its end; `env` is added to its environment."""
    return RunningJob(*args, env=env, command=command).wait(timeout)


def joined(cluster: Mapping[str, str], env: Mapping[str, str] | None) -> dict[str, str]:
    """The environment of a driver that joins a cluster: `cluster` names it, and Ray passes `env` on to the workers."""
    config = {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {"env_vars": dict(env)}})} if env else {}
    return {**cluster, **(env or {}), **config}


class JoinedDriver:
    """The driver of jobs on a running cluster, which is this process.

    Consecutive jobs with the same environment share one connection, so Ray's workers go on from job to job, as they do between
    the waves of a job. For eleven images and the teacher luminance a job takes 5.6 s of CPU so; 8.4 s with a connection of its
    own, 5 s more as a process of its own, and another 9 s with an embedded Ray.
    """

    def __init__(self, cluster: Mapping[str, str]) -> None:
        """`cluster`: the environment with which a driver joins it."""
        self._cluster = cluster
        self._environment: dict[str, str] | None = None

    def run(self, *args: object, env: Mapping[str, str] | None = None, fresh: bool = False) -> Finished:
        """Run the job in this process, and restore environment and signal handlers afterwards.

        Args:
            args: the job's arguments.
            env: added to the environment of driver and workers.
            fresh: the job's workers must not have worked for another job.
        """
        environment = joined(self._cluster, env)
        if fresh or environment != self._environment:
            self.leave()
        self._environment = environment
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        stdout, stderr = io.StringIO(), io.StringIO()
        with (
            patch.dict(os.environ, environment),
            patch.object(ray, "shutdown"),
            redirect_stdout(stdout),
            redirect_stderr(stderr),
        ):
            try:
                code = COMMAND.main([str(arg) for arg in args], prog="pseudolabel.py")
            finally:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        return Finished(code, stdout.getvalue(), stderr.getvalue())

    def leave(self) -> None:
        """End the connection, and with it the workers."""
        self._environment = None
        ray.shutdown()


class RunningJob:
    """A process that runs jobs/pseudolabel.py or another `command`. It starts its own Ray unless `env` names a cluster."""

    def __init__(
        self,
        *args: object,
        env: Mapping[str, str] | None = None,
        command: Sequence[object] = (sys.executable, JOB),
    ) -> None:
        inherited = {name: value for name, value in os.environ.items() if name not in CLUSTER_VARIABLES}
        self._process = subprocess.Popen(
            [str(part) for part in (*command, *args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=inherited | {"RAY_USAGE_STATS_ENABLED": "0", "COLUMNS": "200"} | dict(env or {}),
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait(self, timeout: float = TIMEOUT_S) -> Finished:
        """Wait for the end of the process, and return its exit code and output."""
        try:
            stdout, stderr = self._process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return Finished(self._process.returncode, stdout, stderr)

    def wait_until(self, condition: Callable[[], bool], timeout: float = TIMEOUT_S) -> None:
        """Wait until `condition` is true while the job runs.

        Raises:
            AssertionError: the job ended before that, or the timeout passed.
        """
        deadline = time.monotonic() + timeout
        while not condition():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"ended or late: {self.wait(30)}")
            time.sleep(0.05)

    def terminate(self) -> None:
        """Send SIGTERM to the driver, as a scheduler does."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the driver and all processes that it started, including Ray's."""
        kill_with_children(self._process)


def kill_with_children(process: subprocess.Popen) -> None:
    """Send SIGKILL to a process and all processes that it started."""
    started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.kill()
    # Ray's daemons end with their driver, and workers with their raylet, but later; a test does not wait for that.
    for each in started:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(started, timeout=30)
    process.wait(30)


def commits_of(store: Store) -> dict[int, Commit]:
    """The commits of a dataset that has one plan, by shard. Empty before the first commit."""
    return {
        entry.shard: read_commit(store, plan.id, entry.shard)
        for plan in list_plans(store)
        for entry in list_commits(store, plan.id)
    }


def count_commits(store: Store) -> int:
    return sum(batch.num_rows for batch in store.list("commits"))


def shard_objects(store: Store) -> set[str]:
    return {key for batch in store.list("shards") for key in batch["key"].to_pylist()}


def progress_of(store: Store) -> RunProgress:
    """The progress of the newest run.

    Raises:
        AssertionError: no run wrote one.
    """
    progress = newest_progress(store)
    assert progress is not None
    return progress
