"""Rules as lines in a histogram: those that compare one score with a number."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from da2ray.quality.scores import SCORES

_COMPARISON = re.compile(r"\s*(\w+)\s*(<=|>=|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True, slots=True)
class Threshold:
    """A rule keeps rows whose `column` compares so with `number`, and those where it was not measured.

    Attributes:
        rule: its name.
        operator: <, <=, > or >=.
    """

    rule: str
    column: str
    operator: str
    number: float

    def removes(self, values: np.ndarray) -> np.ndarray:
        """float (N,), NaN where not measured -> bool (N,)."""
        number = np.float64(self.number)
        values = values.astype(np.float64)  # as SQL compares a FLOAT with a DOUBLE
        with np.errstate(invalid="ignore"):
            return {
                "<": values >= number,
                "<=": values > number,
                ">": values <= number,
                ">=": values < number,
            }[self.operator]

    def removes_value(self, value: float) -> bool:
        return bool(self.removes(np.array([value]))[0])

    def __str__(self) -> str:
        return f"{self.column} {self.operator} {self.number:g}"


def thresholds_of(rules: Iterable[tuple[str, str]]) -> tuple[Threshold, ...]:
    """(name, SQL) of rules, percentiles resolved -> the lines that they are in histograms; of other rules none.

    A conjunction (`a < 1 AND b > 2`) is a line for each of its comparisons: each removes by itself.
    """
    lines: list[Threshold] = []
    for name, sql in rules:
        found = [_COMPARISON.fullmatch(part) for part in re.split(r"\bAND\b", sql, flags=re.IGNORECASE)]
        if all(match and match[1].lower() in SCORES for match in found):
            lines += [Threshold(name, match[1].lower(), match[2], float(match[3])) for match in found if match]
    return tuple(lines)
