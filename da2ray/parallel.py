"""Threads and cores: look-ahead over a stream of work, and how many CPUs this process may use."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def look_ahead(
    work: Callable[[In], Out],
    items: Iterable[In],
    threads: int,
    name: str,
    *,
    ahead: int | None = None,
    wait: bool = True,
) -> Generator[Out]:
    """Yield the results of `work` in the order of `items`, which may be endless.

    Args:
        threads: items that are worked on at the same time.
        name: prefix of the threads' names.
        ahead: items beyond the one that was yielded last that may be under way or waiting to be taken; twice `threads` if
            None. It bounds the memory of results.
        wait: a caller that stops half-way waits for the items that are being worked on, not for the queue. If False, it
            waits for nothing.
    """
    ahead = 2 * threads if ahead is None else ahead
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    waiting: deque[Future[Out]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=wait, cancel_futures=True)


def usable_cores() -> int:
    """How many CPUs this process may run on; all of the machine's if the system does not say (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
