"""A score's histogram: where its bars, ticks and thresholds lie. templates/histogram.svg draws it, report.css colours it."""

from dataclasses import dataclass
from typing import ClassVar, Final

from da2ray.report.axis import Tick
from da2ray.report.formats import number
from da2ray.report.survey import Distribution

WIDTH: Final = 360
HEIGHT: Final = 128
TOP: Final = 16
FLOOR: Final = 104
SIDE: Final = 10


@dataclass(frozen=True, slots=True)
class ThresholdLine:
    """A threshold's line at `x`, and its text beside the line, on the side with more room (`anchor`: start or end)."""

    x: float
    text: str
    text_x: float
    anchor: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """Coordinates in units of the drawing, WIDTH x HEIGHT.

    Attributes:
        description: what a screen reader says.
        kept, removed: SVG path of the bars of rows that stay, and of rows that a threshold removes.
    """

    width: ClassVar[int] = WIDTH
    height: ClassVar[int] = HEIGHT
    floor: ClassVar[int] = FLOOR
    left: ClassVar[int] = SIDE
    right: ClassVar[int] = WIDTH - SIDE

    description: str
    kept: str
    removed: str
    ticks: tuple[Tick, ...]
    thresholds: tuple[ThresholdLine, ...]


def histogram(distribution: Distribution) -> Histogram:
    """Stack the bars of kept rows on those of removed rows, and mark the thresholds."""
    kept, removed = _bars(distribution)
    axis = distribution.axis
    return Histogram(
        description=(
            f"Histogram of {distribution.score.name}: {distribution.measured:,} rows, "
            f"median {number(distribution.percentile(50))}"
        ),
        kept=kept,
        removed=removed,
        ticks=tuple(Tick(_x(distribution, tick), number(tick)) for tick in axis.ticks()),
        thresholds=tuple(_threshold_line(distribution, line.operator, line.number) for line, _ in distribution.removed),
    )


def _bars(distribution: Distribution) -> tuple[str, str]:
    counts, gone_counts = distribution.counts.tolist(), distribution.removed_counts.tolist()
    step = (WIDTH - 2 * SIDE) / len(counts)
    highest = max(1, *counts)
    kept: list[str] = []
    removed: list[str] = []
    for index, (count, gone) in enumerate(zip(counts, gone_counts, strict=True)):
        floor: float = FLOOR
        for rows, bars in ((gone, removed), (count - gone, kept)):
            if rows:
                # At least a pixel, so that a bin of one row in ten million can be seen.
                height = max(1.0, (FLOOR - TOP) * rows / highest)
                bars.append(f"M{SIDE + index * step:.1f} {floor:.1f}v{-height:.1f}h{step - 0.7:.1f}v{height:.1f}z")
                floor -= height
    return "".join(kept), "".join(removed)


def _threshold_line(distribution: Distribution, operator: str, value: float) -> ThresholdLine:
    axis = distribution.axis
    x = _x(distribution, value)
    beyond = "→" if value > axis.high else "←" if value < axis.low else ""
    anchor, shift = ("start", 4) if x < WIDTH / 2 else ("end", -4)
    return ThresholdLine(x, f"{operator} {number(value)}{beyond}", round(x + shift, 1), anchor)


def _x(distribution: Distribution, value: float) -> float:
    return round(SIDE + (WIDTH - 2 * SIDE) * distribution.axis.share(value), 1)
