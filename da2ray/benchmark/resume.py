"""Measure how fast a run over a large, mostly committed plan finds the remaining shards."""

import resource
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
from rich.console import Console

from da2ray.labels.commits import commit_key
from da2ray.pipeline.control.progress import work_left
from da2ray.plan.plan import make_plan, open_plan
from da2ray.sources.base import Member, Sample
from da2ray.sources.members import MEMBERS, MemberSource
from da2ray.storage import open_store

SHARD_SIZE = 256
COMMITTED_SHARE = 0.75
FINGERPRINT = "benchmark"


class MadeUpSource(MemberSource):
    """A source that lists names like a bucket, without images behind them."""

    kind = "prefix"
    looks_for = "names"
    url = root = "s3://made-up/photos"

    def __init__(self, samples: int) -> None:
        self._samples = samples

    def describe(self) -> dict[str, str]:
        return {"kind": self.kind, "url": self.url, "samples": str(self._samples)}

    def members(self, limit: int | None = None) -> Iterator[pa.RecordBatch]:
        count = min(self._samples, limit or self._samples)
        for start in range(0, count, 10_000):
            numbers = range(start, min(start + 10_000, count))
            keys = [f"{number // 1000:06d}/{number:010d}.jpg" for number in numbers]
            uris = [f"{self.root}/{key}" for key in keys]
            sizes = [100_000 + number % 1000 for number in numbers]
            etags = [f"{number * 2654435761 % 2**64:016x}" for number in numbers]
            yield pa.record_batch([keys, uris, sizes, etags, pa.nulls(len(numbers), pa.float32())], schema=MEMBERS)

    def fetch(self, members: Iterable[Member], concurrency: int) -> Iterator[Sample]:
        raise NotImplementedError("a made-up source has no bytes")  # planning never reads any


def measure_resume(shards: int, work: Path, console: Console) -> int:
    """Plan `shards` shards, commit three quarters of them (as empty files), and time the first steps of a resume."""
    shutil.rmtree(work, ignore_errors=True)
    store = open_store(str(work))
    began = time.perf_counter()
    made = make_plan(
        MadeUpSource(shards * SHARD_SIZE), store, shard_size=SHARD_SIZE, limit=None, fingerprint=FINGERPRINT
    )
    console.print(f"planned {shards:,} shards of {SHARD_SIZE} samples in {time.perf_counter() - began:.1f} s")
    committed = int(shards * COMMITTED_SHARE)
    (work / commit_key(made.id, 0)).parent.mkdir(parents=True)
    for number in range(committed):
        (work / commit_key(made.id, number)).touch()

    began = time.perf_counter()
    plan = open_plan(store, made.id)
    if plan is None:
        raise RuntimeError(f"plan {made.id} is gone")
    left = work_left(plan, store)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    console.print(
        f"{left.shards - left.shards_before:,} of {shards:,} shards are left, found in {seconds:.1f} s; "
        f"peak memory of planning and resuming {peak:.0f} MB"
    )
    return 0
