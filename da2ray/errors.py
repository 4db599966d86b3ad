"""Every error this package raises on purpose, the closed sets of statuses and reasons, and the exit codes.

- `UserError`: bad usage, configuration, permissions or weights. A command prints its message and exits 2.
- `StoreError` (an `OSError`): a store failed. `FileNotFoundError` and `PermissionError` stand beside it.
  - `UnavailableError`: the same call may succeed later. A command exits 75.
  - `OutageError`: a store of images is down, so the run ends and can be resumed.
- `CorruptError` (an `OSError`): stored state is not what was written.
- `SampleError`: one sample cannot be labelled. It becomes an index row with a `Reason`, and the job goes on.
"""

from enum import IntEnum, StrEnum


class Exit(IntEnum):
    """Exit codes that schedulers build on (design.md), and 70 for what is none of them."""

    DONE = 0
    TOO_MANY_FAILED = 1
    WRONG = 1  # what `verify` says where it finds anything
    USAGE = 2
    BROKEN = 70
    RESUMABLE = 75


class UserError(Exception):
    """Something the user can mend: bad usage, configuration, permissions, weights.

    The message is one or two lines that say what to change. Commands print it without a traceback and exit 2.
    """


class StoreError(OSError):
    """A store failed for a reason other than a missing object or a missing permission."""


class UnavailableError(StoreError):
    """No answer, a broken one, or one that says to come again (5xx, 409, 429): the same call may succeed later."""


class OutageError(StoreError):
    """A store of samples is down: the run ends, and goes on when the store does."""


class CorruptError(OSError):
    """What a commit, a snapshot or a part of the index holds is not what was written: not an error of the store."""


class Status(StrEnum):
    """What became of a planned sample."""

    LABELLED = "labelled"
    REJECTED = "rejected"
    FAILED = "failed"


class Reason(StrEnum):
    """Why a sample has no label. The first group are policies (`rejected`), the second errors (`failed`)."""

    TOO_SMALL = "too_small"
    ASPECT = "aspect"
    TOO_MANY_TOKENS = "too_many_tokens"
    TOO_MANY_PIXELS = "too_many_pixels"

    NOT_FOUND = "not_found"
    FORBIDDEN = "forbidden"
    UNREADABLE = "unreadable"
    EMPTY = "empty"
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    CRASHED = "crashed"
    TIMEOUT = "timeout"
    TEACHER_ERROR = "teacher_error"
    OUT_OF_MEMORY = "out_of_memory"
    NON_FINITE = "non_finite"

    @property
    def status(self) -> Status:
        return Status.REJECTED if self in _POLICIES else Status.FAILED


_POLICIES = frozenset({Reason.TOO_SMALL, Reason.ASPECT, Reason.TOO_MANY_TOKENS, Reason.TOO_MANY_PIXELS})


class SampleError(Exception):
    """One sample cannot be labelled; it becomes an index row with this reason and the job goes on."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message

    def __reduce__(self) -> tuple[type["SampleError"], tuple[Reason, str]]:
        return SampleError, (self.reason, self.message)
