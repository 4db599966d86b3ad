"""The teacher `luminance`: it costs nothing, so it serves to measure and test the pipeline around a teacher."""

import hashlib

import torch

from da2ray.teachers.base import LoadOptions, PixelBatch, Prediction
from da2ray.teachers.depth_anything.preprocess import preprocess
from da2ray.teachers.depth_anything.teacher import refuse_weights, torch_device

DEFINITION = b"luminance 1: mean of the preprocessed channels"


class Luminance:
    """A teacher whose disparity is the mean of the preprocessed channels. It may be negative."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def predict(self, batch: PixelBatch) -> Prediction:
        """The mean of the channels: float32 (N, height, width) at `batch.size`, from about -2.1 to 2.6."""
        with torch.inference_mode():
            images = preprocess(batch)
            return Prediction(images.mean(1), images=images)


def identify(options: LoadOptions) -> str:
    """The sha256 (hex) of the definition, because the teacher has no weights."""
    refuse_weights(options, "luminance")
    return hashlib.sha256(DEFINITION).hexdigest()


def load(options: LoadOptions) -> Luminance:
    """Load the teacher. Precision and compile change nothing, because it has no network."""
    refuse_weights(options, "luminance")
    return Luminance(torch_device(options.device))
