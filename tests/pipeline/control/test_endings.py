"""The cause of a run's end is found in the exception that a worker raised, however Ray wrapped it."""

import pickle

from ray.exceptions import ActorDiedError, GetTimeoutError, RayTaskError

from da2ray.errors import Exit, ResumableError, UserError
from da2ray.pipeline.control.endings import cause_of, ending_of


def test_the_cause_is_found_however_deep_it_is_wrapped() -> None:
    inner, middle, outer = PermissionError("s3://bucket: no\nmore"), ValueError("middle"), RuntimeError("outer")
    outer.__cause__, middle.__context__ = middle, inner
    assert cause_of(outer, (FileNotFoundError, PermissionError)) is inner
    assert cause_of(outer, ZeroDivisionError) is None


def test_the_cause_of_an_actors_death_is_what_its_constructor_raised() -> None:
    """As it comes from another process. Ray makes of it a text alone, behind a line of its own."""
    raised = RayTaskError("__init__", "Traceback", UserError("use --precision fp16"), proctitle="ray", pid=1, ip="::1")
    died = pickle.loads(pickle.dumps(ActorDiedError(raised)))  # noqa: S301
    assert str(cause_of(died, UserError)) == "use --precision fp16"
    assert cause_of(died, ZeroDivisionError) is None
    assert cause_of(died, ActorDiedError) is died
    assert cause_of(ActorDiedError(), UserError) is None


def test_a_failure_that_may_pass_is_one_line() -> None:
    ending = ending_of(GetTimeoutError("Get timed out\nat length"))
    assert isinstance(ending, ResumableError)
    assert str(ending) == "the cluster does not answer: Get timed out"
    assert Exit.of(ending) is Exit.RESUMABLE


def test_a_bug_is_not_called_resumable() -> None:
    assert ending_of(NameError("x")) is None
