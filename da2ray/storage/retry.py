"""For how long a call is tried again, over what the clients retry by themselves.

What they do not: a reset before the answer to a create or a delete, an answer that ends in its body, a conflict.
"""

import os
import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

from da2ray.errors import UnavailableError, UserError

RETRY_VARIABLE: Final = "DA2RAY_RETRY_SECONDS"
RETRY_S: Final = 180.0
"""A store that restarts is back within it, a credential is still valid after it (obstore's limit is 5 min), and a store
that stays down ends a job in minutes.
"""
FIRST_WAIT_S: Final = 0.1
LONGEST_WAIT_S: Final = 15.0

T = TypeVar("T")


def retry_seconds() -> float:
    """What DA2RAY_RETRY_SECONDS says, else RETRY_S.

    Raises:
        UserError: it is no number of seconds.
    """
    said = os.environ.get(RETRY_VARIABLE, "")
    try:
        seconds = float(said or RETRY_S)
    except ValueError:
        seconds = -1
    if not 0 <= seconds < float("inf"):
        raise UserError(f"{RETRY_VARIABLE} is {said!r}; it must be a number of seconds, 0 or more")
    return seconds


def settled(attempt: Callable[[], T], seconds: float) -> T:
    """What `attempt` returns or raises, once it is no `UnavailableError`.

    It is called until it began `seconds` after the first time, so it takes that and one attempt at most.

    Raises:
        UnavailableError: the last one.
    """
    began = time.monotonic()
    longest = FIRST_WAIT_S
    while True:
        try:
            return attempt()
        except UnavailableError as error:
            # A random share, so that the readers of a store that comes back do not all come at once.
            wait = longest * random.uniform(0.5, 1)  # noqa: S311
            elapsed = time.monotonic() - began
            if elapsed + wait > seconds:
                said = f"{error} (tried for {elapsed:.0f} s)" if elapsed >= 1 else str(error)
                raise UnavailableError(said) from None
        time.sleep(wait)
        longest = min(2 * longest, LONGEST_WAIT_S)
