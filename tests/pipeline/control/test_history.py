"""The history of a run is bounded, spread over all of it, and ends with the newest count."""

import itertools
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console

from da2ray.pipeline.control.coordinator import Counts
from da2ray.pipeline.control.history import MOST_POINTS, History
from da2ray.pipeline.control.progress import Progress, Totals
from da2ray.storage import open_store

START = datetime(2026, 11, 25, tzinfo=UTC)


def points(history: History) -> list[tuple[datetime, int]]:
    return list(history.points())


def test_a_history_stays_bounded_and_even_however_long_the_run_takes() -> None:
    history = History(spacing=1.0)
    for seconds in range(0, 200_000, 3):
        history.add(START + timedelta(seconds=seconds), 2 * seconds)
        if seconds % 9_999 == 0:
            assert len(history.points()) <= MOST_POINTS
    found = points(history)
    assert MOST_POINTS / 2 <= len(found) <= MOST_POINTS
    assert found[0] == (START, 0)
    assert found[-1] == (START + timedelta(seconds=199_998), 399_996)
    steps = [(later[0] - earlier[0]).total_seconds() for earlier, later in itertools.pairwise(found)]
    assert max(steps) <= 2 * min(steps[:-1])
    assert all(done == 2 * (at - START).total_seconds() for at, done in found)


def test_a_short_run_keeps_its_first_and_its_last_point() -> None:
    history = History(spacing=10.0)
    for milliseconds, done in ((0, 0), (300, 1), (700, 5)):
        history.add(START + timedelta(milliseconds=milliseconds), done)
    assert [((at - START).total_seconds(), done) for at, done in points(history)] == [(0.0, 0), (0.7, 5)]


def test_a_clock_that_is_set_back_leaves_the_history_ascending() -> None:
    history = History(spacing=1.0)
    for seconds in (0, 10, 4, 12):
        history.add(START + timedelta(seconds=seconds), seconds)
    assert [done for _, done in points(history)] == [0, 10, 12]


def test_progress_json_has_the_history_of_its_run(tmp_path: Path) -> None:
    progress = Progress(open_store(str(tmp_path)), "r", Totals(10, 2, 4, 1), Console(quiet=True), live=False)
    before = datetime.now(UTC)
    progress.start(Counts)
    progress.finish("labelled", Counts(samples=6, shards=1))
    written = json.loads((tmp_path / "runs/r/progress.json").read_text())
    (first, none), (last, done) = written["history"]
    assert (none, done) == (0, 6)  # of this run, as samples.this_run; the four before it are another run's
    assert written["samples"] == {"total": 10, "done": 10, "this_run": 6, "exact": True}
    assert before - timedelta(seconds=1) <= datetime.fromisoformat(first) <= datetime.fromisoformat(last)
