"""Measure each stage alone, in this process, on the same shards."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from da2ray.labels.shards.base import ShardFormat
from da2ray.pipeline.stages.batches import host_batch, labelled_row
from da2ray.pipeline.stages.device import Device
from da2ray.pipeline.stages.reading import Reading
from da2ray.pipeline.stages.writing import Writing
from da2ray.plan.plan import Shard
from da2ray.storage import Store
from da2ray.teachers.base import Kind, Teacher


@dataclass(frozen=True, slots=True)
class Measured:
    """A row of the table: images, wall seconds, CPU seconds of all threads and processes, and the number of usable cores."""

    name: str
    images: int
    wall: float
    cpu: float
    cores: int

    @property
    def per_second(self) -> float:
        return self.images / self.wall

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds for each image."""
        return 1000 * self.cpu / self.images

    @property
    def wall_ms(self) -> float:
        """Wall milliseconds for each image, times all cores, including idle ones."""
        return 1000 * self.wall * self.cores / self.images


def decode_only(reading: Reading, shards: Sequence[Shard], store: Store) -> tuple[Measured, list[pa.Table]]:
    """Measure GET, decoding and grouping, one shard after another. Also return the blocks for the next stage.

    `store`: the dataset with the shards' plan.
    """
    began, cpu = time.perf_counter(), time.process_time()
    blocks = [reading.read(shard.number, shard.spec(store)) for shard in shards]
    images = sum(block["planned"][0].as_py() for block in blocks)
    return Measured("decode only", images, time.perf_counter() - began, time.process_time() - cpu, 1), blocks


def teacher_only(
    teacher: Teacher, kind: Kind, bits: int, blocks: Sequence[pa.Table], *, scaled: bool, workers: int
) -> tuple[Measured, list[pa.Table]]:
    """Measure preprocessing, teacher, scores and quantising. All micro-batches wait at the device, so it always has work."""
    device = Device(teacher, bits, kind=kind, scaled=scaled, workers=workers)
    rows = [block.slice(index, 1) for block in blocks for index in range(block.num_rows)]
    batches = [host_batch(row) for row in rows]
    first = next(batch for batch in batches if batch is not None)
    device.submit(first).result()  # warms up kernels and caches
    began, cpu = time.perf_counter(), time.process_time()
    futures = [None if batch is None else device.submit(batch) for batch in batches]
    results = [None if future is None else future.result() for future in futures]
    wall, used = time.perf_counter() - began, time.process_time() - cpu
    device.close()
    images = sum(len(batch) for batch in batches if batch is not None)
    labelled = iter(labelled_row(row, result) for row, result in zip(rows, results, strict=True))
    return Measured("teacher only", images, wall, used, 1), [
        pa.concat_tables([next(labelled) for _ in range(block.num_rows)]) for block in blocks
    ]


def write_only(blocks: Sequence[pa.Table], store: Store, *, kind: str, format: ShardFormat) -> Measured:  # noqa: A002
    """Measure encoding, PUT and commit, one shard after another."""
    began, cpu, images = time.perf_counter(), time.process_time(), 0
    writing = Writing(store, "benchmark", format, kind, "benchmark", mask_bits=2, camera=None)
    for block in blocks:
        images += sum(writing.write(block).statuses.values())
    return Measured("encode + write only", images, time.perf_counter() - began, time.process_time() - cpu, 1)
