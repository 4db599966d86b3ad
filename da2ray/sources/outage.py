"""Tells a store that is down, or credentials that are refused, from an object that cannot be read.

A store that is down must not fail samples: it would fail all of them, and their rows would stay. The same holds for credentials
that expire while images are read, and for a bucket that is gone. So after a failure an object is read again that this process
has read before. If that fails too, the store or the access to it is at fault, and the run ends. If it succeeds, the failure is
the sample's own.

An object that was read is evidence for its root (a bucket, a host), and, if nothing of the root was read, for all roots of its
scheme, which share the credentials of this process. A process that has read nothing yet has no evidence: see NothingReadError.
"""

import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeVar

from da2ray.errors import NoBucketError, NothingReadError, OutageError, RejectedError, UnavailableError, UserError
from da2ray.storage import Store
from da2ray.storage.redaction import WEB

Read = TypeVar("Read")

PROBE_RETRY_S: Final = 5.0
"""How long the object that was read before is asked for."""
KEPT: Final = 4
"""Objects that are remembered for each root, because one of them may be deleted meanwhile."""
ABSENT: Final = ".da2ray-is-the-mount-there"


class Evidence:
    """The objects that this process has read last, by root. Threads may share it.

    Attributes:
        on_first: called with a scheme when the first object of it is read.
    """

    def __init__(self) -> None:
        self.on_first: Callable[[str], object] | None = None
        self._lock = threading.Lock()
        self._read: dict[str, deque[tuple[str, bool]]] = defaultdict(partial(deque, maxlen=KEPT))
        self._schemes: set[str] = set()

    def add(self, root: str, key: str, *, in_part: bool = False) -> None:
        """Note that an object was read, or a part of it."""
        scheme = scheme_of(root)
        with self._lock:
            read = self._read[root]
            if (key, in_part) in read:  # one file in many parts
                read.remove((key, in_part))
            read.append((key, in_part))
            first = scheme not in self._schemes
            self._schemes.add(scheme)
        if first and self.on_first and scheme:  # local files have no credentials
            self.on_first(scheme)

    def discard(self, root: str, key: str) -> None:
        """Forget an object, which no longer exists."""
        with self._lock:
            self._read[root] = deque((each for each in self._read[root] if each[0] != key), maxlen=KEPT)

    def objects(self, root: str) -> list[tuple[str, str, bool]]:
        """Objects that were read, the latest first: of this root, or else of others with its scheme. (root, key, whether just a
        part was read) each.
        """
        with self._lock:
            roots = [root] if self._read.get(root) else [each for each in self._read if same_scheme(each, root)]
            return [(each, *read) for each in roots for read in reversed(self._read[each])]


EVIDENCE = Evidence()
"""The evidence of this process. A worker process belongs to one run, so its credentials stay those of one run."""


class Opener(Protocol):
    """Opens the store at a root. `retry_s` as for `open_store`."""

    def __call__(self, root: str, retry_s: float | None = None) -> Store: ...


@dataclass(frozen=True, slots=True)
class Failure(Generic[Read]):
    """An object that could not be read, and for which the store may be at fault.

    Attributes:
        read: reads it from its store, or a part of it.
        in_part: whether it is a part.
        at: when it failed, as `time.monotonic` says.
    """

    root: str
    key: str
    read: Callable[[Store], Read]
    in_part: bool
    error: OSError
    at: float


