"""Decoding in a process of its own, for shards whose reading has failed before: a crash or a hang costs one image.

`python -m da2ray.pipeline.stages.isolation` is that process: it takes pickled requests on stdin and answers on stdout. It serves
one image after another, and is replaced if it dies or is late.
"""

import contextlib
import os
import pickle
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import numpy as np

from da2ray.errors import OutageError, Reason, SampleError
from da2ray.images.decode import DecodeMode, decode_pixels
from da2ray.images.headers import Header
from da2ray.pipeline.stages.access import Access
from da2ray.pipeline.stages.watchdog import FETCH_SECONDS, end_process
from da2ray.sources.base import Extent, Sample, Source

Result = TypeVar("Result")

TRIES = 2
"""Something else than its image may have killed a process."""
START_SECONDS = 60
"""Deadline for the process to import what it needs, which takes about one second."""


class IsolatedAccess(Access):
    """Reads samples one at a time, with a deadline, and decodes behind a process border. Not for several threads at once."""

    def __init__(self, timeout: float) -> None:
        """`timeout`: seconds that decoding one image may take."""
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        """End the process."""
        self._end()

    def read(self, source: Source, spec: bytes) -> Iterator[Sample | Extent]:
        """The samples of a shard, as `Source.read` yields them.

        A sample that takes longer than FETCH_SECONDS is a `timeout`: the thread that reads it is left behind, and a new reading
        goes on after it.

        Raises:
            OutageError: a sample takes longer, and the source cannot name it (a tar cannot). No row can be made for it then, and
                its store, not the image, keeps it waiting: the run ends and can be resumed.
        """
        row = 0
        samples = source.read(spec, concurrency=1)
        while True:
            try:
                sample = within(FETCH_SECONDS, partial(next, samples, None))
            except TimeoutError:
                member = source.member(spec, row)
                late = f"reading took more than {FETCH_SECONDS} s"
                if member is None:
                    raise OutageError(f"{source.url}: {late}, and which sample it was is not known") from None
                sample = Sample(member, SampleError(Reason.TIMEOUT, late))
                samples = source.read(spec, concurrency=1, skip=row + 1)
            if sample is None:
                return
            yield sample
            row += 1

    def decode(self, data: bytes, header: Header, size: tuple[int, int], mode: DecodeMode) -> np.ndarray:
        """The pixels of an image file, as `decode_pixels` gives them.

        Raises:
            SampleError: `crashed` if the process died of it, `timeout` if it took too long, else as `decode_pixels`.
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
        """Start a process. If none starts, end this one: no image is to blame, and Ray tries again, maybe on another node."""
        for _ in range(TRIES):
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "da2ray.pipeline.stages.isolation"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                )
                self._ask(None, START_SECONDS)
            except (OSError, EOFError, pickle.UnpicklingError):  # OSError: no memory, a timeout, a broken pipe
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
        # A process that died has its own exit code by then; one that is stuck does not end by itself.
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(0.5)
        process.kill()
        return process.wait()


def within(seconds: float, call: Callable[[], Result]) -> Result:
    """The result of a call, or its exception. A call that is late is left behind in a thread of its own.

    Raises:
        TimeoutError: the call takes longer than `seconds`.
    """
    ended: Future[Result] = Future()

    def run() -> None:
        try:
            ended.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised in the caller
            ended.set_exception(error)

    threading.Thread(target=run, name="within", daemon=True).start()
    return ended.result(seconds)


def _died(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def serve() -> None:
    """Answer requests until stdin ends."""
    # A copy of stdout, so that nothing a decoder prints gets between the answers.
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
