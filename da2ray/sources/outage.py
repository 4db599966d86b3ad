"""A store that is down is no failure of a sample: it would be one of every sample, and their rows would stay so."""

import threading
import time
from collections.abc import Callable
from typing import Final

from da2ray.errors import OutageError, UnavailableError
from da2ray.storage import Store
from da2ray.storage.redaction import WEB

PROBE_RETRY_S: Final = 5.0
"""For how long a store that did not answer for long (`RETRY_S`) is asked whether it answers at all."""
ANSWER_HOLDS_S: Final = 30.0
ABSENT: Final = ".da2ray-is-the-store-there"


class Outages:
    """Asks each store once for all samples that fail at the same time. For many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, bool]] = {}

    def get_again(self, error: UnavailableError, root: str, key: str, impatient: Callable[[], Store]) -> bytes:
        """The object that could not be read, as the outage may be over.

        Args:
            error: why it could not be read.
            root: of the store.
            key: of the object.
            impatient: the store at `root`, with PROBE_RETRY_S.

        Raises:
            OutageError: the store answers nothing.
            OSError: it answers, and not for this object; or it is a web server. Of these a manifest names many, and one
                may be gone for good.
        """
        if root.partition("://")[0] in WEB:
            raise error
        store = impatient()
        if not self._is_there(store, root, key):
            raise OutageError(str(error)) from None
        return store.get(key)

    def _is_there(self, store: Store, root: str, key: str) -> bool:
        folder = key.rpartition("/")[0]
        # Local paths have one root and many mounts.
        place = f"/{folder}" if root == "/" else root
        with self._lock:
            asked, answers = self._known.get(place, (float("-inf"), False))
            if time.monotonic() - asked >= ANSWER_HOLDS_S:
                answers = _answers(store, f"{folder}/{ABSENT}" if folder else ABSENT)
                self._known[place] = (time.monotonic(), answers)
            return answers


def _answers(store: Store, key: str) -> bool:
    """Whether there is an answer, be it that there is no such object or no permission to know."""
    try:
        store.stat(key)
    except UnavailableError:
        return False
    except OSError:
        return True
    return True
