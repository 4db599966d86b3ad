"""An embedded Ray with the processes that a run needs, and no others.

`ray.init(include_dashboard=False)` still starts a dashboard process (for usage statistics), an autoscaler monitor, a log monitor,
a dashboard agent and an agent for runtime environments: 5 s of CPU, and `ray.init` waits for the dashboard and both agents. An
embedded Ray has one node, prints no worker's log, sends no statistics, and its workers share the driver's environment, so it does
without them. `ray.init` takes 0.8 s so, and 2.0 s with both agents (two cores).

Ray 2.60 has no public switch for this, so while `ray.init` runs, this module replaces methods of its `Node`, and the agents in
the raylet's command line. The minor version of Ray is pinned (pyproject.toml), and a test looks at the remaining processes.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import ray
from ray._private import node, ray_constants, services, utils
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray._raylet import get_port_filename  # type: ignore[attr-defined]  # the stubs lack it
from rich.console import Console

from da2ray.errors import UserError

SHORT_FOLDER: Final = "/tmp/ray"  # noqa: S108 - Ray's own default
_SOCKET: Final = "/session_2026-11-28_06-05-12_123456_4194304/sockets/plasma_store.1"
"""The longest path of a socket below Ray's folder."""
FOLDER_BYTES: Final = 103 - len(_SOCKET)
"""The longest folder for Ray: the path of a socket has 107 bytes at most on Linux, and 103 on macOS."""

_PLACEHOLDER: Final = "import os, time; raylet = os.getppid(); exec('while os.getppid() == raylet: time.sleep(0.5)')"
"""What runs in place of an agent: a raylet must have its two agents as children, and ends if one of them ends."""
_DASHBOARD_PORTS: Final = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
_RUNTIME_ENV_PORT: Final = "runtime_env_agent_port"
_NO_SERVICE: Final = "-1"
"""What an agent writes to the file of a port if it does not serve it. The raylet waits for these files."""
_UNUSED_PORT: Final = "1"
"""The port of the missing agent for runtime environments, which must be positive. Without such environments nothing connects."""


class _SmallNode(node.Node):
    """A head node without dashboard, dashboard agent, autoscaler monitor and log monitor.

    `runtime_envs` is set for one `ray.init` at a time: whether jobs may bring runtime environments, which take an agent.
    """

    runtime_envs = False

    def start_raylet(self, *args: Any, **options: Any) -> None:
        start = _without_agents(services.start_ray_process, runtime_envs=self.runtime_envs)
        with replaced(services, "start_ray_process", start):
            super().start_raylet(*args, **options)

    def start_api_server(self, **_: Any) -> None:
        self._webui_url = None

    def start_monitor(self) -> None:
        pass

    def start_log_monitor(self) -> None:
        pass


def init_embedded(console: Console, *, runtime_envs: bool = False, **options: Any) -> None:
    """Start Ray in and below this process, as `ray.init(address="local")` does, but smaller.

    Args:
        console: for a line about Ray's folder.
        runtime_envs: drivers that join this Ray may bring runtime environments. This driver may in any case, if its environment
            variables name one or a hook that makes one. Ray's own hook for `uv run` is off: workers are of the same environment.
        options: for `ray.init`.

    Raises:
        UserError: Ray cannot keep its files in the folder that RAY_TMPDIR or TMPDIR names.
    """
    folder = ray_folder(console)
    named = any(name in os.environ for name in (RAY_JOB_CONFIG_JSON_ENV_VAR, ray_constants.RAY_RUNTIME_ENV_HOOK))
    with (
        replaced(node, "Node", _SmallNode),
        replaced(_SmallNode, "runtime_envs", runtime_envs or named),
        replaced(utils, "get_dashboard_dependency_error", _no_dashboard),
        replaced(ray_constants, "RAY_ENABLE_UV_RUN_RUNTIME_ENV", False),
    ):
        ray.init(address="local", include_dashboard=False, _temp_dir=folder, **options)


def _without_agents(start: Callable[..., Any], *, runtime_envs: bool) -> Callable[..., Any]:
    """Wrap `services.start_ray_process`, so that a raylet gets placeholders for agents."""
    placeholder = subprocess.list2cmdline([sys.executable, "-I", "-S", "-c", _PLACEHOLDER])
    ports = dict.fromkeys(_DASHBOARD_PORTS, _NO_SERVICE) | ({} if runtime_envs else {_RUNTIME_ENV_PORT: _UNUSED_PORT})
    replaced_options = ("--dashboard_agent_command", *(() if runtime_envs else ("--runtime_env_agent_command",)))

    def start_without(command: list[str], *args: Any, **options: Any) -> Any:
        given = dict(part.removeprefix("--").split("=", 1) for part in command if part.startswith("--") and "=" in part)
        for name, port in ports.items():
            Path(given["session_dir"], get_port_filename(given["node_id"], name)).write_text(port)
        small = [
            f"{option}={placeholder}" if (option := part.partition("=")[0]) in replaced_options else part
            for part in command
        ]
        return start(small, *args, **options)

    return start_without


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
    """What Ray gets if it is installed without its dashboard."""
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
