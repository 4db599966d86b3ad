"""Find the processes of a running job by their task, and kill them as a crash would."""

import time
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum

import psutil

CHILDREN_SECONDS = 0.2
"""Time for which a list of a job's processes is used again, because making one reads all of /proc."""
GONE_SECONDS = 30


class Target(StrEnum):
    """A process, or a group of processes, to kill."""

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
"""Beginnings of the titles that Ray gives to busy workers. Between tasks the title is `ray::IDLE`."""
DAEMONS = {Target.RAYLET: "raylet", Target.GCS: "gcs_server"}


class JobProcesses:
    """The driver of a job and all processes below it: Ray's daemons are its children, the workers are the raylet's children."""

    def __init__(self, pid: int) -> None:
        self.driver = psutil.Process(pid)
        self._below: list[psutil.Process] = []
        self._listed = 0.0

    def below(self) -> list[psutil.Process]:
        """All processes but the driver, as of a moment ago. If the driver is dead: the last known ones."""
        if time.monotonic() - self._listed > CHILDREN_SECONDS and is_alive(self.driver):
            with suppress(psutil.NoSuchProcess):
                self._below = self.driver.children(recursive=True)
            self._listed = time.monotonic()
        return self._below

    def has_cluster(self) -> bool:
        return any(title_of(process).startswith(DAEMONS[Target.RAYLET]) for process in self.below())

    def find(self, target: Target) -> psutil.Process | None:
        """Find a daemon, or a worker at the task of `target`; None if no process is."""
        begins = WORKERS.get(target) or DAEMONS[target]
        return next((process for process in self.below() if title_of(process).startswith(begins)), None)

    def kill_all(self) -> int:
        """Kill the driver and all processes below it at once, and return how many there were."""
        processes = [self.driver]
        while True:
            # Stop all of them first, so that none starts another process meanwhile.
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.suspend()
            running = [self.driver, *self.driver.children(recursive=True)]
            if set(running) <= set(processes):
                break
            processes = running
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        wait_gone(processes)
        return len(processes)


def title_of(process: psutil.Process) -> str:
    """The title that Ray gave to the process, or else its name. Empty if the process is gone."""
    try:
        title = " ".join(process.cmdline()).strip()
        return title if title.startswith("ray::") else process.name()
    except psutil.Error:
        return ""


def kill_while(process: psutil.Process, still: Callable[[psutil.Process], bool]) -> bool:
    """Kill the process if `still` holds for it while it is stopped. Return whether it was killed."""
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
    """Wait until all processes are dead, reaped or not.

    Raises:
        AssertionError: a process is still alive after `timeout` seconds.
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
