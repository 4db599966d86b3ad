"""Survey the scores of a snapshot: distributions, extremes, and what rules remove.

The survey passes over the index parts twice, with one part in memory at a time. The first pass finds ranges (from a sample) and
the rows to show; the second counts all rows and collects those to show. So a report of 10 million rows takes as much memory as
a report of one part.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from da2ray.errors import Status
from da2ray.labels.parts import read_part
from da2ray.labels.schema import INDEX, SCORE_COLUMNS
from da2ray.labels.scores import SCORES, Score
from da2ray.labels.snapshots import Snapshot
from da2ray.report.axis import Axis, axis_for
from da2ray.report.thresholds import Threshold
from da2ray.storage import Store

SAMPLE_ROWS = 100_000
"""Rows in the sample for percentiles. P5 of 100,000 rows lies between P4.9 and P5.1 in 95 % of cases."""
BINS = 48
"""Bins of a histogram 360 pixels wide. A few rows get twice the square root of their number, as more bins would be a comb."""
EXAMPLES = 5
"""Rows to show for each reason why rows have no label."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """A score over the labelled rows that have it.

    Attributes:
        measured: number of rows.
        least, most: the smallest and the largest value of all rows.
        sample: values of a sample of the rows, float64, sorted; about SAMPLE_ROWS at most.
        axis: the axis of the histogram; its end bins hold the values beyond.
        counts, removed_counts: int64 for each of at most BINS bins: all rows, and rows that a threshold removes.
        lowest, highest: positions of extreme rows in the snapshot, from the end inwards.
        removed: for each threshold on this score, the number of rows that it removes.
    """

    score: Score
    measured: int
    least: float
    most: float
    sample: np.ndarray
    axis: Axis
    counts: np.ndarray
    removed_counts: np.ndarray
    lowest: tuple[int, ...]
    highest: tuple[int, ...]
    removed: tuple[tuple[Threshold, int], ...]

    def percentile(self, percent: float) -> float:
        return float(np.percentile(self.sample, percent))

    def rank(self, value: float) -> float:
        """Share of the rows below `value`; rows equal to it count half."""
        below, not_above = (int(np.searchsorted(self.sample, value, side)) for side in ("left", "right"))
        return (below + not_above) / (2 * len(self.sample))


@dataclass(frozen=True, slots=True)
class Survey:
    """A snapshot as a report shows it.

    Attributes:
        distributions: for each score that any labelled row has, in the order of the index.
        random: positions of random labelled rows, the same ones every time.
        examples: for each reason, positions of a few of its rows.
        rows: the index rows at all these positions.
    """

    distributions: tuple[Distribution, ...]
    random: tuple[int, ...]
    examples: Mapping[str, tuple[int, ...]]
    rows: Mapping[int, dict[str, Any]]


def survey(store: Store, snapshot: Snapshot, thresholds: Sequence[Threshold], most: int) -> Survey:
    """Survey a snapshot's index.

    Args:
        thresholds: the thresholds of the active rules on single scores.
        most: rows to show at each end of each score, and at random.

    Raises:
        OSError: the store failed, or an index part is corrupt.
    """
    stride = max(1, math.ceil(snapshot.rows / SAMPLE_ROWS))
    ends = {name: _Ends(most) for name in SCORE_COLUMNS.names}
    chance = _Extremes(most)
    examples: dict[str, list[int]] = {}
    for start, table in _parts(store, snapshot, ["status", "reason", *SCORE_COLUMNS.names]):
        positions = np.arange(start, start + table.num_rows)
        for reason in pc.unique(pc.drop_null(table["reason"])).to_pylist():
            found = examples.setdefault(reason, [])
            if len(found) < EXAMPLES:
                where = np.flatnonzero(pc.fill_null(pc.equal(table["reason"], reason), False).to_numpy())
                found += positions[where[: EXAMPLES - len(found)]].tolist()
        labelled = _labelled(table)
        chance.add(np.zeros(int(labelled.sum())), positions[labelled])
        for name, end in ends.items():
            values = _values(table, name)
            end.add(values, positions, labelled & np.isfinite(values), stride)
    measured = {name: end for name, end in ends.items() if end.measured}
    wanted = {position for end in measured.values() for position in (*end.low.positions, *end.high.positions)}
    wanted.update(chance.positions, *examples.values())
    samples = {name: end.sorted_sample() for name, end in measured.items()}
    bins = {name: int(np.clip(2 * math.sqrt(end.measured), 6, BINS)) for name, end in measured.items()}
    axes = {
        name: axis_for(sample, [line.number for line in thresholds if line.column == name])
        for name, sample in samples.items()
    }
    counted = _count(
        store, snapshot, axes, bins, [line for line in thresholds if line.column in measured], sorted(wanted)
    )
    return Survey(
        tuple(
            Distribution(
                SCORES[name],
                end.measured,
                end.least,
                end.most,
                samples[name],
                axes[name],
                counted.bins[name],
                counted.removed_bins[name],
                end.low.positions,
                end.high.positions,
                tuple((line, count) for line, count in counted.removed_by.items() if line.column == name),
            )
            for name, end in measured.items()
        ),
        chance.positions,
        {reason: tuple(found) for reason, found in sorted(examples.items())},
        counted.rows,
    )


@dataclass(frozen=True, slots=True)
class _Counted:
    """Rows in each bin by score, all and removed ones; rows that each threshold removes; the wanted rows by position."""

    bins: dict[str, np.ndarray]
    removed_bins: dict[str, np.ndarray]
    removed_by: dict[Threshold, int]
    rows: dict[int, dict[str, Any]]


def _count(
    store: Store,
    snapshot: Snapshot,
    axes: Mapping[str, Axis],
    bins: Mapping[str, int],
    lines: Sequence[Threshold],
    wanted: Sequence[int],
) -> _Counted:
    every, removed = ({name: np.zeros(number, np.int64) for name, number in bins.items()} for _ in range(2))
    counted = _Counted(every, removed, dict.fromkeys(lines, 0), {})
    chosen = np.array(wanted, np.int64)
    for start, table in _parts(store, snapshot, INDEX.names):
        labelled = _labelled(table)
        for name, axis in axes.items():
            values = _values(table, name)
            values = values[labelled & np.isfinite(values)]
            places = axis.bins(values, bins[name])
            gone = np.zeros(len(values), np.bool_)
            for line in lines:
                if line.column == name:
                    breaks = line.removes(values)
                    counted.removed_by[line] += int(breaks.sum())
                    gone |= breaks
            every[name] += np.bincount(places, minlength=bins[name])
            removed[name] += np.bincount(places[gone], minlength=bins[name])
        here = chosen[(chosen >= start) & (chosen < start + table.num_rows)]
        counted.rows.update(zip(here.tolist(), table.take(pa.array(here - start)).to_pylist(), strict=True))
    return counted


def _parts(store: Store, snapshot: Snapshot, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
    start = 0
    for part in snapshot.parts:
        table = read_part(store, part, columns).combine_chunks()
        yield start, table
        start += table.num_rows


def _labelled(table: pa.Table) -> np.ndarray:
    return pc.equal(table["status"], Status.LABELLED.value).to_numpy()


def _values(table: pa.Table, name: str) -> np.ndarray:
    """A score column as float32 (N,), NaN for null."""
    return table[name].to_numpy()


class _Extremes:
    """The `most` smallest of values that come in parts. The choice among equal values is arbitrary, but always the same."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values = np.empty(0)
        self._positions = np.empty(0, np.int64)

    @property
    def positions(self) -> tuple[int, ...]:
        return tuple(self._positions.tolist())

    def add(self, values: np.ndarray, positions: np.ndarray) -> None:
        if len(values) > self._most:
            near = values <= np.partition(values, self._most - 1)[self._most - 1]
            values, positions = values[near], positions[near]
        values, positions = np.concatenate([self._values, values]), np.concatenate([self._positions, positions])
        # Neighbours in a source look alike, so a hash of the position decides between equal values.
        order = np.lexsort([_scatter(positions), values])[: self._most]
        self._values, self._positions = values[order], positions[order]


class _Ends:
    """The rows at both ends of a score, and a sample of its values."""

    def __init__(self, most: int) -> None:
        self.low, self.high = _Extremes(most), _Extremes(most)
        self.measured = 0
        self.least, self.most = math.inf, -math.inf
        self._sample: list[np.ndarray] = []

    def add(self, values: np.ndarray, positions: np.ndarray, there: np.ndarray, stride: int) -> None:
        values, positions = values[there].astype(np.float64), positions[there]
        if not len(values):
            return
        self.measured += len(values)
        self.least, self.most = min(self.least, float(values.min())), max(self.most, float(values.max()))
        self.low.add(values, positions)
        self.high.add(-values, positions)
        self._sample.append(values[_scatter(positions) % np.uint64(stride) == 0])

    def sorted_sample(self) -> np.ndarray:
        sample = np.sort(np.concatenate(self._sample))
        return sample if len(sample) else np.array([self.least, self.most])


def _scatter(positions: np.ndarray) -> np.ndarray:
    """Hash positions to uint64 that look random: splitmix64 (Steele et al., 2014)."""
    mixed = positions.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
