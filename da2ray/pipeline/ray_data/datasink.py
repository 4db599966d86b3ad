"""The write stage as a Ray Data sink: one block is one shard; data first, commit last (invariant 2)."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow.compute as pc
import ray
from ray.data.block import Block, BlockAccessor
from ray.data.datasource import Datasink

from da2ray.labels.commits import commit_shard
from da2ray.labels.schema import ShardFormat
from da2ray.labels.shards.base import build_shard
from da2ray.pipeline.stages.watchdog import WRITE_SECONDS, ends_process_after
from da2ray.pipeline.stages.writing import assemble, far_of, masks_of
from da2ray.storage import Store


@dataclass(frozen=True)
class Writing:
    """What the write stage needs besides a block; `camera` as in `assemble`. Picklable."""

    store: Store
    plan: str
    format: ShardFormat
    kind: str
    fingerprint: str
    mask_bits: int
    camera: str | None


class ShardSink(Datasink[None]):
    """Writes and commits each block as a shard, and tells the coordinator."""

    def __init__(self, writing: Writing, coordinator: "ray.actor.ActorHandle") -> None:
        self._writing = writing
        self._coordinator = coordinator

    def write(self, blocks: Iterable[Block], ctx: object) -> None:  # noqa: ARG002 - Ray's signature
        to = self._writing
        for block in blocks:
            table = BlockAccessor.for_block(block).to_arrow()
            if not table.num_rows:
                continue
            shard = table["shard"][0].as_py()
            with ends_process_after(WRITE_SECONDS):
                rows, depths = assemble(table, plan=to.plan, kind=to.kind, fingerprint=to.fingerprint, camera=to.camera)
                built = build_shard(rows, depths, to.format, masks_of(table, to.mask_bits), far_of(table))
                commit_shard(to.store, to.plan, shard, built, to.fingerprint)
            statuses = Counter(built.rows["status"].to_pylist())
            reasons = Counter(pc.drop_null(built.rows["reason"]).to_pylist())
            # Waited for: the run is over when the coordinator has heard of every shard.
            ray.get(self._coordinator.done.remote(shard, dict(statuses), dict(reasons), len(built.data)))
