"""Timing a command with all its children: wall seconds, CPU seconds of the whole tree, peak memory."""

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
    """Of one run of a command and everything it started: seconds, CPU seconds, bytes (proportional set sizes)."""

    wall: float
    cpu: float
    exit_code: int


def timed(command: Sequence[str], log: Path) -> Usage:
    """Run a command to its end, its output into `log`.

    CPU seconds are the last reading of each process, every 0.25 s: what a process used after its last reading is missed, which
    for processes that live for seconds is little.
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
