"""A signal lets a run finish the shards in flight, a second one ends it at once, and so does an hour without progress."""

import signal
import time
from types import SimpleNamespace

import pytest

from da2ray.pipeline.control import stopping
from da2ray.pipeline.control.coordinator import Counts
from da2ray.pipeline.control.progress import Progress, Totals
from da2ray.pipeline.control.stopping import StopRequest, stop_on_signals
from da2ray.storage import open_store


class Stopping:
    """Stands for the progress, which may be stalled, and the coordinator, which gets the stop request."""

    def __init__(self, stalled: float = 0.0) -> None:
        self.stalled_seconds = stalled
        self.states: list[str] = []
        self.asked: list[str] = []
        self.stop = SimpleNamespace(remote=lambda: self.asked.append("stop"))

    def say(self, state: str) -> None:
        self.states.append(state)


@pytest.fixture(autouse=True)
def _signals_as_before():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def wait_for(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_first_signal_asks_and_the_second_ends() -> None:
    run, request = Stopping(), StopRequest()
    with stop_on_signals(run, run, request):
        signal.raise_signal(signal.SIGTERM)
        assert request.is_set()
        assert not request.forced
        wait_for(lambda: run.asked == ["stop"])
        assert "finishing what is in flight" in run.states[0]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert request.forced


def test_a_run_in_which_nothing_moves_ends_with_a_message() -> None:
    run, request = Stopping(stalled=stopping.STALL_SECONDS + 1), StopRequest()
    with pytest.raises(KeyboardInterrupt), stop_on_signals(run, run, request):
        time.sleep(10)
    assert not request.forced, "a stalled run is `failed`, not `stopped`"
    assert run.states == ["nothing has moved for 1h 0m, ending:"]


def test_a_run_that_waits_for_a_teacher_is_not_stalled(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("da2ray.pipeline.control.progress.time.monotonic", lambda: now[0])
    progress = Progress(open_store(str(tmp_path)), "run", Totals(10, 2, 0, 0), console=None, live=False)
    for seconds, counts, stalled in [
        (10, Counts(), 0),  # no teacher yet, the run waits for a GPU
        (5000, Counts(), 0),
        (10, Counts(living=1, actors=1, in_flight=1), 0),
        (600, Counts(living=1, actors=1, in_flight=1), 600),
        (600, Counts(living=1, actors=1, in_flight=1), 1200),
        (10, Counts(living=1, actors=1, in_flight=1, busy=2.0), 0),
        (5000, Counts(living=0, actors=1, in_flight=1, busy=2.0), 0),  # its node is gone
        (10, Counts(living=1, actors=2, in_flight=1, busy=2.0), 0),
    ]:
        now[0] += seconds
        progress.note(counts)
        assert progress.stalled_seconds == stalled
