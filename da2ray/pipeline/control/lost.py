"""A driver whose cluster is gone ends with a word and exit code 75. Ray's C++ would end it with exit code 1, which has another
meaning here, and without a word: on its next request to a raylet that is gone, or after 15 s without one or a minute without GCS.
"""

import os
import socket
import sys
import threading
import time
from contextlib import suppress

import psutil
import ray
from rich.console import Console

from da2ray.errors import Exit

PROBE_SECONDS = 1.0
EMBEDDED_SECONDS = 3.0
"""Nobody starts an embedded Ray's daemons again. Where they can be waited for, this is not needed."""
CLUSTER_SECONDS = {"raylet": 5.0, "GCS": 45.0}
"""A cluster may start its GCS again, and Ray ends the driver after 60 s without it; after 15 s without its raylet."""


DAEMONS = {"raylet": "raylet", "gcs_server": "GCS"}
"""Of an embedded Ray, children of the driver, by the names of their processes."""


class ClusterWatch:
    """Until `close`, ends this process, at once, when the GCS or this node's raylet has not been reachable for a while."""

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
        """To be called before the cluster is shut down."""
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
        """At once, so as to be faster than Ray; leaves it to Ray to reap the child."""
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        if not self._closed.is_set():
            self._end(part)

    def _end(self, part: str) -> None:
        """Without unwinding, which would wait for the cluster: a run can be resumed at any moment, its leases' holder is dead."""
        with suppress(Exception):  # what is said must not keep it
            self._console.show_cursor(True)
            self._console.print(f"Ray's {part} is gone: ended at once; run the same command again to go on")
            sys.stdout.flush()
        os._exit(Exit.RESUMABLE)


def _answers(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, timeout=PROBE_SECONDS):
            return True
    except OSError:
        return False
