"""Progress of a run: a live line on a terminal or else log lines, and always `runs/<run>/progress.json`."""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import ray
from rich.console import Console
from rich.live import Live
from rich.text import Text

from da2ray.console import LINE_SECONDS, counted, duration
from da2ray.labels.runs import RunProgress, SampleCounts, ShardCounts, write_progress
from da2ray.pipeline.control.coordinator import Counts
from da2ray.pipeline.control.history import History
from da2ray.plan.plan import Plan
from da2ray.storage import Store, printable

POLL_SECONDS = 0.5
JSON_SECONDS = 5.0
HISTORY_SECONDS = 1.0
"""Least time between two points of a run's history, until it has too many points."""
RATE_WINDOW_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Totals:
    """What there is to do: samples and shards of the plan, and how many were committed before this run.

    `exact`: numbers of samples are counts. Some sources do not know theirs when they are planned (`Source.shards`); then they are
    estimates, also of the shards that were committed before, whose commits are not read.
    """

    samples: int
    shards: int
    samples_before: int
    shards_before: int
    exact: bool = True

    def samples_when(self, shards: int, samples: int) -> int:
        """The samples of the whole plan, now that this run has committed so many shards with so many samples.

        If the plan's numbers are estimates, the shards that are left are taken to hold as many samples each as those of this run.
        """
        left = self.shards - self.shards_before - shards
        if self.exact or not shards:
            return self.samples
        return self.samples_before + samples + round(left * samples / shards)


def work_left(plan: Plan, store: Store) -> Totals:
    """Plan minus commits (invariant 3), from one listing and the plan's column of sizes."""
    remaining, sizes = plan.remaining(store, gone=False), plan.sizes()
    before = plan.info.samples - int(sizes[remaining].sum())
    shards = plan.info.shards - plan.info.gone
    return Totals(plan.info.samples, shards, before, shards - len(remaining), plan.info.exact)


class Rate:
    """Images per second over the last minute, or since the start of a younger run."""

    def __init__(self, window: float = RATE_WINDOW_SECONDS) -> None:
        self._window = window
        self._points: deque[tuple[float, int]] = deque()

    def add(self, now: float, done: int) -> None:
        """Add the number of images done at `now`, in seconds of any steady clock."""
        self._points.append((now, done))
        while len(self._points) > 2 and self._points[1][0] <= now - self._window:
            self._points.popleft()

    def per_second(self) -> float:
        """The rate; 0 before there are two points."""
        if len(self._points) < 2:
            return 0.0
        (start, before), (end, after) = self._points[0], self._points[-1]
        return (after - before) / (end - start) if end > start else 0.0


