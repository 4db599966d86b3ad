"""Ending a run early: signals on the driver, and telling apart what ended an execution."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator

import ray

from da2ray.pipeline.progress import Progress


@contextlib.contextmanager
def stop_on_signals(coordinator: "ray.actor.ActorHandle", progress: Progress) -> Iterator[threading.Event]:
    """SIGTERM and Ctrl-C finish what is in flight; a second one ends at once. Installed after `ray.init`, which overrides."""
    stopping, ended = threading.Event(), threading.Event()

    def request(_number: int, _frame: object) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()

    def pass_on() -> None:
        while not ended.is_set():
            if stopping.wait(0.2):
                progress.say("stopping, finishing what is in flight:")
                # The execution will end with `Stopped`, which Ray Data would log as an error with its traceback.
                logging.getLogger("ray.data").setLevel(logging.CRITICAL)
                coordinator.stop.remote()
                return

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, request)
    # A thread: a signal handler may run inside a Ray call, and must not make another.
    thread = threading.Thread(target=pass_on, name="stop", daemon=True)
    thread.start()
    try:
        yield stopping
    finally:
        # Not what was there before: that is Ray's handler, which would exit 1.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        ended.set()
        thread.join()


def cause_of(error: BaseException | None, kind: type[Exception]) -> BaseException | None:
    """The exception of that kind that a worker raised and Ray wrapped, in whatever depth; None where there is none."""
    for _ in range(10):
        for found in (error, getattr(error, "cause", None)):
            if isinstance(found, kind):
                return found
        if error is None:
            return None
        error = error.__cause__ or error.__context__
    return None
