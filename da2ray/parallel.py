"""Threads and cores: look-ahead over a stream of work, and how many CPUs there are to use."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def look_ahead(work: Callable[[In], Out], items: Iterable[In], threads: int, name: str) -> Iterator[Out]:
    """The results in order; at most twice as many as there are threads are under way or waiting to be taken.

    A caller that stops half-way waits for what is being worked on, not for the queue.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix=name) as pool:
        waiting: deque[Future[Out]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def usable_cores() -> int:
    """CPUs that this process may run on; of the machine where the system does not say (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
