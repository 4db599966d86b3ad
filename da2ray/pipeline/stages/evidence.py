"""Reading a shard if its store fails for all of it: other shards show whether the store or the shard's objects are at fault."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, TypeVar

from da2ray.errors import NothingReadError, OutageError, UnavailableError, UserError
from da2ray.sources.base import Place, Source
from da2ray.sources.outage import EVIDENCE, scheme_of

Result = TypeVar("Result")

WITNESSES: Final = 8
"""Samples of other shards that are read to learn whether a store works."""
LATE_S: Final = 3.0
"""How long to wait for the word that another process of the run could read, which is on its way while that one reads."""


def read_with_evidence(
    read: Callable[[], Result],
    source: Source,
    specs: Callable[[], Sequence[bytes]],
    was_readable: Callable[[str], bool],
) -> Result:
    """The result of `read`, which reads a shard of `source`.

    A process that has read nothing yet cannot tell its shard's objects from the store. So it reads the first samples of up to
    WITNESSES other shards, and then the shard again.

    Args:
        specs: gives specifications of other shards, none if the plan has just one.
        was_readable: whether any process of this run read from a store of this scheme. The run is what has these credentials:
            a run that is begun again has others, or finds that they are still refused.

    Raises:
        UserError: access was refused before anything was read in this run, or the store rejects the requests.
        OutageError: the store is down, or access is refused after it worked in this run.
    """
    try:
        return read()
    except NothingReadError as error:
        failed = error
    firsts = [(spec, [Place(0)]) for spec in specs()]
    if firsts:  # else the plan has just this shard
        with suppress(NothingReadError):
            for _ in source.read(source.select(firsts), concurrency=WITNESSES):
                if EVIDENCE.objects(failed.root):
                    break
    if EVIDENCE.objects(failed.root):
        try:
            return read()
        except NothingReadError as error:
            failed = error
    raise _ending(failed, was_readable) from None


def _ending(failed: NothingReadError, was_readable: Callable[[str], bool]) -> UserError | OutageError:
    if isinstance(failed.cause, UnavailableError):
        return OutageError(str(failed))
    if not isinstance(failed.cause, PermissionError):
        return UserError(str(failed))
    deadline = time.monotonic() + LATE_S
    while time.monotonic() < deadline:
        if was_readable(scheme_of(failed.root)):
            return OutageError(f"{failed}; access worked before in this run: renew the credentials")
        time.sleep(LATE_S / 10)
    return UserError(f"{failed}\nnothing could be read of {failed.root}: check the credentials, and what they may read")
