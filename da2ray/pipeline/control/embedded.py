"""An embedded Ray with the processes that a run needs, and no others.

`ray.init(include_dashboard=False)` still starts a dashboard process (for usage statistics), an autoscaler monitor, a log monitor
and a full dashboard agent: 4 s of CPU on one core, and `ray.init` waits for the first. An embedded Ray has one node, prints no
worker's log, and sends no statistics, so it does without them.

Ray 2.60 has no public switch for this, so this module replaces three methods of its `Node` while `ray.init` runs. The minor
version of Ray is pinned (pyproject.toml), and a test looks at the remaining processes.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import ray
from ray._private import node, utils
from rich.console import Console

from da2ray.errors import UserError

SHORT_FOLDER: Final = "/tmp/ray"  # noqa: S108 - Ray's own default
_SOCKET: Final = "/session_2026-11-28_06-05-12_123456_4194304/sockets/plasma_store.1"
"""The longest path of a socket below Ray's folder."""
FOLDER_BYTES: Final = 103 - len(_SOCKET)
"""The longest folder for Ray: the path of a socket has 107 bytes at most on Linux, and 103 on macOS."""


class _SmallNode(node.Node):
    """A head node without dashboard, autoscaler monitor and log monitor."""

    def start_api_server(self, **_: Any) -> None:
        self._webui_url = None

    def start_monitor(self) -> None:
        pass

    def start_log_monitor(self) -> None:
        pass


def init_embedded(console: Console, **options: Any) -> None:
    """Start Ray in and below this process, as `ray.init(address="local")` does, but smaller.

    Raises:
        UserError: Ray cannot keep its files in the folder that RAY_TMPDIR or TMPDIR names.
    """
    folder = ray_folder(console)
    with replaced(node, "Node", _SmallNode), replaced(utils, "get_dashboard_dependency_error", _no_dashboard):
        ray.init(address="local", include_dashboard=False, _temp_dir=folder, **options)


def ray_folder(console: Console) -> str:
    """The folder for Ray's sockets and logs: `ray` in RAY_TMPDIR, TMPDIR or /tmp, or SHORT_FOLDER if that path is too long.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), None)
    folder = str(Path(os.environ[variable]).absolute() / "ray") if variable else SHORT_FOLDER
    length = len(os.fsencode(folder))
    if length > FOLDER_BYTES:
        console.print(
            f"{variable} is too long for Ray's sockets ({length} bytes with /ray, {FOLDER_BYTES} at most): "
            f"Ray uses {SHORT_FOLDER}"
        )
        folder = SHORT_FOLDER
    try:
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103 - a text, like Ray's
        usable = os.access(folder, os.W_OK | os.X_OK)
        problem = "no permission to write"
    except OSError as error:
        usable, problem = False, error.strerror or str(error)
    if not usable:
        raise UserError(
            f"Ray cannot keep its files in {folder}: {problem}: set RAY_TMPDIR to a folder that can be written"
        )
    return folder


def _no_dashboard() -> ImportError:
    """What Ray gets if it is installed without its dashboard: its agent on each node then leaves out HTTP and metrics."""
    return ImportError("an embedded Ray has no dashboard")


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    """Replace an attribute of a module or class within this context."""
    before = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
