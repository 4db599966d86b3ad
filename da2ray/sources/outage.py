"""Tells a store that is down from an object that cannot be read.

A store that is down must not fail samples: it would fail all of them, and their rows would stay.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

from da2ray.errors import OutageError, UnavailableError
from da2ray.storage import Store
from da2ray.storage.redaction import WEB

PROBE_RETRY_S: Final = 5.0
"""How long a store that did not answer for `RETRY_S` is asked whether it answers at all."""
ANSWER_HOLDS_S: Final = 30.0
"""How long its answer counts for other samples."""
ABSENT: Final = ".da2ray-is-the-store-there"


class Outages:
    """Asks a store once for all samples that fail at the same time. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, bool]] = {}

    def get_again(self, error: UnavailableError, root: str, key: str, impatient: Callable[[], Store]) -> bytes:
        """Read once more an object that could not be read, since the outage may be over.

        Args:
            error: why the object could not be read.
            root: the store's URL.
            key: the object's key.
            impatient: opens the store at `root` with PROBE_RETRY_S.

        Raises:
            OutageError: the store does not answer at all.
            OSError: the store answers, but not for this object; or it is a web server. A manifest names many web servers, and one
                of them may be gone for good.
        """
        if root.partition("://")[0] in WEB:
            raise error
        store = impatient()
        if not self._is_there(store, root, key):
            raise OutageError(str(error)) from None
        return store.get(key)

    def _is_there(self, store: Store, root: str, key: str) -> bool:
        folder = key.rpartition("/")[0]
        # Local paths share one root and lie on many mounts.
        place = f"/{folder}" if root == "/" else root
        with self._lock:
            asked, answers = self._known.get(place, (float("-inf"), False))
            if time.monotonic() - asked >= ANSWER_HOLDS_S:
                answers = _answers(store, f"{folder}/{ABSENT}" if folder else ABSENT)
                self._known[place] = (time.monotonic(), answers)
            return answers


def _answers(store: Store, key: str) -> bool:
    """Whether the store answers, if only that there is no such object or that permission is missing."""
    try:
        store.stat(key)
    except UnavailableError:
        return False
    except OSError:
        return True
    return True
