"""Measure how fast the driver plans a long listing, and how much memory it takes."""

import resource
import shutil
import time
from pathlib import Path

from rich.console import Console

from da2ray.benchmark.resume import FINGERPRINT, SHARD_SIZE, MadeUpSource
from da2ray.console import Ticker
from da2ray.plan.plan import make_plan
from da2ray.storage import open_store


def measure_planning(keys: int, work: Path, console: Console) -> int:
    """Plan a listing of made-up keys into `work`. The listing takes next to nothing, so that planning shows."""
    shutil.rmtree(work, ignore_errors=True)
    before = _peak_mb()
    ticker = Ticker(console)
    began, cpu = time.perf_counter(), time.process_time()
    plan = make_plan(
        MadeUpSource(keys),
        open_store(str(work)),
        shard_size=SHARD_SIZE,
        limit=None,
        fingerprint=FINGERPRINT,
        on_progress=lambda samples: ticker.count("planning", samples, "key"),
    )
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    size = (work / plan.key).stat().st_size
    console.print(
        f"planned {plan.info.samples:,} keys as {plan.info.shards:,} shards in {seconds:.1f} s: "
        f"{keys / seconds:,.0f} keys a second, {cpu_seconds / keys * 1e6:.1f} microseconds of CPU a key"
    )
    console.print(
        f"peak memory {_peak_mb():,.0f} MB, {before:,.0f} MB of it before planning; the plan has {size / 1e6:,.0f} MB"
    )
    return 0


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
