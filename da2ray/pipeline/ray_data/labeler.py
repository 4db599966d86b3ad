"""The label stage: an actor that holds a teacher and keeps its device fed."""

import asyncio
import contextlib
import faulthandler
import os
import threading
import time
import traceback
from collections.abc import AsyncIterator

import pyarrow as pa
import ray

from da2ray.errors import Reason
from da2ray.pipeline.control.coordinator import STRIKES, Alone, Meter
from da2ray.pipeline.ray_data.gate import Gate
from da2ray.pipeline.stages.batches import HostBatch, LabelledBatch, host_batch, is_encoded, labelled_row, sample_rows
from da2ray.pipeline.stages.decoding import LateDecoder
from da2ray.pipeline.stages.labelling import Labelling
from da2ray.pipeline.stages.watchdog import end_process

BLOCKS_IN_FLIGHT = 4
CONCURRENT_BLOCKS = 2
"""At most 4 blocks wait at an actor (so that 1 to 4 always wait). It takes the micro-batches of 2 blocks at the same
time, so that the second block's first micro-batches are queued at the device while the first block's last ones run."""
COMPILE_SECONDS = 900.0
"""Added to the deadline with `--compile`: compiling for the first micro-batch of a size takes minutes for a large network."""
WATCH_SECONDS = 1.0
LOCK_SECONDS = 60.0
"""Added to the deadline that holds without Python's lock: importing and compiling may keep the lock for some seconds."""


class Labeler:
    """An async UDF for `map_batches(batch_size=1)`: it takes a micro-batch and yields its labels, with several in flight.

    Ray Data keeps the order of the rows and returns a block for each block, so a shard stays whole.
    """

    def __init__(self, labelling: Labelling, coordinator: "ray.actor.ActorHandle") -> None:
        from da2ray.pipeline.stages.device import start_device  # noqa: PLC0415 - torch, which the driver does without

        self._with_focals, self._checker_size = labelling.with_focals, labelling.decoding.checker_size
        self._device = start_device(labelling)
        self._late = LateDecoder(labelling.decoding, labelling.sample_timeout)
        self._one_encoded = asyncio.Lock()
        self._process = f"{ray.get_runtime_context().get_actor_id()}-{os.getpid()}"
        self._coordinator = coordinator
        self._meter = Meter(coordinator, self._process)
        self._gate = Gate()
        self._died_before: dict[int, bool] = {}
        self._alone: Alone | None = None
        threading.Thread(
            target=self._watch,
            args=(labelling.sample_timeout, COMPILE_SECONDS if labelling.load.compile else 0),
            name="watch",
            daemon=True,
        ).start()

    async def __call__(self, row: pa.Table) -> AsyncIterator[pa.Table]:
        if is_encoded(row):
            # The image's pixels are not in a block, so this process holds the pixels of one such image at a time.
            async with self._one_encoded:
                labelled = await self._labelled(await asyncio.to_thread(self._late.decode, row))
        else:
            labelled = await self._labelled(row)
        yield labelled

    async def _labelled(self, row: pa.Table) -> pa.Table:
        """The `LABELLED` row for a `READ` row whose images are decoded."""
        batch = host_batch(row, with_focals=self._with_focals, checker_size=self._checker_size)
        if batch is None:
            return labelled_row(row, None)
        self._meter.begin()
        shard, rows = sample_rows(row)
        if await self._has_died(shard):
            async with self._gate.alone():
                labelled = await self._label_alone(shard, rows, batch)
        else:
            async with self._gate.together():
                labelled = await self._label(batch)
        self._meter.tell(self._device.busy_seconds)
        return labelled_row(row, labelled)

    async def _label(self, batch: HostBatch) -> LabelledBatch:
        """Label a micro-batch. If that breaks the device, end the process.

        An exception would end the run. If the process dies, Ray retries its blocks in a new process, whose device is fresh.
        """
        try:
            return await asyncio.wrap_future(self._device.submit(batch))
        except Exception:
            if self._device.broken:
                traceback.print_exc()  # nothing else tells why the process ends
                end_process()
            raise

    async def _has_died(self, shard: int) -> bool:
        """Whether another process took up this shard before. Asks the coordinator once for each shard."""
        if shard not in self._died_before:
            died = await self._coordinator.teaching.remote(shard, self._process)
            while len(self._died_before) >= 2 * BLOCKS_IN_FLIGHT:
                self._died_before.pop(next(iter(self._died_before)))
            self._died_before[shard] = died
        return self._died_before[shard]

    async def _label_alone(self, shard: int, rows: tuple[int, ...], batch: HostBatch) -> LabelledBatch:
        """Label a micro-batch while nothing else is at the device.

        It goes whole at first, as in an undisturbed run, so that its labels are the same to the last bit. If a process died while
        it labelled this micro-batch alone, it goes image by image.
        """
        strikes, reason = await self._coordinator.alone.remote(shard, rows)
        if strikes >= STRIKES and len(batch) == 1:
            what = "labelling it took too long" if reason is Reason.TIMEOUT else "the teacher's process died of it"
            return LabelledBatch.failed(batch, reason, what)
        if strikes and len(batch) > 1:
            singles = zip(rows, batch.parts(1), strict=True)
            labelled = LabelledBatch.joined([await self._label_alone(shard, (row,), image) for row, image in singles])
        else:
            self._alone = (shard, rows)
            labelled = await self._label(batch)
            self._alone = None
        await self._coordinator.survived.remote(shard, rows)
        return labelled

    def _watch(self, sample_timeout: float, grace: float) -> None:
        """End the process if the device is stuck: nothing else ends a call that does not return.

        A micro-batch may take `sample_timeout` seconds for each image, plus `grace`.
        """
        while True:
            self._meter.tell(self._device.busy_seconds)
            calls = self._device.calls()
            now, longest = time.monotonic(), max((images for _, images in calls), default=1)
            if any(now - began > grace + sample_timeout * images for began, images in calls):
                if self._alone:
                    with contextlib.suppress(Exception):  # if the report is lost, the end counts as a crash
                        ray.get(self._coordinator.late.remote(*self._alone), timeout=30)
                end_process()
            # If a call keeps Python's lock, this thread does not run either; this timer does.
            faulthandler.dump_traceback_later(grace + sample_timeout * longest + LOCK_SECONDS, exit=True)
            time.sleep(min(WATCH_SECONDS, sample_timeout / 4))
