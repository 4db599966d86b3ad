"""Deadlines that hold even if a call never returns and keeps Python's lock: the process ends, and Ray tries again.

`faulthandler`'s timer runs in C and needs no lock. A process has one such timer, and runs one task that uses it at a time.
"""

import faulthandler
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from da2ray.images.decode import DecodeMode
from da2ray.images.headers import Header
from da2ray.pipeline.stages.access import Access
from da2ray.sources.base import Extent, Sample, Source

FETCH_SECONDS = 900
"""Deadline of one sample's bytes: a storage client's own retries end after 3 minutes, and it may have to ask whether the store is
there at all."""
WRITE_SECONDS = 1800
"""Deadline of a shard's encoding, PUT and commit."""


class WatchedAccess(Access):
    """Ends the process if an image, or its bytes, take too long: the next attempt isolates the image."""

    def __init__(self, timeout: float) -> None:
        """`timeout`: seconds that decoding one image may take."""
        self._timeout = timeout

    def read(self, source: Source, spec: bytes) -> Iterator[Sample | Extent]:
        samples = super().read(source, spec)
        while True:
            with ends_process_after(FETCH_SECONDS):
                sample = next(samples, None)
            if sample is None:
                return
            yield sample

    def decode(self, data: bytes, header: Header, size: tuple[int, int], mode: DecodeMode) -> np.ndarray:
        with ends_process_after(self._timeout):
            return super().decode(data, header, size, mode)


@contextmanager
def ends_process_after(seconds: float) -> Iterator[None]:
    """End this process at once if the body takes longer. Costs 40 microseconds."""
    # The timer prints the stacks of all threads to stderr. Ray keeps that in its session's logs, where a person would look.
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def end_process() -> None:
    """End this process without telling anybody, as a crash does; for a thread that finds another one stuck."""
    faulthandler.dump_traceback()
    os._exit(1)
