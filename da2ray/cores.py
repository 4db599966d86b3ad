"""How many CPUs there are to use."""

import os


def usable_cores() -> int:
    """CPUs that this process may run on; of the machine where the system does not say (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
