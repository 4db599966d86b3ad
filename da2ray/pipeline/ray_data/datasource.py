"""The read stage as a Ray Data source: one read task a shard, one block a read task (invariant 1)."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, cast

import pyarrow as pa
import ray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from da2ray.pipeline.control.coordinator import Begin, Stopped
from da2ray.pipeline.stages.batches import READ
from da2ray.pipeline.stages.isolation import IsolatedAccess
from da2ray.pipeline.stages.reading import Arena, Reading
from da2ray.pipeline.stages.watchdog import WatchedAccess
from da2ray.plan.plan import Shard

ARENA = Arena()
"""This process's: a block is in shared memory when its task ends, and a process runs one read task at a time."""


class ShardDatasource(Datasource):
    """Shards of a plan as blocks of micro-batches."""

    def __init__(
        self, shards: Sequence[Shard], reading: Reading, timeout: float, coordinator: "ray.actor.ActorHandle"
    ) -> None:
        """`timeout`: seconds that decoding one image may take."""
        self._shards = shards
        self._reading = ray.put(reading)
        self._timeout = timeout
        self._coordinator = coordinator

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002 - one task a shard, whatever Ray suggests
        per_task_row_limit: int | None = None,  # noqa: ARG002
        data_context: Any = None,  # noqa: ARG002
    ) -> list[ReadTask]:
        metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [
            ReadTask(partial(_read, shard, self._reading, self._timeout, self._coordinator), metadata)
            for shard in self._shards
        ]


def _read(
    shard: Shard, reading: "ray.ObjectRef", timeout: float, coordinator: "ray.actor.ActorHandle"
) -> Iterator[pa.Table]:
    begin = cast(Begin, ray.get(coordinator.begin.remote(shard.number)))
    if begin is Begin.STOP:
        raise Stopped
    if begin is Begin.SKIP:
        yield READ.empty_table()
        return
    access = IsolatedAccess(timeout) if begin is Begin.ISOLATE else WatchedAccess(timeout)
    try:
        block = ray.get(reading).read(shard, ARENA, access)
    finally:
        access.close()
    yield block
