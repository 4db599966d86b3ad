"""`luminance`: a teacher that costs nothing, for measuring and testing the pipeline around a teacher."""

import hashlib

import torch

from da2ray.teachers.base import LoadOptions, PixelBatch, Prediction
from da2ray.teachers.depth_anything.preprocess import preprocess
from da2ray.teachers.depth_anything.teacher import refuse_weights, torch_device

DEFINITION = b"luminance 1: mean of the preprocessed channels"


class Luminance:
    """Calls the mean of the preprocessed channels disparity (`da2ray.teachers.base.Teacher`); it may be negative."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def predict(self, batch: PixelBatch) -> Prediction:
        """float32 (N, height, width) at `batch.size`, about -2.1 to 2.6."""
        with torch.inference_mode():
            images = preprocess(batch)
            return Prediction(images.mean(1), images=images)


def identify(options: LoadOptions) -> str:
    """sha256 (hex) of the definition, there being no weights."""
    refuse_weights(options, "luminance")
    return hashlib.sha256(DEFINITION).hexdigest()


def load(options: LoadOptions) -> Luminance:
    """Precision and compile change nothing: there is no network."""
    refuse_weights(options, "luminance")
    return Luminance(torch_device(options.device))
