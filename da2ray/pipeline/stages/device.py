"""The threads that feed one device, so that it never waits between calls.

Callers submit micro-batches and get futures. On CUDA a second thread copies the next micro-batches into pinned memory, and from
there to the device on its own stream. The device thread launches a micro-batch before it waits for the previous one, so the
device always has work queued. On a CPU nothing can overlap: each of a few threads runs one call after another.
"""

import contextlib
import queue
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from da2ray.errors import Reason
from da2ray.parallel import usable_cores
from da2ray.pipeline.stages.batches import HostBatch, LabelledBatch
from da2ray.pipeline.stages.inference import Inference, Outputs
from da2ray.pipeline.stages.labelling import Labelling
from da2ray.pipeline.stages.opinions import Checker, Opinions
from da2ray.storage import printable
from da2ray.teachers.base import Kind, LoadOptions, Teacher, TeacherSpec

MESSAGE_CHARS = 200

MOST_WORKERS = 4
"""Micro-batches that an actor holds, by Ray Data's default for async UDFs. More threads would idle."""

STAGED = 2
"""Micro-batches on the device ahead of the one that runs: one is copied while another is ready."""


@dataclass(slots=True)
class _Work:
    """A micro-batch on its way through the device."""

    batch: HostBatch
    future: "Future[LabelledBatch]"
    pixels: torch.Tensor | None = None
    copied: Any = None  # torch.cuda.Event: passed once the pixels are on the device
    outputs: Outputs | None = None
    started: Any = None  # torch.cuda.Event or seconds
    ended: Any = None


