"""Running the main job, as a process or in this one, and looking at what a run left behind.

Tests get these ways to run it from the fixtures `run_job`, `run_alone`, `start_job` and `start_alone`, which mark them `ray`.
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
"""What names a cluster in the environment; a job that is to start a Ray of its own must not have them."""

Command = Callable[..., tuple[int, str, str]]
"""What the fixtures `command` and `job_without_ray` are: exit code, stdout and stderr of arguments."""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a job ended."""

    code: int
    stdout: str
    stderr: str


RunJob = Callable[..., Finished]
"""What the fixtures `run_job` and `run_alone` are."""
StartJob = Callable[..., "RunningJob"]
"""What the fixtures `start_job` and `start_alone` are."""


def run_script(
    *args: object,
    env: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT_S,
    command: Sequence[object] = (sys.executable, JOB),
) -> Finished:
    """Run jobs/pseudolabel.py, or another `command`, as a process to its end; `env` is added to its environment."""
    return RunningJob(*args, env=env, command=command).wait(timeout)


def joined(cluster: Mapping[str, str], env: Mapping[str, str] | None) -> dict[str, str]:
    """The environment of a driver that joins a cluster: what names the cluster, and `env`, also for Ray to give to workers."""
    config = {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {"env_vars": dict(env)}})} if env else {}
    return {**cluster, **(env or {}), **config}


def run_here(cluster: Mapping[str, str], *args: object, env: Mapping[str, str] | None = None) -> Finished:
    """Run the job's own code in this process, on a running cluster; this process is afterwards as it was before.

    A driver that is a process of its own costs 5 CPU seconds more, and an embedded Ray another 11 (measured: 11, 16 and 27 for
    eleven images with the teacher luminance).
    """
    argv = [str(arg) for arg in args]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stdout, stderr = io.StringIO(), io.StringIO()
    with patch.dict(os.environ, joined(cluster, env)), redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            code = COMMAND.main(argv, prog="pseudolabel.py")
        finally:
            ray.shutdown()
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return Finished(code, stdout.getvalue(), stderr.getvalue())


class RunningJob:
    """jobs/pseudolabel.py, or another `command`, as a process; it starts a Ray of its own unless `env` names a cluster."""

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
        """Its exit code and all that it said."""
        try:
            stdout, stderr = self._process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return Finished(self._process.returncode, stdout, stderr)

    def wait_until(self, condition: Callable[[], bool], timeout: float = TIMEOUT_S) -> None:
        """Wait for something to become true while the job runs.

        Raises:
            AssertionError: the job ended before, or it took too long.
        """
        deadline = time.monotonic() + timeout
        while not condition():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"ended or late: {self.wait(30)}")
            time.sleep(0.05)

    def terminate(self) -> None:
        """SIGTERM to the driver, as a scheduler does."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the driver and all that it started, Ray's processes among them."""
        kill_with_children(self._process)


def kill_with_children(process: subprocess.Popen) -> None:
    """SIGKILL to a process and all that it started."""
    started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.kill()
    # Ray's daemons end by themselves with their driver, and workers with their raylet; a test leaves no doubt.
    for each in started:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(started, timeout=30)
    process.wait(30)


def commits_of(store: Store) -> dict[int, Commit]:
    """The commits of a dataset that has one plan, by shard; empty where it has none yet."""
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
    found = newest_progress(store)
    assert found is not None
    return found
