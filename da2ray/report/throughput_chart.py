"""Images per second over time: where the runs' lines lie. templates/throughput.svg draws them, report.css colours them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar, Final

import numpy as np

from da2ray.console import duration
from da2ray.report.axis import Axis, Tick
from da2ray.report.formats import number
from da2ray.report.throughput import Idle, PacedRun

WIDTH: Final = 1000
HEIGHT: Final = 240
LEFT: Final = 56
RIGHT: Final = 990
TOP: Final = 14
FLOOR: Final = 210
TIMES: Final = 6
"""Ticks of the time axis, at most."""
NARROWEST_TEXT: Final = 24
"""Width from which an idle band has room for its text."""


@dataclass(frozen=True, slots=True)
class RateTick:
    """A horizontal line at `y`, and its rate."""

    y: float
    text: str


@dataclass(frozen=True, slots=True)
class IdleBand:
    """A time in which no run was at work; `text_x` is None if the band is too narrow for its text."""

    x: float
    width: float
    text: str
    text_x: float | None


@dataclass(frozen=True, slots=True)
class RunLine:
    """A run's rate as an SVG path, and the area below it."""

    name: str
    pace: str
    area: str


@dataclass(frozen=True, slots=True)
class ThroughputChart:
    """Coordinates in units of the drawing, WIDTH x HEIGHT."""

    width: ClassVar[int] = WIDTH
    height: ClassVar[int] = HEIGHT
    left: ClassVar[int] = LEFT
    right: ClassVar[int] = RIGHT
    top: ClassVar[int] = TOP
    floor: ClassVar[int] = FLOOR

    rates: tuple[RateTick, ...]
    idle: tuple[IdleBand, ...]
    runs: tuple[RunLine, ...]
    times: tuple[Tick, ...]


def throughput_chart(runs: Sequence[PacedRun], idle: Sequence[Idle]) -> ThroughputChart | None:
    """A line for each run, idle times as bands; None if no run has a history."""
    runs = [run for run in runs if run.points]
    if not runs:
        return None
    time = _TimeScale(runs, idle)
    lines = [run.rates() for run in runs]
    highest = max(rate for rates in lines for _, _, rate in rates) or 1.0
    axis = Axis(0.0, highest * 1.08)

    def y(rate: float) -> float:
        return round(FLOOR - (FLOOR - TOP) * axis.share(rate), 1)

    def line(run: PacedRun, rates: Sequence[tuple[float, float, float]]) -> RunLine:
        steps = "".join(f"L{time.x(start):.1f} {y(rate):.1f}H{time.x(end):.1f}" for start, end, rate in rates)
        first, last = time.x(run.points[0][0]), time.x(run.points[-1][0])
        return RunLine(run.name, f"M{steps[1:]}", f"M{first:.1f} {FLOOR}{steps}L{last:.1f} {FLOOR}z")

    return ThroughputChart(
        rates=tuple(RateTick(y(tick), number(tick)) for tick in axis.ticks()),
        idle=tuple(_band(time, gap) for gap in idle),
        runs=tuple(line(run, rates) for run, rates in zip(runs, lines, strict=True)),
        times=tuple(time.ticks()),
    )


def _band(time: "_TimeScale", gap: Idle) -> IdleBand:
    left, right = time.x(gap.start), time.x(gap.end)
    return IdleBand(
        x=round(left, 1),
        width=round(max(1, right - left), 1),
        text=f"idle {duration(gap.end - gap.start)}",
        text_x=round((left + right) / 2 + 4, 1) if right - left >= NARROWEST_TEXT else None,
    )


class _TimeScale:
    """Time -> x. Idle times are as wide as `Idle.shown` says."""

    def __init__(self, runs: Sequence[PacedRun], idle: Sequence[Idle]) -> None:
        start = min(run.points[0][0] for run in runs)
        end = max(run.points[-1][0] for run in runs)
        # Knots of a line from time to place; it is straight between two of them.
        self._times, self._places = [start], [0.0]
        for gap in idle:
            self._add(gap.start, gap.start - self._times[-1])
            self._add(gap.end, gap.shown)
        self._add(end, end - self._times[-1])
        self._idle = idle

    def _add(self, time: float, length: float) -> None:
        self._times.append(time)
        self._places.append(self._places[-1] + length)

    def x(self, time: float) -> float:
        return LEFT + (RIGHT - LEFT) * _interpolate(time, self._times, self._places) / self._places[-1]

    def ticks(self) -> list[Tick]:
        """Evenly spread times, without those that fall into an idle time."""
        ticks = []
        length = self._times[-1] - self._times[0]
        form = "%d %b %H:%M" if length > 86_400 else "%H:%M:%S" if length < 1_800 else "%H:%M"
        for index in range(TIMES):
            share = (index + 0.5) / TIMES
            time = _interpolate(self._places[-1] * share, self._places, self._times)
            if not any(gap.start < time < gap.end for gap in self._idle):
                ticks.append(
                    Tick(round(LEFT + (RIGHT - LEFT) * share, 1), f"{datetime.fromtimestamp(time, UTC):{form}}")
                )
        return ticks


def _interpolate(value: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    return float(np.interp(value, xs, ys))
