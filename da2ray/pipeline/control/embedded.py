"""An embedded Ray with the processes that a run needs, and no others.

`ray.init(include_dashboard=False)` still starts a dashboard process (for usage statistics), an autoscaler monitor, a log monitor
and a full dashboard agent: 4 s of CPU on one core, and `ray.init` waits for the first. An embedded Ray has one node, prints no
worker's log, and sends no statistics, so it does without them.

Ray 2.60 has no public switch for this, so this module replaces three methods of its `Node` while `ray.init` runs. The minor
version of Ray is pinned (pyproject.toml), and a test looks at the processes that are left.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import ray
from ray._private import node, utils


class _SmallNode(node.Node):
    """A head node without dashboard, autoscaler monitor and log monitor."""

    def start_api_server(self, **_: Any) -> None:
        self._webui_url = None

    def start_monitor(self) -> None:
        pass

    def start_log_monitor(self) -> None:
        pass


def init_embedded(**options: Any) -> None:
    """Start Ray in and below this process, as `ray.init(address="local")` does, but smaller."""
    with replaced(node, "Node", _SmallNode), replaced(utils, "get_dashboard_dependency_error", _no_dashboard):
        ray.init(address="local", include_dashboard=False, **options)


def _no_dashboard() -> ImportError:
    """What Ray gets if it is installed without its dashboard: its agent on each node then leaves out HTTP and metrics."""
    return ImportError("an embedded Ray has no dashboard")


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    """Within this context a module or class has another value under a name."""
    before = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
