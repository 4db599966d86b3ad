"""The coordinator finds an image that kills processes after a bounded number of deaths, and keeps budgets and stop requests."""

import pytest

from da2ray.errors import Reason
from da2ray.pipeline.control.budget import JUDGED_FROM, FailureBudget
from da2ray.pipeline.control.coordinator import STRIKES, Begin, Coordinator

NO_LIMIT = FailureBudget(share=1.0)


@pytest.fixture
def coordinator() -> Coordinator:
    return Coordinator(NO_LIMIT, planned=100)


def test_a_shard_is_isolated_when_it_is_read_again_and_only_then(coordinator: Coordinator) -> None:
    assert coordinator.begin(1) is Begin.GO
    assert coordinator.begin(2) is Begin.GO
    assert coordinator.begin(1) is Begin.ISOLATE
    coordinator.done(2, {"labelled": 4}, {}, 10)
    assert coordinator.begin(2) is Begin.GO


def test_a_stop_request_lets_what_is_in_flight_end_and_nothing_begin(coordinator: Coordinator) -> None:
    coordinator.begin(1)
    coordinator.stop()
    assert coordinator.begin(2) is Begin.SKIP
    assert coordinator.begin(1) is Begin.ISOLATE
    coordinator.done(1, {"labelled": 4}, {}, 10)
    assert coordinator.begin(2) is Begin.STOP


def test_a_second_teacher_process_is_told_that_one_died(coordinator: Coordinator) -> None:
    assert not coordinator.teaching(1, "a")
    assert not coordinator.teaching(1, "a")
    assert coordinator.teaching(1, "b")
    assert not coordinator.teaching(2, "b")
    coordinator.done(1, {"labelled": 4}, {}, 10)
    assert not coordinator.teaching(1, "c")


def test_an_image_has_strikes_only_for_times_it_was_not_seen_alive_again(coordinator: Coordinator) -> None:
    for _ in range(5):
        assert coordinator.alone(1, (7,))[0] == 0
        coordinator.survived(1, (7,))
    for strikes in range(STRIKES + 1):
        assert coordinator.alone(1, (7,)) == (strikes, Reason.CRASHED)
    assert coordinator.alone(1, (8,))[0] == 0
    coordinator.alone(1, (9,))
    coordinator.late(1, (9,))
    assert coordinator.alone(1, (9,)) == (1, Reason.TIMEOUT)


def test_an_image_keeps_its_class_of_failure_if_its_shard_is_taken_up_again(coordinator: Coordinator) -> None:
    for _ in range(STRIKES):
        coordinator.alone(1, (9,))
        coordinator.late(1, (9,))
    for _ in range(3):  # processes that another image of the shard ends
        assert coordinator.alone(1, (9,)) == (STRIKES, Reason.TIMEOUT)


def test_a_shard_that_is_written_twice_counts_once(coordinator: Coordinator) -> None:
    for _ in range(2):
        coordinator.begin(1)
        coordinator.done(1, {"labelled": 3, "failed": 1}, {"corrupt": 1}, 10)
    counts = coordinator.counts()
    assert (counts.shards, counts.samples, counts.bytes_out) == (1, 4, 10)
    assert (counts.by_status, counts.by_reason) == ({"labelled": 3, "failed": 1}, {"corrupt": 1})


def test_a_run_that_goes_wrong_stops_early() -> None:
    coordinator = Coordinator(FailureBudget(count=2), planned=100)
    coordinator.begin(1)
    coordinator.done(1, {"labelled": 2, "failed": 2}, {"corrupt": 2}, 10)
    assert not coordinator.counts().over_budget
    coordinator.begin(2)
    coordinator.done(2, {"labelled": 3, "failed": 1}, {"corrupt": 1}, 10)
    assert coordinator.counts().over_budget
    assert coordinator.begin(3) is Begin.STOP


@pytest.mark.parametrize(
    ("text", "failed", "done", "planned", "exceeded"),
    [
        ("3", 3, 10, 10, False),
        ("3", 4, 5, 10**6, True),
        ("0", 1, 1, 1, True),
        ("2%", 2, 100, 100, False),
        ("2%", 3, 100, 100, True),
        ("100%", 50, 50, 50, False),
        # A share is not judged on the first few samples.
        ("2%", 30, 100, 10**6, False),
        ("2%", JUDGED_FROM // 50 + 1, JUDGED_FROM, 10**6, True),
    ],
)
def test_a_budget_is_a_count_or_a_share(text: str, failed: int, done: int, planned: int, exceeded: bool) -> None:
    assert FailureBudget.parse(text).exceeded(failed, done, planned) is exceeded