class Judge:
    """Decides for one reading whether failures are their objects' own. Threads may share it."""

    def __init__(self, open_at: Opener) -> None:
        self._open_at = open_at
        self._lock = threading.Lock()
        self._well: dict[str, float] = {}
        self._fault: dict[str, OSError] = {}

    def concerns(self, root: str, error: OSError) -> bool:
        """Whether the store, rather than the object, may be at fault.

        Web servers never are: a manifest names many, one of them may be gone for good, and a signature is for one object. The
        permissions of local files are their own. A local file that is not there may lie on a disk that is not mounted any more.
        """
        if scheme_of(root) in WEB:
            return False
        if root == "/":
            return isinstance(error, UnavailableError | FileNotFoundError)
        return isinstance(error, UnavailableError | PermissionError | RejectedError | NoBucketError)

    def read_again(self, failure: Failure[Read]) -> Read:
        """Read an object once more, since the store works.

        Raises:
            UserError: the store rejects an object that it gave before, or its certificate is not trusted any more.
            OutageError: the store is down or has lost its bucket, or it refuses an object that it gave before.
            NothingReadError: nothing was read before, so nothing tells whose fault it is.
            OSError: the store works, but does not give this object.
        """
        with self._lock:
            self._check(failure)
        read = failure.read(self._open_at(failure.root, PROBE_RETRY_S))
        EVIDENCE.add(failure.root, failure.key, in_part=failure.in_part)
        return read

    def _check(self, failure: Failure[Any]) -> None:
        # Local paths share one root and lie on many mounts.
        folder = failure.key.rpartition("/")[0]
        place = f"/{folder}" if failure.root == "/" else failure.root
        if place not in self._fault:
            # An answer from before the failure proves nothing: credentials may have expired between the two.
            if self._well.get(place, float("-inf")) >= failure.at:
                return
            began = time.monotonic()
            fault = self._mount_fault(folder, failure) if failure.root == "/" else self._store_fault(failure)
            if fault is None:
                self._well[place] = began
                return
            self._fault[place] = fault
        fault = self._fault[place]
        if isinstance(fault, PermissionError):
            raise OutageError(
                f"{failure.error}; access worked before, and an object that was read then is refused now: "
                "renew the credentials"
            )
        if isinstance(fault, RejectedError):
            raise UserError(str(fault))
        raise OutageError(str(failure.error if failure.root != "/" else fault))

    def _store_fault(self, failure: Failure[Any]) -> OSError | None:
        """Why an object that was read before cannot be read now; None if it can."""
        for root, key, in_part in EVIDENCE.objects(failure.root):
            try:
                store = self._open_at(root, PROBE_RETRY_S)
                store.get_range(key, 0, 1) if in_part else store.get(key)
            except NoBucketError as error:
                return error
            except FileNotFoundError:  # deleted since, which says nothing about access
                EVIDENCE.discard(root, key)
            except OSError as error:
                return error
            else:
                return None
        raise NothingReadError(failure.root, failure.error)

    def _mount_fault(self, folder: str, failure: Failure[Any]) -> OSError | None:
        """Why a folder does not answer, or has lost all files; None if it answers, and lacks just this file."""
        store = self._open_at("/", PROBE_RETRY_S)
        if not isinstance(failure.error, FileNotFoundError):
            return (
                failure.error if _raises(UnavailableError, store, f"{folder}/{ABSENT}" if folder else ABSENT) else None
            )
        read = [key for _, key, _ in EVIDENCE.objects("/") if key != failure.key]
        if not read or not all(_raises(FileNotFoundError, store, key) for key in read) or _has_files(folder):
            return None
        return OSError(f"{failure.error}; other files that were read before are gone too: is the disk still mounted?")


def _has_files(folder: str) -> bool:
    """Whether anything lies in a local folder. A disk that is not mounted any more leaves an empty one, or none."""
    try:
        with os.scandir(f"/{folder}") as entries:
            return next(entries, None) is not None
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _raises(kind: type[OSError], store: Store, key: str) -> bool:
    """Whether looking at a file raises an error of this kind."""
    try:
        store.stat(key)
    except OSError as error:
        return isinstance(error, kind)
    return False


def scheme_of(root: str) -> str:
    """The scheme of a store's URL; empty for local paths."""
    return root.partition("://")[0] if "://" in root else ""


def same_scheme(one: str, other: str) -> bool:
    """Whether two stores share credentials."""
    return scheme_of(one) == scheme_of(other)
