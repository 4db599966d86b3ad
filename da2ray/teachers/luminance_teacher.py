"""`luminance` as a loaded teacher."""

import torch

from da2ray.teachers.base import PixelBatch, Prediction
from da2ray.teachers.depth_anything.preprocess import preprocess
from da2ray.teachers.depth_anything.teacher import torch_device


class Luminance:
    """A teacher whose disparity is the mean of the preprocessed channels. It may be negative."""

    def __init__(self, device: str) -> None:
        self.device = torch_device(device)

    def predict(self, batch: PixelBatch) -> Prediction:
        """The mean of the channels: float32 (N, height, width) at `batch.size`, from about -2.1 to 2.6."""
        with torch.inference_mode():
            images = preprocess(batch)
            return Prediction(images.mean(1), images=images)
