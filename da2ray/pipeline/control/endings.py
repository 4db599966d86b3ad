"""What ended a run early: a mistake of the user, a failure after which the same command goes on, or a bug."""

import ray

from da2ray.errors import CorruptError, OutageError, ResumableError, UnavailableError, UserError
from da2ray.pipeline.control.retries import TASK_RETRIES
from da2ray.storage import printable
from da2ray.storage.local import UNAVAILABLE

WORKERS_DIED = (
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.ActorDiedError,
    ray.exceptions.ActorUnavailableError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.LocalRayletDiedError,
    ray.exceptions.RaySystemError,
)


def ending_of(error: Exception) -> CorruptError | ResumableError | UserError | None:
    """Translate what Ray or a store raised while a run labelled into an error of da2ray, in one line; None if it is a bug.

    Only what waiting can mend is resumable. Stored state stays damaged, however often it is read, and a store that rejects a
    request or is full goes on to do so.
    """
    if cause := cause_of(error, CorruptError):
        return CorruptError(message_of(cause))
    if cause := cause_of(error, UserError):
        return UserError(message_of(cause))
    if cause := cause_of(error, ray.exceptions.GetTimeoutError):  # also an OSError
        return ResumableError(f"the cluster does not answer: {_first_line(cause)}")
    if cause := cause_of(error, OSError):
        return _store_ending(cause)
    if (cause := cause_of(error, WORKERS_DIED)) and not getattr(cause, "actor_init_failed", False):
        return ResumableError(
            f"workers died, and died again when their shard was retried {TASK_RETRIES} times: {_first_line(cause)}"
        )
    return None


def _store_ending(error: BaseException) -> ResumableError | UserError:
    """What an OSError means for a run. Each store worked when the run began, so access that is refused now has expired."""
    number = getattr(error, "errno", None)
    passing = isinstance(error, UnavailableError | OutageError | ConnectionError | TimeoutError)
    # A local file's mode has an errno, and does not expire.
    if passing or number in UNAVAILABLE or (isinstance(error, PermissionError) and number is None):
        return ResumableError(f"a store failed: {printable(message_of(error))}")
    return UserError(f"a store failed: {printable(message_of(error))}")


def message_of(error: BaseException) -> str:
    """The message of an error that a task raised, without the advice on retries that Ray Data adds to its end."""
    return str(error).partition("\nFailed to apply UDF transform")[0]


def cause_of(error: BaseException | None, kind: type[Exception] | tuple[type[Exception], ...]) -> BaseException | None:
    """The exception of type `kind` that a worker raised and Ray wrapped, however deep; None if there is none."""
    for _ in range(10):
        # If an actor's constructor raised, Ray keeps the wrapping error as an argument, beside its text, and sets no cause.
        wrappers = (*error.args, error) if isinstance(error, ray.exceptions.ActorDiedError) else (error,)
        # In this order: Ray's error may be of that type too, with a traceback in its text.
        for candidate in (*(getattr(wrapper, "cause", None) for wrapper in wrappers), error):
            if isinstance(candidate, kind):
                return candidate
        if error is None:
            return None
        error = error.__cause__ or error.__context__
    return None


def _first_line(error: BaseException) -> str:
    """The first line of its message, cut to 200 characters."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