class Progress:
    """Polls the counts of a run in a thread, and shows them, from `start` to `finish`.

    Args:
        counts: called twice a second. It raises once the cluster is gone, which ends the polling.
        live: True for a live line, False for log lines.
    """

    def __init__(self, store: Store, run: str, totals: Totals, console: Console, *, live: bool) -> None:
        self._store = store
        self._run = run
        self._totals = totals
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True) if live else None
        self._rate = Rate()
        self._history = History(HISTORY_SECONDS)
        self._counts = Counts()
        self._state = "running"
        self._moved = (Counts(), time.monotonic())
        self._began = time.monotonic()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def counts(self) -> Counts:
        """The newest counts."""
        return self._counts

    @property
    def stalled_seconds(self) -> float:
        """Seconds since a shard was last begun, labelled or committed, although a teacher is alive; 0 without a teacher."""
        return time.monotonic() - self._moved[1] if self._counts.living else 0.0

    def start(self, counts: Callable[[], Counts]) -> None:
        self._add(time.monotonic(), 0)
        if self._live:
            self._live.start()
        self._write_json()
        self._thread = threading.Thread(target=self._poll, args=(counts,), name="progress", daemon=True)
        self._thread.start()

    def note(self, counts: Counts) -> None:
        """Take the newest counts. The run is not stalled if they changed, or if no teacher is alive to change them."""
        work = replace(counts, alive=0, living=0, actors=0)
        if work != self._moved[0] or not (counts.living and self._counts.living):
            self._moved = (work, time.monotonic())
        self._counts = counts

    def say(self, state: str) -> None:
        """Show another state from now on, such as `stopping`."""
        self._state = state

    def finish(self, state: str, counts: Counts | None = None) -> None:
        """Stop polling, and write progress.json a last time. `counts`: the final ones, if known."""
        self._end.set()
        if self._thread:
            self._thread.join()
        if self._live:
            self._live.stop()
        self._counts, self._state = counts or self._counts, state
        self._add(time.monotonic(), self._counts.samples)
        self._console.print(self.line(), highlight=False, soft_wrap=True)
        self._write_json()

    def _add(self, now: float, done: int) -> None:
        self._rate.add(now, done)
        self._history.add(datetime.now(UTC), done)

    def _poll(self, counts: Callable[[], Counts]) -> None:
        wrote = said = time.monotonic()
        while not self._end.wait(POLL_SECONDS):
            try:
                self.note(counts())
            except ray.exceptions.GetTimeoutError:
                continue  # the coordinator is busy; its next answer has all counts
            except Exception:  # noqa: BLE001 - Ray is gone; the thread that waits for the run learns why
                return
            now = time.monotonic()
            self._add(now, self._counts.samples)
            if self._live:
                self._live.update(Text(self.line(), overflow="ellipsis", no_wrap=True))
            elif now - said >= LINE_SECONDS:
                said = now
                self._console.print(f"{datetime.now():%H:%M:%S} {self.line()}", highlight=False, soft_wrap=True)  # noqa: DTZ005 - the reader's clock
            if now - wrote >= JSON_SECONDS:
                wrote = now
                self._write_json()

    def now(self) -> RunProgress:
        """How far the run is."""
        counts, totals = self._counts, self._totals
        done = totals.samples_before + counts.samples
        total = totals.samples_when(counts.shards, counts.samples)
        rate = self._rate.per_second()
        left = total - done
        share = counts.busy_share
        return RunProgress(
            run=self._run,
            state=self._state,
            updated=datetime.now(UTC),
            elapsed_seconds=round(time.monotonic() - self._began, 1),
            samples=SampleCounts(total=total, done=done, this_run=counts.samples, exact=totals.exact),
            shards=ShardCounts(
                total=totals.shards,
                done=totals.shards_before + counts.shards,
                this_run=counts.shards,
                in_flight=counts.in_flight,
            ),
            by_status=dict(counts.by_status),
            by_reason=dict(counts.by_reason),
            bytes_out=counts.bytes_out,
            images_per_second=round(rate, 2),
            eta_seconds=round(left / rate) if rate > 0 else None,
            teacher_actors=counts.living,
            teacher_busy_share=None if share is None else round(share, 3),
            history=self._history.points(),
        )

    def line(self) -> str:
        """The progress as one line for people."""
        now = self.now()
        samples = now.samples
        percent = 100 * samples.done / samples.total if samples.total else 100.0
        parts = [
            f"{self._state} {samples.done:,}/{counted(samples.total, 'image', exact=samples.exact)} ({percent:.1f} %)",
            f"{now.images_per_second:.1f}/s",
        ]
        if now.eta_seconds is not None and samples.done < samples.total:
            parts.append(f"ETA {duration(now.eta_seconds)}")
        if self._counts.actors and not self._counts.living:
            parts.append("waiting for a teacher actor")
        elif now.teacher_busy_share is not None:
            parts.append(f"teacher busy {now.teacher_busy_share:.0%}")
        parts += [f"{count:,} {reason}" for reason, count in sorted(now.by_reason.items())]
        return " · ".join(parts)

    def _write_json(self) -> None:
        try:
            write_progress(self._store, self.now())
        except OSError as error:
            print(f"progress.json not written: {printable(error)}", file=sys.stderr)
