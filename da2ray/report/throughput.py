"""Images per second over time, of all runs, from the histories in their progress.json."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import numpy as np

from da2ray.storage import Store

LONG_GAP: Final = 0.04
"""Idle time beyond this share of the working time is drawn as a band of that width: weeks between two refreshes would
leave nothing of either."""
STRETCHES: Final = 160
"""Of one run's line; half of a history's points."""
STRETCH_SECONDS: Final = 5.0
THREADS: Final = 16


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it told its story; `config` is {} and `progress` {} where it wrote none.

    Attributes:
        points: UTC time in seconds since 1970, and images this run had done; two at least, ascending, or none.
    """

    name: str
    config: Mapping[str, Any]
    progress: Mapping[str, Any]
    points: tuple[tuple[float, int], ...]

    def rates(self) -> list[tuple[float, float, float]]:
        """(from, to, images per second) of up to STRETCHES stretches: shards end together, and what shows is the pace."""
        if not self.points:
            return []
        at, done = (np.array(column, np.float64) for column in zip(*self.points, strict=True))
        count = int(np.clip((at[-1] - at[0]) / STRETCH_SECONDS, 1, STRETCHES))
        edges = np.linspace(at[0], at[-1], count + 1)
        pace = np.diff(np.interp(edges, at, done)) / np.diff(edges)
        return list(zip(edges[:-1].tolist(), edges[1:].tolist(), pace.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class Idle:
    """No run was at work from `start` to `end` (seconds since 1970); `shown` is how wide it is drawn, in seconds."""

    start: float
    end: float
    shown: float


def read_runs(store: Store) -> list[Run]:
    """All runs of the dataset, oldest first: their names begin with their time."""
    keys = [key for batch in store.list("runs") for key in batch["key"].to_pylist() if key.count("/") == 2]
    names = sorted({key.split("/")[1] for key in keys})
    there = set(keys)

    def read(name: str) -> Run:
        config, progress = (
            json.loads(store.get(key)) if (key := f"runs/{name}/{file}.json") in there else {}
            for file in ("config", "progress")
        )
        return Run(name, config, progress, _points(progress))

    with ThreadPoolExecutor(THREADS, thread_name_prefix="runs") as pool:
        return list(pool.map(read, names))


def idle_times(runs: Sequence[Run]) -> list[Idle]:
    """Stretches between the first and the last point in which no run was at work, oldest first."""
    spans = sorted((run.points[0][0], run.points[-1][0]) for run in runs if run.points)
    gaps: list[tuple[float, float]] = []
    until = spans[0][1] if spans else 0.0
    for start, end in spans[1:]:
        if start > until:
            gaps.append((until, start))
        until = max(until, end)
    whole = until - spans[0][0] if spans else 0.0
    working = whole - sum(end - start for start, end in gaps)
    return [Idle(start, end, min(end - start, LONG_GAP * working)) for start, end in gaps]


def _points(progress: Mapping[str, Any]) -> tuple[tuple[float, int], ...]:
    """Of a run without a history, which an earlier release made: its beginning and its end."""
    if not progress:
        return ()
    history = [(datetime.fromisoformat(at), done) for at, done in progress.get("history", [])]
    if not history:
        end = datetime.fromisoformat(progress["updated"])
        start = end - timedelta(seconds=progress["elapsed_seconds"])
        history = [(start, 0), (end, progress["samples"]["this_run"])]
    points: list[tuple[float, int]] = []
    for at, done in history:
        if not points or at.timestamp() > points[-1][0]:
            points.append((at.timestamp(), done))
    return tuple(points) if len(points) > 1 else ()
