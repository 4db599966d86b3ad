"""The processes of a running job, by what they do, and ending them as a crash does."""

import time
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum

import psutil

CHILDREN_SECONDS = 0.2
"""For how long a list of a job's processes is used: making one reads all of /proc."""
GONE_SECONDS = 30


class Target(StrEnum):
    """What is killed."""

    DRIVER = "driver"
    LABELLER = "labelling actor"
    READER = "read worker"
    WRITER = "write worker"
    CLUSTER = "whole cluster"
    RAYLET = "raylet alone"
    GCS = "GCS alone"


WORKERS = {
    Target.LABELLER: "ray::MapWorker(MapBatches(Labeler))",
    Target.READER: "ray::ReadShard",
    Target.WRITER: "ray::Write",
}
"""How the titles begin that Ray gives these processes while they are at it; between tasks they are `ray::IDLE`."""
DAEMONS = {Target.RAYLET: "raylet", Target.GCS: "gcs_server"}
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""They notice after a minute that their raylet is gone, and touch no data."""


class JobProcesses:
    """The driver and everything below it. Ray's daemons are its children, workers those of the raylet."""

    def __init__(self, pid: int) -> None:
        self.driver = psutil.Process(pid)
        self._below: list[psutil.Process] = []
        self._listed = 0.0

    def below(self) -> list[psutil.Process]:
        """All but the driver, as of a moment ago; of a dead driver those that it had."""
        if time.monotonic() - self._listed > CHILDREN_SECONDS and is_alive(self.driver):
            with suppress(psutil.NoSuchProcess):
                self._below = self.driver.children(recursive=True)
            self._listed = time.monotonic()
        return self._below

    def has_cluster(self) -> bool:
        return any(title_of(process).startswith(DAEMONS[Target.RAYLET]) for process in self.below())

    def find(self, target: Target) -> psutil.Process | None:
        """A process that is doing now what `target`, a worker or a daemon, does."""
        begins = WORKERS.get(target) or DAEMONS[target]
        return next((process for process in self.below() if title_of(process).startswith(begins)), None)

    def kill_all(self) -> int:
        """SIGKILL to the driver and all below it at once; how many there were."""
        processes = [self.driver]
        while True:
            # Stopped first, so that nothing starts meanwhile what would be missed.
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.suspend()
            found = [self.driver, *self.driver.children(recursive=True)]
            if set(found) <= set(processes):
                break
            processes = found
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        wait_gone(processes)
        return len(processes)


def title_of(process: psutil.Process) -> str:
    """What it says that it does; empty where it is no more."""
    try:
        title = " ".join(process.cmdline()).strip()
        return title if title.startswith("ray::") else process.name()
    except psutil.Error:
        return ""


def kill_while(process: psutil.Process, still: Callable[[psutil.Process], bool]) -> bool:
    """SIGKILL, if that holds of it at this moment; whether it did and the process is dead now."""
    try:
        process.suspend()
        if still(process):
            process.kill()
            wait_gone([process])
            return True
        process.resume()
    except psutil.NoSuchProcess:
        pass
    return False


def wait_gone(processes: list[psutil.Process], timeout: float = GONE_SECONDS) -> None:
    """Wait until all are dead, reaped or not.

    Raises:
        AssertionError: one is alive.
    """
    deadline = time.monotonic() + timeout
    while alive := [process for process in processes if is_alive(process)]:
        assert time.monotonic() < deadline, f"alive after {timeout} s: {[title_of(process) for process in alive]}"
        time.sleep(0.01)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
