"""Axes show their values and thresholds; idle times are separate from work; numbers suit people."""

import math
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from da2ray.labels.runs import write_progress
from da2ray.report.axis import axis_for
from da2ray.report.formats import number, percent
from da2ray.report.throughput import LONG_GAP, idle_times, read_runs
from da2ray.report.throughput_chart import throughput_chart
from da2ray.storage import open_store
from tests.report.sample import run_progress

FLOATS = st.floats(-(2.0**100), 2.0**100, allow_subnormal=False, width=32)


@given(st.lists(FLOATS, min_size=1, max_size=50), st.lists(FLOATS, max_size=3), st.integers(1, 48))
def test_every_value_falls_in_a_bin_and_every_tick_on_the_axis(
    values: list[float], numbers: list[float], count: int
) -> None:
    axis = axis_for(np.sort(np.array(values)), numbers)
    assert math.isfinite(axis.low)
    assert axis.low < axis.high
    bins = axis.bins(np.array(values), count)
    assert bins.min() >= 0
    assert bins.max() < count
    assert all(-1e-6 <= (tick - axis.low) / (axis.high - axis.low) <= 1 + 1e-6 for tick in axis.ticks())
    assert len(axis.ticks()) <= 7


def test_an_axis_grows_to_a_threshold_nearby_and_not_to_one_far_away() -> None:
    sample = np.linspace(1, 2, 1000)
    assert axis_for(sample, [2.5]).high == 2.5
    assert axis_for(sample, [1000.0]).high < 2.1
    assert axis_for(sample, [1000.0]).share(1000.0) == 1.0


def test_an_outlier_does_not_make_a_histogram_of_one_bar() -> None:
    sample = np.sort(np.append(np.random.default_rng(0).normal(0, 1, 10_000), 1e6))
    assert axis_for(sample, []).high < 10


def test_a_score_over_decades_is_drawn_in_decades() -> None:
    axis = axis_for(np.geomspace(1, 10_000, 1000), [])
    assert axis.logarithmic
    assert axis.ticks() == [10.0, 100.0, 1000.0]
    assert np.bincount(axis.bins(np.geomspace(1, 10_000, 1000), 10)).max() < 120


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.08321, "0.0832"),
        (12.345, "12.3"),
        (1234.5, "1,234"),
        (1e-7, "1.00e-07"),
        (3e9, "3.00e+09"),
        (-5, "-5"),
    ],
)
def test_numbers_are_written_with_three_digits(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 10, "0 %"),
        (1, 3, "33 %"),
        (21, 1000, "2.1 %"),
        (1, 10**7, "under 0.001 %"),
        (9_999_999, 10**7, "over 99.9 %"),
    ],
)
def test_a_share_above_nothing_never_reads_as_nothing(part: int, whole: int, text: str) -> None:
    assert percent(part, whole) == text


def test_idle_times_lie_between_runs_and_a_run_of_two_points_is_a_level_line(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for name, points in {
        "20261101T000000Z-a": [
            ("2026-11-01T00:00:00Z", 0),
            ("2026-11-01T00:05:00Z", 90),
            ("2026-11-01T00:10:00Z", 100),
        ],
        "20261101T000800Z-b": [("2026-11-01T00:08:20Z", 0), ("2026-11-01T00:16:40Z", 100)],
        "20261108T000000Z-c": [("2026-11-08T00:00:00Z", 0), ("2026-11-08T00:10:00Z", 100)],
    }.items():
        history = [(datetime.fromisoformat(at), done) for at, done in points]
        write_progress(store, run_progress(name, history, 100))
    runs = read_runs(store)
    assert [run.name[-1] for run in runs] == ["a", "b", "c"]
    first = runs[0].rates()
    assert sum((end - start) * rate for start, end, rate in first) == pytest.approx(100)
    assert first[0][2] == pytest.approx(90 / 300)
    assert {round(rate, 9) for _, _, rate in runs[1].rates()} == {0.2}
    (gap,) = idle_times(runs)  # runs a and b overlap
    assert gap.end - gap.start == 6 * 86_400 + 86_400 - 1000
    assert gap.shown == pytest.approx(LONG_GAP * 1600)
    drawn = throughput_chart(runs, [gap])
    assert drawn is not None
    assert [line.name for line in drawn.runs] == [run.name for run in runs]
    assert [band.text for band in drawn.idle] == ["idle 6d 23h"]


def test_a_dataset_without_runs_has_no_chart(tmp_path: Path) -> None:
    assert throughput_chart(read_runs(open_store(str(tmp_path))), []) is None
