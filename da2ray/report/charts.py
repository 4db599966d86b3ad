"""Inline SVG: histograms and throughput. Colours are report.css's, by class, so that they follow light and dark."""

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import Final

import numpy as np

from da2ray.console import duration
from da2ray.report.axis import Axis
from da2ray.report.survey import Distribution
from da2ray.report.throughput import Idle, Run

WIDTH: Final = 360
HEIGHT: Final = 128
_TOP, _FLOOR, _SIDE = 16, 104, 10

TIME_WIDTH: Final = 1000
TIME_HEIGHT: Final = 240
_LEFT, _RIGHT, _ABOVE, _BELOW = 56, 990, 14, 210
_TIMES = 6


def number(value: float) -> str:
    """Three digits for people: 0.0832, 12.3, 1,234."""
    if value == 0 or 1e-4 <= abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) < 1e7 and abs(value) >= 1000 else f"{value:.2e}"


def percent(part: float, whole: float) -> str:
    """`part` of `whole`: 12 %, 1.3 %, 0.004 %; what is not nothing never reads as 0 %."""
    if not whole or not part:
        return "0 %"
    share = 100 * part / whole
    if share >= 99.95 and part < whole:
        return "over 99.9 %"
    return f"{share:.0f} %" if share >= 10 else f"{share:.2g} %" if share >= 0.001 else "under 0.001 %"


def histogram(found: Distribution) -> str:
    """Bars; those that a threshold removes in another colour, and its line."""
    bins = len(found.counts)
    top = max(1, int(found.counts.max()))
    step = (WIDTH - 2 * _SIDE) / bins
    kept: list[str] = []
    removed: list[str] = []
    for index, (count, gone) in enumerate(zip(found.counts.tolist(), found.removed_counts.tolist(), strict=True)):
        floor: float = _FLOOR
        for number_of, bars in ((gone, removed), (count - gone, kept)):
            if number_of:
                # A pixel at least: a bin of one row in ten million is there, too.
                height = max(1.0, (_FLOOR - _TOP) * number_of / top)
                bars.append(f"M{_SIDE + index * step:.1f} {floor:.1f}v{-height:.1f}h{step - 0.7:.1f}v{height:.1f}z")
                floor -= height
    parts = [f'<path class="kept" d="{"".join(kept)}"/>', f'<path class="removed" d="{"".join(removed)}"/>']
    parts.append(f'<path class="axis" d="M{_SIDE} {_FLOOR + 0.5}H{WIDTH - _SIDE}"/>')
    for tick in found.axis.ticks():
        x = _x(found.axis, tick)
        parts.append(f'<path class="axis" d="M{x:.1f} {_FLOOR}v4"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{_FLOOR + 17}" text-anchor="middle">{number(tick)}</text>')
    for line, _ in found.removed:
        x = _x(found.axis, line.number)
        beyond = "→" if line.number > found.axis.high else "←" if line.number < found.axis.low else ""
        anchor = "start" if x < WIDTH / 2 else "end"
        shift = 4 if anchor == "start" else -4
        parts.append(f'<path class="threshold" d="M{x:.1f} 2V{_FLOOR}"/>')
        parts.append(
            f'<text class="mark" x="{x + shift:.1f}" y="11" text-anchor="{anchor}">'
            f"{escape(line.operator)} {number(line.number)}{beyond}</text>"
        )
    said = f"Histogram of {found.score.name}: {found.measured:,} rows, median {number(found.percentile(50))}"
    return _svg(WIDTH, HEIGHT, "histogram", said, parts)


def throughput(runs: Sequence[Run], idle: Sequence[Idle]) -> str:
    """A line for each run, idle times as bands; empty where no run has a history."""
    runs = [run for run in runs if run.points]
    if not runs:
        return ""
    time = _Time(runs, idle)
    lines = {run.name: run.rates() for run in runs}
    highest = max(rate for rates in lines.values() for _, _, rate in rates) or 1.0
    axis = Axis(0.0, highest * 1.08)

    def y(rate: float) -> float:
        return _BELOW - (_BELOW - _ABOVE) * axis.share(rate)

    parts = []
    for tick in axis.ticks():
        parts.append(f'<path class="grid-line" d="M{_LEFT} {y(tick):.1f}H{_RIGHT}"/>')
        parts.append(
            f'<text class="tick" x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{number(tick)}</text>'
        )
    for gap in idle:
        left, right = time.x(gap.start), time.x(gap.end)
        said = f"idle {duration(gap.end - gap.start)}"
        parts.append(
            f'<rect class="idle" x="{left:.1f}" y="{_ABOVE}" width="{max(1, right - left):.1f}" height="{_BELOW - _ABOVE}">'
            f"<title>{said}</title></rect>"
        )
        if right - left >= 24:
            x, middle = (left + right) / 2 + 4, (_ABOVE + _BELOW) / 2
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{middle}" text-anchor="middle" '
                f'transform="rotate(-90 {x:.1f} {middle})">{said}</text>'
            )
    for run in runs:
        steps = "".join(f"L{time.x(a):.1f} {y(rate):.1f}H{time.x(b):.1f}" for a, b, rate in lines[run.name])
        left, right = time.x(run.points[0][0]), time.x(run.points[-1][0])
        parts.append(f'<path class="area" d="M{left:.1f} {_BELOW}{steps}L{right:.1f} {_BELOW}z"/>')
        parts.append(f'<path class="pace" d="M{steps[1:]}"><title>{escape(run.name)}</title></path>')
    parts.append(f'<path class="axis" d="M{_LEFT} {_BELOW + 0.5}H{_RIGHT}"/>')
    for x, said in time.ticks():
        parts.append(f'<text class="tick" x="{x:.1f}" y="{_BELOW + 18}" text-anchor="middle">{said}</text>')
    return _svg(TIME_WIDTH, TIME_HEIGHT, "throughput", "Images per second over time (UTC)", parts)


class _Time:
    """Time -> x, idle times as wide as they are shown."""

    def __init__(self, runs: Sequence[Run], idle: Sequence[Idle]) -> None:
        start = min(run.points[0][0] for run in runs)
        end = max(run.points[-1][0] for run in runs)
        # Knots of a line from time to place; between two of them it is straight.
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
        return _LEFT + (_RIGHT - _LEFT) * _interpolate(time, self._times, self._places) / self._places[-1]

    def ticks(self) -> list[tuple[float, str]]:
        """Evenly spread, but for those within idle times."""
        found = []
        days = self._times[-1] - self._times[0] > 86_400
        short = self._times[-1] - self._times[0] < 1_800
        for index in range(_TIMES):
            place = self._places[-1] * (index + 0.5) / _TIMES
            time = _interpolate(place, self._places, self._times)
            if not any(gap.start < time < gap.end for gap in self._idle):
                at = datetime.fromtimestamp(time, UTC)
                said = f"{at:%d %b %H:%M}" if days else f"{at:%H:%M:%S}" if short else f"{at:%H:%M}"
                found.append((_LEFT + (_RIGHT - _LEFT) * (index + 0.5) / _TIMES, said))
        return found


def _interpolate(value: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    return float(np.interp(value, xs, ys))


def _x(axis: Axis, value: float) -> float:
    return _SIDE + (WIDTH - 2 * _SIDE) * axis.share(value)


def _svg(width: int, height: int, name: str, said: str, parts: Sequence[str]) -> str:
    return f'<svg class="{name}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(said)}">{"".join(parts)}</svg>'
