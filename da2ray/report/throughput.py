"""Images per second over time for all runs, from the histories in their progress.json."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from da2ray.labels import runs as stored
from da2ray.labels.runs import Run, RunProgress
from da2ray.storage import Store

LONG_GAP: Final = 0.04
"""The widest band for an idle time, as a share of the working time. Drawn to scale, weeks between two refreshes would leave no
room for the refreshes."""
STRETCHES: Final = 160
"""The most stretches in the line of a run: half of the points of a history."""
STRETCH_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class PacedRun(Run):
    """A run and its pace.

    Attributes:
        points: UTC time in seconds since 1970, and images that this run had done by then; ascending; at least two, or none.
    """

    points: tuple[tuple[float, int], ...]

    def rates(self) -> list[tuple[float, float, float]]:
        """(from, to, images per second) for up to STRETCHES stretches, which even out that shards end together."""
        if not self.points:
            return []
        at, done = (np.array(column, np.float64) for column in zip(*self.points, strict=True))
        count = int(np.clip((at[-1] - at[0]) / STRETCH_SECONDS, 1, STRETCHES))
        edges = np.linspace(at[0], at[-1], count + 1)
        pace = np.diff(np.interp(edges, at, done)) / np.diff(edges)
        return list(zip(edges[:-1].tolist(), edges[1:].tolist(), pace.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class Idle:
    """A time without a run, from `start` to `end` in seconds since 1970. It is drawn `shown` seconds wide."""

    start: float
    end: float
    shown: float


def read_runs(store: Store) -> list[PacedRun]:
    """All runs of the dataset, oldest first."""
    return [PacedRun(run.name, run.config, run.progress, _points(run.progress)) for run in stored.read_runs(store)]


def idle_times(runs: Sequence[PacedRun]) -> list[Idle]:
    """The times between the first and the last point in which no run was at work, oldest first."""
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


def _points(progress: RunProgress | None) -> tuple[tuple[float, int], ...]:
    points: list[tuple[float, int]] = []
    for at, done in progress.history if progress else ():
        if not points or at.timestamp() > points[-1][0]:
            points.append((at.timestamp(), done))
    return tuple(points) if len(points) > 1 else ()
