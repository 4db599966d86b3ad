"""The write stage as a Ray Data sink: one block is one shard."""

from collections.abc import Iterable

import ray
from ray.data.block import Block, BlockAccessor
from ray.data.datasource import Datasink

from da2ray.pipeline.stages.watchdog import WRITE_SECONDS, ends_process_after
from da2ray.pipeline.stages.writing import Writing


class ShardSink(Datasink[None]):
    """Writes and commits each block as a shard, and reports it to the coordinator."""

    def __init__(self, writing: Writing, coordinator: "ray.actor.ActorHandle") -> None:
        self._writing = writing
        self._coordinator = coordinator

    def write(self, blocks: Iterable[Block], ctx: object) -> None:  # noqa: ARG002 - Ray's signature
        for block in blocks:
            table = BlockAccessor.for_block(block).to_arrow()
            if not table.num_rows:  # a shard that was skipped after a stop request
                continue
            with ends_process_after(WRITE_SECONDS):
                written = self._writing.write(table)
            # Waited for: the run is over when the coordinator has heard of every shard.
            ray.get(self._coordinator.done.remote(written.shard, written.statuses, written.reasons, written.bytes_out))
