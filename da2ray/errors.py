"""Errors, statuses, reasons and exit codes.

The tree of errors that this package raises on purpose:

    Exception
      UserError            the user has to change something
      ResumableError       a run ended early, and the same command goes on
      SampleError          one sample cannot be labelled; it becomes a row with a `Reason`
      OSError
        StoreError         a store failed; FileNotFoundError and PermissionError stand beside it
          UnavailableError   the same call may succeed later
          RejectedError      the same call fails again until the configuration changes
          OutageError        a store of images is down, or refuses access that it gave before
            NothingReadError   a store gave none of the images that were asked for
        CorruptError       stored state is not what was written

`Exit.of` gives the exit code of a command that an error ended.
"""

from enum import IntEnum, StrEnum


class UserError(Exception):
    """The user has to change something: usage, configuration, permissions or weights.

    The message is one or two lines that say what to change.
    """


class ResumableError(Exception):
    """A run ended early, as a cluster, its workers or a store failed. The same command goes on where it stopped."""


class StoreError(OSError):
    """A store failed for a reason other than a missing object or a missing permission."""


class UnavailableError(StoreError):
    """A store gave no answer, a broken one, or one that asks to come again (5xx, 409, 429). The same call may succeed later."""


class NoBucketError(FileNotFoundError):
    """A store says that it has no such bucket. One object is not at fault: a store whose disks are missing says so too."""


class RejectedError(StoreError):
    """A store answered that it cannot do this, or its certificate is not trusted: a wrong region, a missing feature, a wrong
    endpoint. Waiting does not help.
    """


class OutageError(StoreError):
    """A store of images is down, or refuses access that it gave before. The run ends, and can be resumed when the store is back
    or the credentials are renewed.
    """


class NothingReadError(OutageError):
    """A store failed for each image that was asked for, and this process has read nothing with these credentials before.

    So nothing tells yet whether the images or the store are at fault, or whether waiting helps; a read task of a run finds out.

    Attributes:
        root: the store's URL.
        cause: why the first image could not be read.
    """

    def __init__(self, root: str, cause: OSError) -> None:
        super().__init__(str(cause))
        self.root = root
        self.cause = cause

    def __reduce__(self) -> tuple[type["NothingReadError"], tuple[str, OSError]]:
        return NothingReadError, (self.root, self.cause)


class CorruptError(OSError):
    """A commit, a snapshot or a part of the index does not hold what was written. The store itself did not fail."""


class Exit(IntEnum):
    """The exit codes of all commands. Schedulers build on them, so they never change."""

    meaning: str

    DONE = 0, "done; for a job: every planned sample has a row"
    WRONG = (
        1,
        "more samples failed than --max-failed or are gone than --max-gone, or verify or repair found something wrong",
    )
    USAGE = 2, "wrong usage or configuration, or a damaged dataset: change something first"
    BROKEN = 70, "a bug; the traceback says where"
    RESUMABLE = 75, "stopped by a signal, or a store or cluster does not answer: run the same command again"

    def __new__(cls, code: int, meaning: str) -> "Exit":
        """Make a code that knows what it means."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    @classmethod
    def of(cls, error: BaseException) -> "Exit":
        """The exit code of a command that this error ended."""
        return next((code for kind, code in _ENDINGS if isinstance(error, kind)), cls.BROKEN)


_ENDINGS: tuple[tuple[type[BaseException], Exit], ...] = (
    (BrokenPipeError, Exit.DONE),  # `da2ray status URL | head`
    (KeyboardInterrupt, Exit.RESUMABLE),
    (ResumableError, Exit.RESUMABLE),
    (UnavailableError, Exit.RESUMABLE),
    (OutageError, Exit.RESUMABLE),
    (UserError, Exit.USAGE),
    (OSError, Exit.USAGE),  # a bucket that does not exist, a missing permission, a full disk, damage
)
"""The first line that fits decides. Any other error is a bug, so it is never taken for failed samples."""


class Status(StrEnum):
    """What became of a planned sample."""

    LABELLED = "labelled"
    REJECTED = "rejected"
    FAILED = "failed"


class Reason(StrEnum):
    """Why a sample has no label.

    The first group stands for policies, and for images that are known to be deleted (`rejected`). The second stands for errors
    (`failed`).
    """

    TOO_SMALL = "too_small"
    ASPECT = "aspect"
    TOO_MANY_TOKENS = "too_many_tokens"
    TOO_MANY_PIXELS = "too_many_pixels"
    GONE = "gone"

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
        return Status.REJECTED if self in _REJECTED else Status.FAILED


_REJECTED = frozenset({Reason.TOO_SMALL, Reason.ASPECT, Reason.TOO_MANY_TOKENS, Reason.TOO_MANY_PIXELS, Reason.GONE})


class SampleError(Exception):
    """One sample cannot be labelled. It becomes an index row with this reason, and the job goes on."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message

    def __reduce__(self) -> tuple[type["SampleError"], tuple[Reason, str]]:
        return SampleError, (self.reason, self.message)