class Device:
    """A teacher behind a queue.

    Attributes:
        busy_seconds: time that the device spent on micro-batches, by CUDA events; on a CPU wall time, averaged over the threads.
        images: images that went through.
        broken: the device failed, and not an image. This process must end; a new one may find the device working.
    """

    def __init__(
        self,
        teacher: Teacher,
        bits: int,
        *,
        kind: Kind,
        scaled: bool,
        workers: int = 1,
        mask_bits: int = 2,
        opinions: Opinions | None = None,
    ) -> None:
        """Start the threads.

        Args:
            teacher: the loaded teacher.
            bits: bits of a stored depth value.
            kind: the kind of the teacher's depth.
            scaled: pixels were decoded at a reduced scale.
            workers: threads on a CPU, each with its own micro-batch. More than one only for teachers that allow it.
            mask_bits: bits of a stored confidence value.
            opinions: the second opinions to ask for.
        """
        self.busy_seconds = 0.0
        self.images = 0
        self.broken = False
        self._counting = threading.Lock()
        self._calls: dict[int, tuple[float, int]] = {}
        # For each network size that did not fit in memory: the most images that may go through at once.
        self._ceilings: dict[tuple[int, int], int] = {}
        self._teacher = teacher
        self._inference = Inference(
            teacher, kind, bits, scaled=scaled, mask_bits=mask_bits, opinions=opinions or Opinions()
        )
        self._cuda = teacher.device.type == "cuda"
        self._submitted: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._staged: queue.Queue[_Work | None] = queue.Queue(STAGED)
        self._fatal: BaseException | None = None
        self._workers = 1 if self._cuda else workers
        self._threads = [
            threading.Thread(target=self._guard, args=(self._run,), name="device", daemon=True)
            for _ in range(self._workers)
        ]
        if self._cuda:
            self._copies = torch.cuda.Stream(teacher.device)
            self._threads.append(threading.Thread(target=self._guard, args=(self._stage,), name="copies", daemon=True))
        for thread in self._threads:
            thread.start()

    def submit(self, batch: HostBatch) -> "Future[LabelledBatch]":
        """Queue a micro-batch.

        Returns:
            A future of its labels. It raises if the device itself is broken. An image that the teacher cannot label becomes an
            entry of `errors` instead.
        """
        future: Future[LabelledBatch] = Future()
        self._submitted.put(_Work(batch, future))
        if self._fatal is not None:  # the threads have ended, or will not look at the queue again
            self._refuse_queued()
        return future

    def calls(self) -> list[tuple[float, int]]:
        """The micro-batches that the device works on now: time.monotonic() at the begin of each, and its number of images."""
        return list(self._calls.values())

    def close(self) -> None:
        """Finish what is queued and end the threads."""
        for _ in range(self._workers):
            self._submitted.put(None)
        for thread in self._threads:
            thread.join()

    def _guard(self, loop: Any) -> None:
        """Run a thread's loop. If it dies, its error is raised by the futures of all work, queued or submitted later."""
        try:
            loop()
        except BaseException as error:  # noqa: BLE001 - every waiting caller gets it
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
            except torch.OutOfMemoryError:
                # The device thread tries again once the current micro-batch is done, and divides this one if it must.
                work.pixels = None
            except BaseException as error:
                self.broken = True
                work.future.set_exception(error)
                raise
            self._staged.put(work)
            if self._fatal is not None:  # the device thread died while this thread waited for room
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
        self._finish(
            launched[0]
        )  # CUDA reports a launch's errors here, so the work stays in the queue until it is done
        launched.popleft()

    def _launch(self, work: _Work) -> None:
        self._calls[id(work)] = (time.monotonic(), len(work.batch))
        ceiling = self._ceilings.get(work.batch.size, len(work.batch))
        if ceiling < len(work.batch):
            self._label_in_parts(work, ceiling)
            return
        trouble: Exception | None = None
        try:
            outputs = self._start(work)
        except Exception as error:  # noqa: BLE001 - an error of one image must not end the job
            trouble = error
        if trouble is None:
            work.outputs = outputs
            return
        # Outside of `except`, and without the traceback: its frames hold the failed call's tensors on the device.
        trouble.__traceback__ = None
        work.pixels = None
        self._refuse_broken_device(trouble)
        if len(work.batch) == 1:
            reason = Reason.OUT_OF_MEMORY if _no_memory(trouble) else Reason.TEACHER_ERROR
            message = printable(f"{type(trouble).__name__}: {trouble}", MESSAGE_CHARS)
            self._answer(work, LabelledBatch.failed(work.batch, reason, message))
        elif _no_memory(trouble):
            self._ceilings[work.batch.size] = len(work.batch) // 2
            self._label_in_parts(work, len(work.batch) // 2)
        else:
            self._label_in_parts(work, 1, trouble)

    def _start(self, work: _Work) -> Outputs:
        """Begin to label a micro-batch; on a CPU, label it. The outputs are in host memory once `ended` has passed."""
        if not self._cuda:
            # This may be read-only shared memory. Nothing writes to it, so torch's warning does not apply.
            work.pixels = torch.frombuffer(work.batch.pixels.data, dtype=torch.uint8)
            work.started = time.perf_counter()
            outputs = self._inference.outputs(work.batch, work.pixels)
            work.ended = time.perf_counter()
            return outputs
        stream = torch.cuda.current_stream(self._teacher.device)
        if work.pixels is None:  # this is a part, or no memory was free when it should have been copied
            work.pixels = torch.from_numpy(np.array(work.batch.pixels)).to(self._teacher.device)
        else:
            stream.wait_event(work.copied)
            work.pixels.record_stream(stream)
        work.started, work.ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        work.started.record(stream)
        outputs = self._inference.outputs(work.batch, work.pixels).map(_start_copy)
        work.ended.record(stream)
        return outputs

    def _finish(self, work: _Work) -> None:
        if work.future.done():
            return
        if self._cuda:
            try:
                work.ended.synchronize()
            except Exception:
                self.broken = True
                raise
            busy = work.started.elapsed_time(work.ended) / 1000
        else:
            busy = (work.ended - work.started) / self._workers
        with self._counting:
            self.busy_seconds += busy
            self.images += len(work.batch)
        assert work.outputs is not None  # noqa: S101 - it was launched
        self._answer(work, work.outputs.to_batch())

    def _answer(self, work: _Work, labelled: LabelledBatch) -> None:
        self._calls.pop(id(work), None)
        work.future.set_result(labelled)

    def _label_in_parts(self, work: _Work, largest: int, trouble: Exception | None = None) -> None:
        """Label a micro-batch in smaller parts; after an error (`trouble`) image by image, so that only those at fault fail."""
        parts = []
        for batch in work.batch.parts(largest):
            part = _Work(batch, Future())
            self._launch(part)
            self._finish(part)
            parts.append(part.future.result())
        labelled = LabelledBatch.joined(parts)
        if trouble is not None and all(labelled.errors) and not self.images:
            raise trouble  # the teacher or its machine is at fault, so no row may blame an image
        self._answer(work, labelled)

    def _refuse_broken_device(self, error: Exception) -> None:
        """Raise if the device no longer works. After a CUDA fault every call fails: the actor must end, no image is at fault."""
        try:
            torch.cuda.empty_cache()
            torch.zeros(1, device=self._teacher.device).item()
        except Exception as broken:
            self.broken = True
            raise broken from error


def start_device(labelling: Labelling) -> Device:
    """Load the teachers and start their device, on this process's share of the cores.

    Raises:
        UserError: a teacher cannot be loaded as asked.
    """
    spec, checker = labelling.spec, labelling.checker
    workers = share_cores(spec, labelling.load, labelling.processes, checker and checker[0])
    return Device(
        spec.load(labelling.load),
        labelling.bits,
        kind=spec.kind,
        scaled=labelling.decoding.scaled,
        workers=workers,
        mask_bits=labelling.mask_bits,
        opinions=Opinions(
            flip="flip" in labelling.consistency,
            scale_step=spec.size_step if "scale" in labelling.consistency else None,
            checker=Checker(checker[0].load(checker[1]), checker[0].kind) if checker else None,
        ),
    )


def share_cores(spec: TeacherSpec, options: LoadOptions, processes: int, checker: TeacherSpec | None = None) -> int:
    """Give this process its share of the machine's cores; Ray gives torch one thread by default.

    Returns:
        The number of threads that should each run their own micro-batch. Two threads with one call each are 8 % faster than one
        call on two threads (Depth Anything V2 S, 2 cores), and a thread that is interrupted does not make the other wait.
    """
    cores = max(1, usable_cores() // processes)
    concurrent = spec.concurrent and (checker is None or checker.concurrent)
    workers = min(MOST_WORKERS, cores) if options.device == "cpu" and concurrent and not options.compile else 1
    torch.set_num_threads(cores // workers)
    cv2.setNumThreads(cores // workers)
    return workers


def _no_memory(error: Exception) -> bool:
    """Whether memory ran out. torch raises a plain RuntimeError if the host's memory does."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "not enough memory" in str(error)


def _start_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in host memory, complete once the device has got that far."""
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
