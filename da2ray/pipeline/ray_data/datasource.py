"""The read stage as a Ray Data source: one read task a shard, one block a read task (invariant 1)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import pyarrow as pa
import ray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from da2ray.pipeline.control.coordinator import Begin, Stopped
from da2ray.pipeline.stages.arena import Arena
from da2ray.pipeline.stages.batches import READ
from da2ray.pipeline.stages.evidence import read_with_evidence
from da2ray.pipeline.stages.isolation import IsolatedAccess
from da2ray.pipeline.stages.reading import Reading
from da2ray.pipeline.stages.watchdog import FETCH_SECONDS, WatchedAccess, ends_process_after
from da2ray.plan.plan import Shard
from da2ray.sources.outage import EVIDENCE
from da2ray.storage import Store

ARENA = Arena()
"""This process's arena: a block is in shared memory when its task ends, and a process runs one read task at a time."""


@dataclass(frozen=True, slots=True)
class ReadTasks:
    """What the read tasks of an execution share. It is in the object store once; a task travels as some numbers.

    Attributes:
        store: the dataset, whose plan holds the shards' specifications.
        timeout: seconds that decoding one image may take.
        witnesses: some shards, spread over those to label (`read_with_evidence`).
    """

    reading: Reading
    store: Store
    timeout: float
    coordinator: "ray.actor.ActorHandle"
    witnesses: Sequence[Shard]

    def read(self, shard: Shard) -> Iterator[pa.Table]:
        """The shard's block, if the coordinator lets it begin."""
        begin = cast(Begin, ray.get(self.coordinator.begin.remote(shard.number)))
        if begin is Begin.STOP:
            raise Stopped
        if begin is Begin.SKIP:
            yield READ.empty_table()
            return
        with ends_process_after(FETCH_SECONDS):
            spec = shard.spec(self.store)
        access = IsolatedAccess(self.timeout) if begin is Begin.ISOLATE else WatchedAccess(self.timeout)
        EVIDENCE.on_first = self.coordinator.readable.remote
        try:
            block = read_with_evidence(
                lambda: self.reading.read(shard.number, spec, ARENA, access),
                self.reading.source,
                lambda: [each.spec(self.store) for each in self.witnesses if each != shard],
                lambda scheme: bool(ray.get(self.coordinator.was_readable.remote(scheme))),
            )
        finally:
            access.close()
        yield block


class ShardDatasource(Datasource):
    """Shards of a plan as blocks of micro-batches."""

    def __init__(self, shards: Sequence[Shard], tasks: ReadTasks) -> None:
        self._shards = shards
        self._tasks = ray.put(tasks)

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002 - one task a shard, whatever Ray suggests
        per_task_row_limit: int | None = None,  # noqa: ARG002
        data_context: Any = None,  # noqa: ARG002
    ) -> list[ReadTask]:
        metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(partial(_read, shard, self._tasks), metadata) for shard in self._shards]


def _read(shard: Shard, tasks: "ray.ObjectRef") -> Iterator[pa.Table]:
    yield from cast(ReadTasks, ray.get(tasks)).read(shard)
