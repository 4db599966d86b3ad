"""Thresholds: rules that compare one score with a number, so that a histogram can show them as lines."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from da2ray.labels.scores import SCORES
from da2ray.quality.catalog import blank_catalog
from da2ray.quality.syntax import comparisons


@dataclass(frozen=True, slots=True)
class Threshold:
    """A line in a histogram: a rule keeps rows for which `column operator number` holds, and rows without the score.

    Attributes:
        rule: name of the rule.
        operator, number: as in `da2ray.quality.syntax.Comparison`, so that a value exactly at the number is treated as in SQL.
    """

    rule: str
    column: str
    operator: str
    number: float

    def removes(self, values: np.ndarray) -> np.ndarray:
        """Tell which values the threshold removes: float (N,), NaN if not measured -> bool (N,)."""
        number = np.float64(self.number)
        values = values.astype(np.float64)  # exact, like the number
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
    """The thresholds of rules, given as (name, SQL with percentiles as numbers). Other rules give none.

    A conjunction (`a < 1 AND b > 2`) gives a threshold for each comparison: each removes rows by itself.
    """
    lines: list[Threshold] = []
    with blank_catalog() as connection:
        for name, sql in rules:
            found = comparisons(connection, sql)
            if all(each.column in SCORES for each in found):
                lines += [Threshold(name, each.column, each.operator, each.number) for each in found]
    return tuple(lines)
