"""File systems of fsspec that a forked child has from its parent: they must not end in the child.

A file system closes its connections when it ends and when the process ends: s3fs's and the web server's by a finalizer, others by
`__del__`. In a forked child these connections are the parent's, and the event loop that could close them runs only there.
So aiohttp wrote "attached to a different loop" to stderr if the child dropped a store of its parent, and the child's exit took a
second for each. A WeakSet of the file systems does not help: those with equal options are equal, so it keeps one of them, and
finalizers run at the exit of the process anyway.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, Final
from weakref import WeakValueDictionary

_OPEN: Final[WeakValueDictionary[int, Any]] = WeakValueDictionary()
"""The file systems of this process, by `id`."""
_INHERITED: Final[list[object]] = []
"""What this process has from its parent and must not end."""


def end_only_here(fs: Any) -> None:
    """Let a new file system, which has not connected yet, be ended by this process but not by its forked children."""
    _OPEN[id(fs)] = fs
    if hasattr(fs, "close_session"):  # fsspec's name for what its finalizers call
        fs.close_session = partial(_close, os.getpid(), fs.close_session)


def _close(process: int, close: Callable[..., None], *clients: object) -> None:
    if os.getpid() == process:
        close(*clients)
    else:
        _INHERITED.append(clients)  # aiohttp's sessions complain at their end, too.


os.register_at_fork(after_in_child=lambda: _INHERITED.extend(_OPEN.values()))
