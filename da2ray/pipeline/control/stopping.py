"""Ending a run early: signals on the driver, and telling apart what ended an execution."""

import contextlib
import signal
import threading
from _thread import interrupt_main
from collections.abc import Iterator

import ray

from da2ray.console import duration
from da2ray.pipeline.control.progress import Progress

STALL_SECONDS = 3600.0
"""Everything that runs has a deadline of its own that is shorter: what is left is a scheduler that does nothing."""


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
            if progress.stalled_seconds > STALL_SECONDS:
                progress.say(f"nothing has moved for {duration(STALL_SECONDS)}, ending:")
                stopping.set()
                interrupt_main()  # as a second Ctrl-C
                return
            if stopping.wait(0.2):
                progress.say("stopping, finishing what is in flight:")
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


def first_line(error: BaseException) -> str:
    """What it says, in one line of at most 200 characters."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


def cause_of(error: BaseException | None, kind: type[Exception] | tuple[type[Exception], ...]) -> BaseException | None:
    """The exception of that kind that a worker raised and Ray wrapped, in whatever depth; None where there is none."""
    for _ in range(10):
        # Where an actor's constructor raised, Ray keeps the error that wraps it as an argument, and its text, and no cause.
        wrappers = (*error.args, error) if isinstance(error, ray.exceptions.ActorDiedError) else (error,)
        # In this order: Ray's error may be of that kind too, with a traceback in its text.
        for found in (*(getattr(wrapper, "cause", None) for wrapper in wrappers), error):
            if isinstance(found, kind):
                return found
        if error is None:
            return None
        error = error.__cause__ or error.__context__
    return None
