"""Run the jobs in this process without Ray, kill them at a write to their store, and compare datasets by their images' bytes."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import da2ray
from da2ray.pipeline import run
from da2ray.pipeline.control.coordinator import Counts
from da2ray.pipeline.prepare import Job
from da2ray.pipeline.stages.batches import host_batch, labelled_row
from da2ray.pipeline.stages.device import Device, start_device
from da2ray.plan.plan import Plan
from da2ray.storage.local import LocalStore

WRITES = ("put", "put_file", "create", "create_file", "delete")


class Killed(BaseException):
    """In place of a signal that ends the process."""


class Here:
    """Labels in this process what a run would label on Ray.

    Attributes:
        asked: how many images the teacher was asked for.
        shards: (plan, shard) of each shard that was labelled.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.shards: list[tuple[str, int]] = []
        self._device: Device | None = None

    def label_all(self, job: Job, plan: Plan, _: object, __: Console) -> Counts:
        import pyarrow as pa

        if self._device is None:
            self._device = start_device(job.labelling(1))
        for shard in plan.shards(plan.remaining(job.store, gone=False)):
            block = job.reading.read(shard.number, shard.spec(job.store))
            rows = []
            for row in (block.slice(index, 1) for index in range(block.num_rows)):
                batch = host_batch(row)
                self.asked += 0 if batch is None else len(batch)
                rows.append(labelled_row(row, batch and self._device.submit(batch).result()))
            job.writing.write(pa.concat_tables(rows))
            self.shards.append((plan.id, shard.number))
        return Counts()


def install(patch: pytest.MonkeyPatch) -> Here:
    """Let runs in this process label here."""
    here = Here()
    patch.setattr(run, "label_all", here.label_all)
    return here


@contextmanager
def killed_at(write: int, *, after: bool) -> Iterator[None]:
    """Kill this "process" at its write of this number, from 0: before it, or after it before its answer."""
    with pytest.MonkeyPatch.context() as patch:
        left = [write]

        def killing(name: str) -> None:
            method = getattr(LocalStore, name)

            def call(store: LocalStore, *args: object) -> object:
                left[0] -= 1
                if left[0] < 0 and not after:
                    raise Killed
                answer = method(store, *args)
                if left[0] < 0:
                    raise Killed
                return answer

            patch.setattr(LocalStore, name, call)

        for name in WRITES:
            killing(name)
        yield


def picture(number: int) -> bytes:
    """A small image that no other number has, as PNG."""
    y, x = np.mgrid[:40, :56]
    pixels = np.stack([(x * 3 + number * 37) % 256, (y * 5 + number * 11) % 256, (x + y + number) % 256], axis=-1)
    sink = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(sink, "PNG", compress_level=1)
    return sink.getvalue()


Content = dict[str, tuple[str, str | None, str | None]]
"""Key -> hash of the image file, reason, and hash of the depth."""


def content_of(url: str | Path) -> Content:
    """What a dataset says of each image, wherever it lies; the same whoever labelled it, and when."""
    labels = da2ray.open_labels(url)
    hashes = labels.index["sha256"].to_pylist()
    found = {}
    for label, sha256 in zip(labels, hashes, strict=True):
        depth = None if label.depth is None else hashlib.sha256(label.depth.tobytes()).hexdigest()
        found[label.key] = (sha256.hex(), label.reason, depth)
    assert len(found) == len(labels)
    return found
