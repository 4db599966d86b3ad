"""Time a command with all its children: wall seconds, and CPU seconds of the whole tree."""

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLE_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Usage:
    """The usage of one run of a command and all processes that it started: wall seconds, CPU seconds, and its exit code."""

    wall: float
    cpu: float
    exit_code: int


def timed(command: Sequence[str], log: Path) -> Usage:
    """Run a command to its end, with its output in `log`.

    The CPU seconds are the sum of each process's last reading. Readings are 0.25 s apart, so the time after a process's last
    reading is missed. That is little for processes that live for seconds.
    """
    seen: dict[tuple[int, float], float] = {}
    ended = threading.Event()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        began = time.perf_counter()
        environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)  # noqa: S603 - our own jobs
        sampler = threading.Thread(target=_sample, args=(process.pid, seen, ended))
        sampler.start()
        code = process.wait()
        wall = time.perf_counter() - began
        ended.set()
        sampler.join()
    return Usage(wall, sum(seen.values()), code)


def _sample(pid: int, seen: dict[tuple[int, float], float], ended: threading.Event) -> None:
    known: dict[int, psutil.Process] = {}
    while not ended.wait(SAMPLE_SECONDS):
        try:
            root = known.setdefault(pid, psutil.Process(pid))
            known |= {child.pid: child for child in root.children(recursive=True) if child.pid not in known}
        except psutil.Error:
            continue
        for process in list(known.values()):
            try:
                times = process.cpu_times()
                seen[process.pid, process.create_time()] = times.user + times.system
            except psutil.Error:
                known.pop(process.pid, None)
