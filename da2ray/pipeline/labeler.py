"""The label stage: an actor that holds a teacher and keeps its device fed."""

import asyncio
import os
from collections.abc import AsyncIterator

import pyarrow as pa
import ray
import torch

from da2ray.pipeline.batches import host_batch, labelled_row
from da2ray.pipeline.cluster import torch_threads
from da2ray.pipeline.coordinator import Meter
from da2ray.pipeline.device import Device
from da2ray.teachers.base import LoadOptions, TeacherSpec

BLOCKS_IN_FLIGHT = 4
CONCURRENT_BLOCKS = 2
"""Blocks that wait at an actor, and blocks whose micro-batches it takes in at the same time: the second block's first
micro-batches are queued at the device while the first block's last ones run (ray-data.md: 1-4 always waiting)."""


class Labeler:
    """An async UDF for `map_batches(batch_size=1)`: one micro-batch in, its labels out, several in flight.

    Ray Data keeps the order of the rows and returns a block for each block, so a shard stays whole.
    """

    def __init__(
        self,
        spec: TeacherSpec,
        options: LoadOptions,
        bits: int,
        scaled: bool,
        actors: int,
        coordinator: "ray.actor.ActorHandle",
    ) -> None:
        torch.set_num_threads(torch_threads(actors))
        self._device = Device(spec.load(options), bits, scaled=scaled)
        self._meter = Meter(coordinator, f"{ray.get_runtime_context().get_actor_id()}-{os.getpid()}")

    async def __call__(self, row: pa.Table) -> AsyncIterator[pa.Table]:
        batch = host_batch(row)
        if batch is None:
            yield labelled_row(row, None)
            return
        self._meter.begin()
        labelled = await asyncio.wrap_future(self._device.submit(batch))
        self._meter.tell(self._device.busy_seconds)
        yield labelled_row(row, labelled)
