"""One thread that feeds one device, so that it never waits between calls.

Callers submit micro-batches and get futures. On CUDA a second thread copies the next micro-batches into pinned memory and on to
the device on a stream of its own, and the device thread launches a micro-batch before it waits for the one before it: the
device always has work queued. On CPU there is nothing to overlap and the thread runs one call after another.
"""

import contextlib
import queue
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from da2ray.labels.quantise import quantise
from da2ray.labels.schema import SCORES, Reason
from da2ray.pipeline.batches import HostBatch, LabelledBatch
from da2ray.teachers.base import PixelBatch, Teacher

STAGED = 2
"""Micro-batches on the device ahead of the one that runs: one is being copied while one is ready."""


@dataclass(slots=True)
class _Work:
    """A micro-batch on its way through the device."""

    batch: HostBatch
    future: "Future[LabelledBatch]"
    pixels: torch.Tensor | None = None
    copied: Any = None  # torch.cuda.Event: the pixels are on the device
    outputs: tuple[torch.Tensor, ...] = ()
    started: Any = None  # torch.cuda.Event or seconds
    ended: Any = None


class Device:
    """A teacher behind a queue.

    Attributes:
        busy_seconds: time that the device spent on micro-batches (CUDA events; wall time on CPU).
        images: images that went through.
    """

    def __init__(self, teacher: Teacher, bits: int, *, scaled: bool) -> None:
        self.busy_seconds = 0.0
        self.images = 0
        self._teacher = teacher
        self._bits = bits
        self._scaled = scaled
        self._cuda = teacher.device.type == "cuda"
        self._submitted: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._staged: queue.Queue[_Work | None] = queue.Queue(STAGED)
        self._fatal: BaseException | None = None
        self._threads = [threading.Thread(target=self._guard, args=(self._run,), name="device", daemon=True)]
        if self._cuda:
            self._copies = torch.cuda.Stream(teacher.device)
            self._threads.append(threading.Thread(target=self._guard, args=(self._stage,), name="copies", daemon=True))
        for thread in self._threads:
            thread.start()

    def submit(self, batch: HostBatch) -> "Future[LabelledBatch]":
        """Queue a micro-batch.

        Returns:
            A future of its labels. It raises where the device itself is broken; an image that the teacher cannot label is an
            entry of `errors` instead.
        """
        future: Future[LabelledBatch] = Future()
        self._submitted.put(_Work(batch, future))
        if self._fatal is not None:  # the threads are gone, or will not look at the queue again
            self._refuse_queued()
        return future

    def close(self) -> None:
        """Finish what is queued and end the threads."""
        self._submitted.put(None)
        for thread in self._threads:
            thread.join()

    def _guard(self, loop: Any) -> None:
        """Run a thread's loop; where it dies, everything queued and everything submitted later says why."""
        try:
            loop()
        except BaseException as error:  # noqa: BLE001 - it is handed to every waiting caller
            self._fatal = error
            self._refuse_queued()

    def _refuse_queued(self) -> None:
        for waiting in (self._submitted, self._staged):
            with contextlib.suppress(queue.Empty):
                while True:
                    work = waiting.get_nowait()
                    if work is not None:
                        work.future.set_exception(self._fatal)

    def _stage(self) -> None:
        while (work := self._submitted.get()) is not None:
            try:
                self._copy(work)
            except BaseException as error:
                work.future.set_exception(error)
                raise
            self._staged.put(work)
            if self._fatal is not None:  # the device thread died while this one waited for room
                self._refuse_queued()
        self._staged.put(None)

    def _copy(self, work: _Work) -> None:
        pinned = torch.empty(work.batch.pixels.size, dtype=torch.uint8, pin_memory=True)
        np.copyto(pinned.numpy(), work.batch.pixels)
        with torch.cuda.stream(self._copies):
            work.pixels = pinned.to(self._teacher.device, non_blocking=True)
            work.copied = torch.cuda.Event()
            work.copied.record(self._copies)

    def _run(self) -> None:
        incoming: Any = self._staged if self._cuda else self._submitted
        launched: deque[_Work] = deque()
        try:
            with torch.inference_mode():
                while True:
                    try:
                        work = incoming.get(block=not launched)
                    except queue.Empty:
                        self._finish_first(launched)
                        continue
                    if work is None:
                        break
                    launched.append(work)
                    self._launch(work)
                    # One micro-batch stays queued behind the running one on CUDA; on CPU the call has already ended.
                    while len(launched) > (1 if self._cuda else 0):
                        self._finish_first(launched)
                while launched:
                    self._finish_first(launched)
        except BaseException as error:
            for work in launched:
                if not work.future.done():
                    work.future.set_exception(error)
            raise

    def _finish_first(self, launched: deque[_Work]) -> None:
        self._finish(launched[0])  # CUDA reports a launch's errors here: until it is done the work stays in sight
        launched.popleft()

    def _launch(self, work: _Work) -> None:
        if work.pixels is None:
            # Read-only shared memory: nothing writes to it, so the warning that torch gives does not apply.
            work.pixels = torch.frombuffer(work.batch.pixels.data, dtype=torch.uint8)
        if self._cuda:
            stream = torch.cuda.current_stream(self._teacher.device)
            stream.wait_event(work.copied)
            work.pixels.record_stream(stream)
            work.started, work.ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            work.started.record(stream)
        else:
            work.started = time.perf_counter()
        trouble: Exception | None = None
        try:
            outputs = self._label(PixelBatch(work.pixels, work.batch.shapes, work.batch.size, self._scaled))
        except Exception as error:  # noqa: BLE001 - one image's trouble must not end the job
            trouble = error
        if trouble is not None:
            # Outside of `except` and without its traceback, whose frames hold the failed call's tensors on the device.
            trouble.__traceback__ = None
            self._refuse_broken_device(trouble)
            work.future.set_result(self._isolate(work, trouble))
            return
        if self._cuda:
            work.outputs = tuple(torch.empty_like(part, device="cpu", pin_memory=True) for part in outputs)
            for host, part in zip(work.outputs, outputs, strict=True):
                host.copy_(part, non_blocking=True)
            work.ended.record(torch.cuda.current_stream(self._teacher.device))
        else:
            work.outputs, work.ended = outputs, time.perf_counter()

    def _label(self, batch: PixelBatch) -> tuple[torch.Tensor, ...]:
        """Depth -> (q as int16 bits, scale, offset, scores, finite), all on the device and without waiting for it."""
        depth = self._teacher.predict(batch).depth
        flat = depth.flatten(1)
        low, high = flat.amin(1), flat.amax(1)
        # min and max carry a NaN or an infinity of any pixel.
        finite = torch.isfinite(low) & torch.isfinite(high)
        depth = torch.where(finite[:, None, None], depth, 0) if self._cuda else _blank(depth, finite)
        scores = torch.stack([low, high, flat.mean(1), (flat == 0).float().mean(1)], dim=1)
        quantised = quantise(depth, self._bits)
        return quantised.q, quantised.scale, quantised.offset, scores, finite

    def _finish(self, work: _Work) -> None:
        if work.future.done():
            return
        if self._cuda:
            work.ended.synchronize()
            self.busy_seconds += work.started.elapsed_time(work.ended) / 1000
        else:
            self.busy_seconds += work.ended - work.started
        self.images += len(work.batch)
        q, scale, offset, scores, finite = (part.numpy() for part in work.outputs)
        errors = [
            None if fine else (Reason.NON_FINITE.value, "the depth map has NaN or infinite values") for fine in finite
        ]
        work.future.set_result(LabelledBatch(q.view(np.uint16), scale, offset, scores, errors))

    def _isolate(self, work: _Work, error: Exception) -> LabelledBatch:
        """Label a micro-batch that raised image by image, so that only the guilty ones fail."""
        if len(work.batch) == 1:
            height, width = work.batch.size
            one, message = (
                np.zeros(1, dtype=np.float32),
                f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
            )
            return LabelledBatch(
                np.zeros((1, height, width), dtype=np.uint16),
                one,
                one,
                np.zeros((1, len(SCORES)), dtype=np.float32),
                [(Reason.TEACHER_ERROR.value, message)],
            )
        assert work.pixels is not None  # noqa: S101 - set by _launch
        parts = []
        for index, pixels in enumerate(PixelBatch(work.pixels, work.batch.shapes, work.batch.size).images()):
            single = _Work(work.batch.image(index), Future(), pixels.reshape(-1), work.copied)
            self._launch(single)
            self._finish(single)
            parts.append(single.future.result())
        if all(error is not None for part in parts for error in part.errors):
            raise error  # not an image, but the teacher or its machine: no row may say otherwise
        return LabelledBatch(
            depths=np.concatenate([part.depths for part in parts]),
            scales=np.concatenate([part.scales for part in parts]),
            offsets=np.concatenate([part.offsets for part in parts]),
            scores=np.concatenate([part.scores for part in parts]),
            errors=[error for part in parts for error in part.errors],
        )

    def _refuse_broken_device(self, error: Exception) -> None:
        """A CUDA context that a fault has poisoned fails every later call: no image is to blame, the actor must die."""
        if self._cuda:
            torch.cuda.empty_cache()
            try:
                torch.zeros(1, device=self._teacher.device).item()
            except Exception as broken:
                raise broken from error


def _blank(depth: torch.Tensor, finite: torch.Tensor) -> torch.Tensor:
    """Zeros in place of the maps that are not finite; on CPU, where looking costs nothing, only if there are any."""
    return depth if bool(finite.all()) else torch.where(finite[:, None, None], depth, 0)
