"""Repeat calls to a store that is unavailable, beyond what the clients repeat by themselves.

They do not repeat after a reset before the answer to a create or a delete, an answer that ends in its body, or a conflict.
"""

import os
import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

from da2ray.errors import UnavailableError, UserError

RETRY_VARIABLE: Final = "DA2RAY_RETRY_SECONDS"
RETRY_S: Final = 180.0
"""Within this time a store that restarts is back, and a credential stays valid (obstore's limit is 5 min); a store that stays
down ends a job in minutes."""
FIRST_WAIT_S: Final = 0.1
LONGEST_WAIT_S: Final = 15.0

T = TypeVar("T")


def retry_seconds() -> float:
    """The value of DA2RAY_RETRY_SECONDS, else RETRY_S.

    Raises:
        UserError: the variable is not a number of seconds.
    """
    value = os.environ.get(RETRY_VARIABLE, "")
    try:
        seconds = float(value or RETRY_S)
    except ValueError:
        seconds = -1
    if not 0 <= seconds < float("inf"):
        raise UserError(f"{RETRY_VARIABLE} is {value!r}; it must be a number of seconds, 0 or more")
    return seconds


def settled(attempt: Callable[[], T], seconds: float) -> T:
    """The result of `attempt`, repeated while it raises an `UnavailableError`.

    No attempt begins later than `seconds` after the first one, so the call takes that and one attempt at most.

    Raises:
        UnavailableError: the last attempt raised it. Any other error is raised at once.
    """
    began = time.monotonic()
    longest = FIRST_WAIT_S
    while True:
        try:
            return attempt()
        except UnavailableError as error:
            # A random share of it, so that clients do not all return at once to a store that comes back.
            wait = longest * random.uniform(0.5, 1)  # noqa: S311
            elapsed = time.monotonic() - began
            if elapsed + wait > seconds:
                message = f"{error} (tried for {elapsed:.0f} s)" if elapsed >= 1 else str(error)
                raise UnavailableError(message) from None
        time.sleep(wait)
        longest = min(2 * longest, LONGEST_WAIT_S)
