"""Running jobs/pseudolabel.py as a user does, and looking at what a run left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from da2ray.labels.commits import Commit, list_commits, read_commit
from da2ray.labels.runs import RunProgress, newest_progress
from da2ray.plan.plan import list_plans
from da2ray.storage import Store

JOB = Path(__file__).parent.parent / "jobs" / "pseudolabel.py"
TIMEOUT_S = 240

Command = Callable[..., tuple[int, str, str]]
"""What the fixture `command` is."""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a job ended."""

    code: int
    stdout: str
    stderr: str


def run_job(
    *args: object,
    env: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT_S,
    command: Sequence[object] = (sys.executable, JOB),
) -> Finished:
    """Run the job to its end, on an embedded Ray; `env` on top of this process's environment, `command` in its place."""
    return RunningJob(*args, env=env, command=command).wait(timeout)


class RunningJob:
    """The job in a session of its own, for tests that signal it."""

    def __init__(
        self,
        *args: object,
        env: Mapping[str, str] | None = None,
        command: Sequence[object] = (sys.executable, JOB),
    ) -> None:
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
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
