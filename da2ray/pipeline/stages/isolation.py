"""Decoding in a process of its own, for shards whose reading has failed before: a crash or a hang costs one image.

`python -m da2ray.pipeline.stages.isolation` is that process: pickled requests on stdin, pickled answers on stdout. It serves
one image after another and is replaced when it dies or is late.
"""

import contextlib
import os
import pickle
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import numpy as np

from da2ray.errors import Reason, SampleError
from da2ray.images.decode import DecodeMode, decode_pixels
from da2ray.images.headers import Header
from da2ray.pipeline.stages.reading import Access
from da2ray.pipeline.stages.watchdog import FETCH_SECONDS, end_process
from da2ray.sources.base import Member, Source

Result = TypeVar("Result")

TRIES = 2
"""A process may also be killed by something else than its image."""
START_SECONDS = 60
"""For the process to import what it needs; about one second where nothing is in the way."""


class IsolatedAccess(Access):
    """Bodies one at a time, with a deadline; decoding behind a process border. Not for several threads at once."""

    def __init__(self, timeout: float) -> None:
        """`timeout`: seconds that one image may take."""
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        """End the process."""
        self._end()

    def fetch(self, source: Source, members: Sequence[Member]) -> Iterator[tuple[Member, bytes | SampleError]]:
        """As `Source.fetch`; one that takes longer than FETCH_SECONDS is a `timeout`, its thread left behind."""
        for member in members:
            try:
                yield from within(FETCH_SECONDS, partial(_fetch_one, source, member))
            except TimeoutError:
                yield member, SampleError(Reason.TIMEOUT, f"reading took more than {FETCH_SECONDS} s")

    def decode(self, data: bytes, header: Header, size: tuple[int, int], mode: DecodeMode) -> np.ndarray:
        """As `decode_pixels`.

        Raises:
            SampleError: `crashed` where the process died of it, `timeout` where it took too long, else as `decode_pixels`.
        """
        trouble = SampleError(Reason.CRASHED, "")
        for _ in range(TRIES):
            if self._process is None or self._process.poll() is not None:
                self._start()
            try:
                answer = self._ask((data, header, size, mode), self._timeout)
            except TimeoutError:
                self._end()
                trouble = SampleError(Reason.TIMEOUT, f"{header.format}: decoding took more than {self._timeout:g} s")
            except (EOFError, BrokenPipeError, pickle.UnpicklingError):
                code = self._end()
                trouble = SampleError(Reason.CRASHED, f"{header.format}: the decoding process died ({_died(code)})")
            else:
                if isinstance(answer, SampleError):
                    raise answer
                return answer
        raise trouble

    def _start(self) -> None:
        """Start a process; where none starts, end this one: no image is to blame, and Ray tries again, maybe elsewhere."""
        for _ in range(TRIES):
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "da2ray.pipeline.stages.isolation"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                )
                self._ask(None, START_SECONDS)
            except (OSError, EOFError, pickle.UnpicklingError):  # OSError: no memory, a time out, a broken pipe
                traceback.print_exc()
                self._end()
            else:
                return
        end_process()

    def _ask(self, request: Any, timeout: float) -> Any:
        """Send a request and wait for its answer."""
        assert self._process is not None  # noqa: S101 - started by the caller
        process = self._process

        def exchange() -> Any:
            assert process.stdin is not None  # noqa: S101
            assert process.stdout is not None  # noqa: S101
            pickle.dump(request, process.stdin, protocol=5)
            process.stdin.flush()
            return pickle.load(process.stdout)  # noqa: S301 - from our own child

        return within(timeout, exchange)

    def _end(self) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        # One that died has its own code by then; one that is stuck does not end by itself.
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(0.5)
        process.kill()
        return process.wait()


def _fetch_one(source: Source, member: Member) -> list[tuple[Member, bytes | SampleError]]:
    return list(source.fetch([member], 1))


def within(seconds: float, call: Callable[[], Result]) -> Result:
    """The result of a call, or its exception; a call that is late goes on in a thread of its own.

    Raises:
        TimeoutError: it is late.
    """
    ended: Future[Result] = Future()

    def run() -> None:
        try:
            ended.set_result(call())
        except BaseException as error:  # noqa: BLE001 - handed on
            ended.set_exception(error)

    threading.Thread(target=run, name="within", daemon=True).start()
    return ended.result(seconds)


def _died(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def serve() -> None:
    """Answer requests until stdin ends."""
    # A copy, so that nothing a decoder prints gets between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)  # noqa: S301 - from our own parent
        except EOFError:
            return
        answer: Any = "ready"
        if request is not None:
            try:
                answer = decode_pixels(*request)
            except SampleError as error:
                answer = error
            except MemoryError:
                answer = SampleError(Reason.OUT_OF_MEMORY, "no memory for its pixels")
        pickle.dump(answer, answers, protocol=5)
        answers.flush()


if __name__ == "__main__":
    serve()
