"""Rules as lines in a histogram: those that compare one score with a number."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from da2ray.labels.scores import SCORES
from da2ray.quality.catalog import blank_catalog
from da2ray.quality.syntax import comparisons


@dataclass(frozen=True, slots=True)
class Threshold:
    """A rule keeps rows whose `column` compares so with `number`, and those where it was not measured.

    Attributes:
        rule: its name.
        operator, number: as `da2ray.quality.syntax.Comparison` has them: a value exactly at the number is treated as by SQL.
    """

    rule: str
    column: str
    operator: str
    number: float

    def removes(self, values: np.ndarray) -> np.ndarray:
        """float (N,), NaN where not measured -> bool (N,)."""
        number = np.float64(self.number)
        values = values.astype(np.float64)  # exact, and so is the number
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
    with blank_catalog() as connection:
        for name, sql in rules:
            found = comparisons(connection, sql)
            if all(each.column in SCORES for each in found):
                lines += [Threshold(name, each.column, each.operator, each.number) for each in found]
    return tuple(lines)
