"""The cause of a run's end is found in the exception that a worker raised, however Ray wrapped it."""

import errno
import pickle

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError, RayTaskError

from da2ray.errors import Exit, OutageError, RejectedError, ResumableError, StoreError, UnavailableError, UserError
from da2ray.pipeline.control.endings import cause_of, ending_of


def test_the_cause_is_found_however_deep_it_is_wrapped() -> None:
    inner, middle, outer = PermissionError("s3://bucket: no\nmore"), ValueError("middle"), RuntimeError("outer")
    outer.__cause__, middle.__context__ = middle, inner
    assert cause_of(outer, (FileNotFoundError, PermissionError)) is inner
    assert cause_of(outer, ZeroDivisionError) is None


def test_the_cause_of_an_actors_death_is_what_its_constructor_raised() -> None:
    """The error as it arrives from another process: Ray keeps only its text, after a line of its own."""
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


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnavailableError("s3://b: 503"), Exit.RESUMABLE),
        (OutageError("s3://b: ExpiredToken; access worked before"), Exit.RESUMABLE),
        (PermissionError("s3://b: 403"), Exit.RESUMABLE),  # each store let the run begin
        (ConnectionResetError("reset"), Exit.RESUMABLE),
        (OSError(errno.EMFILE, "Too many open files"), Exit.RESUMABLE),
        (RejectedError("s3://b: NotImplemented"), Exit.USAGE),
        (StoreError("/disk: No space left on device"), Exit.USAGE),
        (PermissionError(errno.EACCES, "Permission denied", "/labels"), Exit.USAGE),
        (FileNotFoundError("s3://b: NoSuchBucket"), Exit.USAGE),
        (OSError(errno.ENAMETOOLONG, "File name too long"), Exit.USAGE),
        (UserError("s3://b: nothing could be read"), Exit.USAGE),
    ],
)
def test_only_what_waiting_can_mend_is_resumable(error: Exception, code: Exit) -> None:
    wrapped = RuntimeError("task failed")
    wrapped.__cause__ = error
    ending = ending_of(wrapped)
    assert ending is not None
    assert Exit.of(ending) is code


def test_what_ray_data_adds_to_a_message_is_not_shown() -> None:
    ending = ending_of(OutageError("s3://b is down\nFailed to apply UDF transform after 1/1 attempts."))
    assert str(ending) == "a store failed: s3://b is down"
