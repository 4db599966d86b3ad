"""End the driver with a message and exit code 75 if its cluster is gone.

Otherwise Ray's C++ core would end it without a message and with exit code 1, which means something else here: at the next request
to a raylet that is gone, after 15 s without a raylet, or after a minute without the GCS.
"""

import os
import socket
import threading
import time
from contextlib import suppress

import psutil
import ray
from rich.console import Console

from da2ray.errors import Exit

PROBE_SECONDS = 1.0
EMBEDDED_SECONDS = 3.0
"""Patience with an embedded Ray, whose daemons nobody starts again. Not needed if the driver can wait for them (`waitid`)."""
CLUSTER_SECONDS = {"raylet": 5.0, "GCS": 45.0}
"""Patience with a cluster, which may start its GCS again. Ray ends the driver after 60 s without GCS, or 15 s without raylet."""


DAEMONS = {"raylet": "raylet", "gcs_server": "GCS"}
"""The daemons of an embedded Ray by process name. They are children of the driver."""


class ClusterWatch:
    """Watches the GCS and this node's raylet until `close`. Ends this process if one of them is unreachable for a while."""

    def __init__(self, console: Console, *, embedded: bool) -> None:
        context = ray.get_runtime_context()
        (here,) = [node for node in ray.nodes() if node["NodeID"] == context.get_node_id()]
        host, _, port = context.gcs_address.rpartition(":")
        self._console = console
        self._addresses = {
            "raylet": (here["NodeManagerAddress"], here["NodeManagerPort"]),
            "GCS": (host.strip("[]"), int(port)),
        }
        self._patience = dict.fromkeys(self._addresses, EMBEDDED_SECONDS) if embedded else CLUSTER_SECONDS
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="cluster", daemon=True).start()
        daemons = [child for child in psutil.Process().children() if child.name() in DAEMONS] if embedded else []
        for daemon in daemons if hasattr(os, "waitid") else []:
            args = (daemon.pid, DAEMONS[daemon.name()])
            threading.Thread(target=self._wait_for, args=args, name="cluster", daemon=True).start()

    def close(self) -> None:
        """Stop watching. Call this before the cluster is shut down."""
        self._closed.set()

    def _watch(self) -> None:
        heard = dict.fromkeys(self._addresses, time.monotonic())
        while not self._closed.wait(PROBE_SECONDS):
            for part, address in self._addresses.items():
                if _answers(address):
                    heard[part] = time.monotonic()
                elif time.monotonic() - heard[part] > self._patience[part] and not self._closed.is_set():
                    self._end(part)

    def _wait_for(self, pid: int, part: str) -> None:
        """Wait for the end of a daemon, to notice it before Ray does. Ray still reaps the child."""
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        if not self._closed.is_set():
            self._end(part)

    def _end(self, part: str) -> None:
        """End the process without unwinding, which would wait for the cluster. A run may be ended at any moment.

        The message is written, not rendered: each millisecond counts against Ray's core.
        """
        with suppress(Exception):  # a message that cannot be printed must not keep the process alive
            self._console.show_cursor(True)
            self._console.file.write(f"Ray's {part} is gone: ended at once; run the same command again to go on\n")
            self._console.file.flush()
        os._exit(Exit.RESUMABLE)


def _answers(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, timeout=PROBE_SECONDS):
            return True
    except OSError:
        return False
