"""Deadlines that hold even where a call never comes back and keeps Python's lock: the process ends, and Ray tries again.

`faulthandler`'s timer runs in C and needs no lock. It is one for each process, as are the tasks that use it here.
"""

import faulthandler
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from da2ray.errors import SampleError
from da2ray.images.decode import DecodeMode
from da2ray.images.headers import Header
from da2ray.pipeline.stages.reading import Access
from da2ray.sources.base import Member, Source

FETCH_SECONDS = 900
"""For one body: a storage client's own retries end after 3 minutes, and it may have to ask whether the store is there at all."""
WRITE_SECONDS = 1800
"""For a shard's encoding, PUT and commit."""


class WatchedAccess(Access):
    """Ends the process where an image, or its body, takes too long: the next attempt isolates it."""

    def __init__(self, timeout: float) -> None:
        """`timeout`: seconds that decoding one image may take."""
        self._timeout = timeout

    def fetch(self, source: Source, members: Sequence[Member]) -> Iterator[tuple[Member, bytes | SampleError]]:
        bodies = super().fetch(source, members)
        while True:
            with ends_process_after(FETCH_SECONDS):
                fetched = next(bodies, None)
            if fetched is None:
                return
            yield fetched

    def decode(self, data: bytes, header: Header, size: tuple[int, int], mode: DecodeMode) -> np.ndarray:
        with ends_process_after(self._timeout):
            return super().decode(data, header, size, mode)


@contextmanager
def ends_process_after(seconds: float) -> Iterator[None]:
    """End this process at once if the body takes longer; 40 microseconds."""
    # Its output, the stacks of all threads, is where a person would look: Ray keeps stderr of workers in its session's logs.
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def end_process() -> None:
    """End this process without a word to anybody, as a crash does; for a thread that finds another one stuck."""
    faulthandler.dump_traceback()
    os._exit(1)
