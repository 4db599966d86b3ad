"""Looking ahead keeps the order and its bound. A caller that stops half-way waits for running work only if it asks to."""

import threading
import time
from itertools import count

import pytest

from da2ray.parallel import look_ahead


def test_results_come_in_order_and_an_error_comes_in_its_place() -> None:
    def work(number: int) -> int:
        time.sleep(0.01 * (number % 3))
        return 1 // (7 - number)

    results = look_ahead(work, count(), threads=4, name="test")
    assert [next(results) for _ in range(7)] == [0] * 6 + [1]
    with pytest.raises(ZeroDivisionError):
        next(results)


@pytest.mark.parametrize("ahead", [0, 3, None])
def test_no_more_is_begun_than_the_bound_allows(ahead: int | None) -> None:
    begun = []
    results = look_ahead(lambda number: begun.append(number) or number, count(), threads=4, name="test", ahead=ahead)
    for number in range(20):
        assert next(results) == number
        time.sleep(0.005)
        assert len(begun) <= number + 1 + (8 if ahead is None else ahead)
    results.close()


@pytest.mark.parametrize("wait", [True, False])
def test_a_caller_that_stops_waits_for_what_is_being_worked_on_only_if_it_says_so(wait: bool) -> None:
    began, release, ended = threading.Event(), threading.Event(), threading.Event()

    def work(number: int) -> int:
        if number:
            began.set()
            release.wait(10)
            ended.set()
        return number

    results = look_ahead(work, range(9), threads=1, name="test", ahead=2, wait=wait)
    assert next(results) == 0
    assert began.wait(10)
    timer = threading.Timer(0.5, release.set)
    timer.start()
    results.close()
    assert ended.is_set() == wait
    release.set()
    timer.cancel()
