"""Measure the cost of the scores that need no forward pass: the label stage's time on the device outside the teacher."""

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from da2ray.benchmark.weights import write_seeded_weights
from da2ray.labels.codec import default_bits
from da2ray.pipeline.stages.batches import HostBatch
from da2ray.pipeline.stages.inference import Inference
from da2ray.pipeline.stages.opinions import Opinions
from da2ray.teachers.base import LoadOptions, PixelBatch, Prediction, Teacher
from da2ray.teachers.registry import DEFAULT, resolve

SHAPE = (480, 640)
"""(height, width) of the pictures. The network sees them at 518 x 686."""


@dataclass(frozen=True, slots=True)
class Overhead:
    """The CPU time of labelling a picture in a micro-batch of its own.

    Attributes:
        images: number of pictures.
        teacher: median seconds in the teacher.
        beside: median seconds outside the teacher.
    """

    images: int
    teacher: float
    beside: float

    @property
    def share(self) -> float:
        """The share of the time outside the teacher: scores, hash, far mask and quantisation."""
        return self.beside / (self.beside + self.teacher)


class _Timed:
    """A wrapper that counts the seconds of a teacher (`da2ray.teachers.base.Teacher`)."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self.device = teacher.device
        self.seconds = 0.0

    def predict(self, batch: PixelBatch) -> Prediction:
        began = time.thread_time()
        prediction = self._teacher.predict(batch)
        self.seconds += time.thread_time() - began
        return prediction


def measure_overhead(images: int, work: Path) -> Overhead:
    """Label made-up pictures with Depth Anything V2 S in fp32 on the CPU, after one to warm up.

    This runs on one thread, as the label stage runs each micro-batch on a CPU (`share_cores`), and measures the CPU time of that
    thread, which does not depend on what else the machine does.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    spec = resolve(DEFAULT)
    teacher = _Timed(spec.load(LoadOptions(weights=str(write_seeded_weights(DEFAULT, work)))))
    inference = Inference(teacher, spec.kind, default_bits(spec.kind), scaled=False, mask_bits=2, opinions=Opinions())
    rng = np.random.default_rng(0)
    inside, beside = [], []
    for number in range(images + 1):
        pixels = rng.integers(0, 256, SHAPE[0] * SHAPE[1] * 3, np.uint8)
        batch = HostBatch(pixels, [SHAPE], spec.size_rule(*SHAPE))
        before, began = teacher.seconds, time.thread_time()
        with torch.inference_mode():
            inference.outputs(batch, torch.from_numpy(pixels)).to_batch()
        seconds = time.thread_time() - began
        if number:
            inside.append(teacher.seconds - before)
            beside.append(seconds - inside[-1])
    torch.set_num_threads(threads)
    return Overhead(images, median(inside), median(beside))
