"""The axis of a histogram: its ends, its ticks, and whether it is logarithmic."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TAIL = 0.5
"""Percent of the rows at each end that share the end bins. Without it one outlier would make a histogram of one bar."""
DECADES = 2.0
"""A score that is never 0 gets a logarithmic axis if it spans at least this many powers of ten."""
STRETCH = 1.0
"""An axis grows by at most this share of its length to show a threshold. A threshold further out is drawn at the end."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A number or a time below an axis, at `x` of the drawing."""

    x: float
    text: str


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis from `low` to `high`, low < high. Both are above 0 if it is logarithmic."""

    low: float
    high: float
    logarithmic: bool = False

    def share(self, value: float) -> float:
        """Place of a value: 0 at `low`, 1 at `high`; a value beyond an end lies at that end."""
        return float(np.clip(self._shares(np.array([value], np.float64)), 0, 1)[0])

    def bins(self, values: np.ndarray, count: int) -> np.ndarray:
        """Bins of values, (N,) finite -> int64 (N,), 0 to count - 1. The end bins take the values beyond."""
        return np.clip(np.floor(self._shares(values.astype(np.float64)) * count), 0, count - 1).astype(np.int64)

    def ticks(self) -> list[float]:
        """Up to seven round numbers on the axis."""
        if self.logarithmic:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            every = math.ceil(len(powers) / 7)
            return [10.0**power for power in powers if self.low <= 10.0**power <= self.high and power % every == 0]
        width = self.high - self.low
        power = 10.0 ** math.floor(math.log10(width))
        step = next(power * part for part in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0) if width / (power * part) <= 6)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def _shares(self, values: np.ndarray) -> np.ndarray:
        if self.logarithmic:
            low, high = math.log(self.low), math.log(self.high)
            return (np.log(np.maximum(values, np.finfo(np.float64).tiny)) - low) / (high - low)
        return (values - self.low) / (self.high - self.low)


def axis_for(sample: np.ndarray, numbers: Sequence[float]) -> Axis:
    """Choose an axis for a sorted sample (at least one value). It also shows the thresholds `numbers` that are near."""
    low, high = (float(value) for value in np.percentile(sample, [TAIL, 100 - TAIL]))
    logarithmic = low > 0 and math.log10(high / low) >= DECADES
    if low == high:
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0.0, 1.0)
    if logarithmic:
        low, high = math.log(low), math.log(high)
        numbers = [math.log(number) for number in numbers if number > 0]
    reach = STRETCH * (high - low)
    near = [number for number in numbers if low - reach <= number <= high + reach]
    low, high = min([low, *near]), max([high, *near])
    return Axis(math.exp(low), math.exp(high), True) if logarithmic else Axis(low, high)
