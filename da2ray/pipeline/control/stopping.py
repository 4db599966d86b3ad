"""Stopping a run: what signals on the driver do, and what ends a run that no longer moves."""

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
