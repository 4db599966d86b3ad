"""Join or start Ray, and choose what depends on the cluster: device, precision, number of actors."""

import contextlib
import ctypes
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util.annotations import RayDeprecationWarning
from rich.console import Console

from da2ray.commands.pseudolabel import PseudolabelConfig
from da2ray.errors import UserError
from da2ray.pipeline.control.actors import ActorRange
from da2ray.pipeline.control.embedded import init_embedded

EMBEDDED_STORE_SHARE = 0.3
"""Share of memory for an embedded Ray's object store: Ray's own default, within what /dev/shm can hold."""
EMBEDDED_STORE_LARGEST = 8 << 30


WORKER_ENVIRONMENT = {
    # Workers allocate and free tens of megabytes all the time; huge pages make that three to five times cheaper.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    # A CPU teacher's OpenMP threads would spin while they wait for each other, on the cores that decode: 18 s of CPU instead
    # of 6 s (luminance, 400 images, 2 cores). A real network that has its cores to itself becomes 8 % slower.
    "OMP_WAIT_POLICY": "PASSIVE",
    # By default Ray ends a worker that idles for a second, and the next task pays for all its imports again.
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
}
"""The environment of an embedded Ray's processes. On a cluster, set it on the nodes (cluster/Dockerfile)."""


FATAL = 3
"""The value of `ray::RayLogLevel::FATAL`."""

GPU_FILES = ("nvidia*", "nvhost*", "nvmap", "dxg", "kfd")
"""Device files of the drivers that `torch.cuda` works with: NVIDIA's, Tegra's, WSL 2's and AMD's."""


def connect(config: PseudolabelConfig, console: Console) -> None:
    """Join the cluster that RAY_ADDRESS or --ray-address names, else start an embedded Ray.

    A bare `ray.init()` would join the cluster that a stale file in /tmp names, and hang.

    Raises:
        UserError: the cluster cannot be reached, or an embedded Ray has no folder for its files.
        ray.exceptions.GetTimeoutError: an embedded Ray does not start in time.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's C++ core prints a line for each actor pool (ray#53727). The session's log folder has it all the same.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    _hush_core()
    # Up to Ray 2.63, `ray_remote_args` is the only way to set the retries of a task.
    warnings.filterwarnings("ignore", message=".*ray_remote_args", category=RayDeprecationWarning)
    address = cluster_address(config)
    for name, value in WORKER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(
                f"no Ray cluster at {address}: {reason}\n"
                "set RAY_ADDRESS or --ray-address to a running cluster, or neither for an embedded Ray"
            ) from None
    else:
        try:
            init_embedded(console, object_store_memory=_embedded_store(), **quiet)
        except Exception as error:
            # Ray raises a plain Exception after 30 seconds, which is not configurable.
            if "timed out during startup" not in str(error):
                raise
            raise ray.exceptions.GetTimeoutError(
                "an embedded Ray did not start within 30 seconds: this machine is too busy"
            ) from error


def _hush_core() -> None:
    """Set the C++ core's log level before the core reads it from RAY_BACKEND_LOG_LEVEL and prints a line that says so.

    The line is an INFO line, and until then the level is INFO. If a build of Ray keeps its level elsewhere, the line appears.
    """
    with contextlib.suppress(ValueError):
        level = ctypes.c_int.in_dll(ctypes.PyDLL(ray._raylet.__file__), "_ZN3ray6RayLog19severity_threshold_E")
        level.value = FATAL


def cluster_address(config: PseudolabelConfig) -> str | None:
    """The cluster to join; None for an embedded Ray."""
    return config.ray_address or os.environ.get("RAY_ADDRESS") or None


def gpu_count(config: PseudolabelConfig, console: Console) -> int:
    """The number of GPUs that a run can use: the cluster's if it joins one, else this machine's, without starting Ray."""
    if cluster_address(config):
        connect(config, console)
        return int(ray.cluster_resources().get("GPU", 0))
    return _local_gpus()


def _local_gpus() -> int:
    """The number of GPUs that torch sees. Importing torch takes 1.5 s of CPU, so it is asked only if a GPU has a device file."""
    if sys.platform == "linux" and not any(any(Path("/dev").glob(pattern)) for pattern in GPU_FILES):
        return 0
    import torch  # noqa: PLC0415 - see above

    return torch.cuda.device_count()


def _embedded_store() -> int:
    memory = psutil.virtual_memory()
    shared = psutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else memory.total  # noqa: PTH112, S108
    return int(
        max(
            128 << 20,
            min(memory.total * EMBEDDED_STORE_SHARE, memory.available * 0.5, shared * 0.9, EMBEDDED_STORE_LARGEST),
        )
    )


def resolve_device(config: PseudolabelConfig, gpus: int, console: Console) -> tuple[str, str]:
    """(device, precision) of a run, given the number of GPUs that exist now.

    Raises:
        UserError: the user asked for cuda, and this machine has no GPU. A cluster may start GPU nodes on demand, so it is not
            refused.
    """
    if config.device == "cuda" and not gpus and not cluster_address(config):
        raise UserError(
            "--device cuda: this machine has no GPU; use --device cpu, or --ray-address of a cluster with GPUs"
        )
    device = config.device if config.device != "auto" else ("cuda" if gpus else "cpu")
    if config.device == "auto" and not gpus and cluster_address(config):
        console.print(
            "the cluster has no GPU now, so the run labels on CPUs; with --device cuda it waits for GPU nodes"
        )
    return device, config.precision or ("bf16" if device == "cuda" else "fp32")


def actor_range(config: PseudolabelConfig, device: str) -> ActorRange:
    """The fewest and most teacher actors: `--actors`, else up to one for each GPU of the cluster. Call it after `connect`."""
    if config.actors:
        return config.actors
    return ActorRange(1, max(1, int(ray.cluster_resources().get("GPU", 0))) if device == "cuda" else 1)
