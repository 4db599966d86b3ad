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
"""Every task has a shorter deadline of its own, so after this time it must be the scheduler that does nothing."""


class StopRequest(threading.Event):
    """An event that is set once a run is to stop. `forced`: a second signal ended it before the shards in flight were done."""

    forced = False


@contextlib.contextmanager
def stop_on_signals(coordinator: "ray.actor.ActorHandle", progress: Progress, stopping: StopRequest) -> Iterator[None]:
    """Within this context, SIGTERM or Ctrl-C lets the run finish the shards in flight, and a second one ends it at once.

    Enter it after `ray.init`, which installs handlers of its own.
    """
    ended, stalled = threading.Event(), threading.Event()

    def request(_number: int, _frame: object) -> None:
        if stopping.is_set():
            stopping.forced = not stalled.is_set()
            raise KeyboardInterrupt
        stopping.set()

    def watch() -> None:
        while not ended.is_set():
            if progress.stalled_seconds > STALL_SECONDS:
                progress.say(f"nothing has moved for {duration(STALL_SECONDS)}, ending:")
                stalled.set()
                stopping.set()
                interrupt_main()  # like a second Ctrl-C
                return
            if stopping.wait(0.2):
                progress.say("stopping, finishing what is in flight:")
                coordinator.stop.remote()
                return

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, request)
    # In a thread, because a signal handler may run inside a Ray call, and must not make another one.
    thread = threading.Thread(target=watch, name="stop", daemon=True)
    thread.start()
    try:
        yield
    finally:
        # The handler from before is Ray's, which would exit with 1, so it is not restored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        ended.set()
        thread.join()
