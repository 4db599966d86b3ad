"""The baseline: a plain Ray Data script with the same network, written like Ray Data's user guide for batch inference.

`python -m da2ray.benchmark.plain_ray JSON` runs it. The JSON object has the keys `images`, `output`, `teacher`, `weights`,
`device`, `precision`, `batch_size` and `way`.
"""

import json
import logging
import os
import sys
from typing import Any

import cv2
import numpy as np
import ray
import torch
import torch.nn.functional as F
from ray.data import ActorPoolStrategy

from da2ray.teachers.base import LoadOptions, PixelBatch
from da2ray.teachers.depth_anything.preprocess import MEAN, STD, preprocess
from da2ray.teachers.depth_anything.teacher import DepthAnything
from da2ray.teachers.registry import resolve


class PlainLabeler:
    """The class for `map_batches`. The images of a batch have many sizes, so they go through the teacher one by one.

    Args:
        teacher: the teacher's name.
        options: how to load it.
        way: "infer-image" does what the official repository's `infer_image` does: depth has the image's size. "network-size"
            keeps depth at the network's size, like da2ray. "shared" uses da2ray's preprocessing, too.
    """

    def __init__(self, teacher: str, options: LoadOptions, way: str) -> None:
        self._spec = resolve(teacher)
        self._teacher = self._spec.load(options)
        self._preprocess = shared_input if way == "shared" else official_input
        self._full_size = way == "infer-image"
        torch.set_num_threads(os.cpu_count() or 1)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        depths = np.empty(len(batch["image"]), dtype=object)
        with torch.inference_mode():
            for index, image in enumerate(batch["image"]):
                inputs = self._preprocess(np.array(image), self._spec.size_rule(*image.shape[:2]))
                depth = self._network(inputs.to(self._teacher.device))
                if self._full_size:
                    depth = F.interpolate(depth[:, None], image.shape[:2], mode="bilinear", align_corners=True)[:, 0]
                depths[index] = depth[0].cpu().numpy()
        return {"path": batch["path"], "depth": depths}

    def _network(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._teacher.depth(inputs) if isinstance(self._teacher, DepthAnything) else inputs.mean(1)


def official_input(image: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """The official preprocessing, uint8 (H, W, 3) -> float32 (1, 3, h, w).

    It divides, resizes and normalises in float64 with OpenCV, and then casts.
    """
    resized = cv2.resize(image / 255.0, size[::-1], interpolation=cv2.INTER_CUBIC)
    normal = (resized - np.array(MEAN)) / np.array(STD)
    return torch.from_numpy(np.ascontiguousarray(normal.transpose(2, 0, 1), dtype=np.float32))[None]


def shared_input(image: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    return preprocess(PixelBatch(torch.from_numpy(image.reshape(-1)), [image.shape[:2]], size))


def main(argument: str) -> None:
    """Label a folder with plain Ray Data."""
    job = json.loads(argument)
    ray.init(address="local", include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    images = ray.data.read_images(job["images"], mode="RGB", include_paths=True)
    labels = images.map_batches(
        PlainLabeler,
        batch_size=job["batch_size"],
        compute=ActorPoolStrategy(size=1),
        fn_constructor_kwargs={
            "teacher": job["teacher"],
            "options": LoadOptions(job["weights"], job["device"], job["precision"]),
            "way": job["way"],
        },
        num_gpus=1 if job["device"] == "cuda" else None,
    )
    labels.write_parquet(job["output"])
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
