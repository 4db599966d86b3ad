"""Inference never reads a value from the device, because reading waits for all queued work."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from da2ray.labels.schema import NUMBERS
from da2ray.pipeline.stages.batches import HostBatch
from da2ray.pipeline.stages.inference import Inference
from da2ray.pipeline.stages.opinions import Checker, Opinions
from da2ray.teachers.base import Kind, PixelBatch, Prediction
from da2ray.teachers.depth_anything.preprocess import preprocess

DEVICE = torch.device("meta")
"""Tensors on this device have no values, so reading one raises. It is not the CPU, on which reading is allowed."""
SHAPES, SIZE = [(60, 90), (70, 100)], (56, 84)


class Blind:
    device = DEVICE

    def __init__(self, *, sure: bool = False, hands_over: bool = False) -> None:
        self.sure, self.hands_over = sure, hands_over

    def predict(self, batch: PixelBatch) -> Prediction:
        images = preprocess(batch)
        depth = images.mean(1)
        return Prediction(depth, depth if self.sure else None, images=images if self.hands_over else None)


@pytest.mark.parametrize(
    "look", [torch.Tensor.item, torch.Tensor.cpu, torch.nonzero, lambda x: bool(x.all()), lambda x: x[x > 0]]
)
def test_a_look_is_noticed(look: Callable[[torch.Tensor], object]) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        look(torch.ones(1, device=DEVICE))


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("teacher", [Blind(), Blind(sure=True, hands_over=True)], ids=["plain", "sure"])
def test_labels_scores_and_opinions_are_made_without_a_look(teacher: Blind, kind: Kind) -> None:
    opinions = Opinions(flip=True, scale_step=14, checker=Checker(Blind(), Kind.METRIC))
    inference = Inference(teacher, kind, 12, scaled=False, mask_bits=2, opinions=opinions)
    pixels = sum(height * width * 3 for height, width in SHAPES)
    batch = HostBatch(np.zeros(pixels, dtype=np.uint8), SHAPES, SIZE, checker_sizes=[SIZE, (42, 56)])
    with torch.inference_mode():
        outputs = inference.outputs(batch, torch.empty(pixels, dtype=torch.uint8, device=DEVICE))
    fit = {"metric_scale", "metric_shift", "metric_residual"}  # the fit of relative depth to the checker's metres
    assert set(outputs.names) == set(NUMBERS.names) - {"focal"} - (fit if kind is Kind.METRIC else set())
    assert (outputs.numbers.device, outputs.numbers.shape) == (DEVICE, (len(SHAPES), len(outputs.names)))
    assert outputs.mask_sources == (("teacher",) if teacher.sure else ("flip", "scale", "checker"))
