"""The plain Ray Data way, as its user guide for batch inference does it, with the same teacher: what da2ray is measured against.

python -m da2ray.benchmark.plain_ray '{"images": …, "output": …, "teacher": …, "limit": …}'
"""

import json
import logging
import os
import sys
from typing import Any

import numpy as np
import ray
import torch
from ray.data import ActorPoolStrategy

from da2ray.teachers.base import LoadOptions, PixelBatch
from da2ray.teachers.registry import resolve


class PlainLabeler:
    """`map_batches` class: images of a batch have many sizes, so they go through the teacher one by one."""

    def __init__(self, teacher: str, options: LoadOptions) -> None:
        self._spec = resolve(teacher)
        self._teacher = self._spec.load(options)
        torch.set_num_threads(os.cpu_count() or 1)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        depths = np.empty(len(batch["image"]), dtype=object)
        with torch.inference_mode():
            for index, image in enumerate(batch["image"]):
                height, width = image.shape[:2]
                pixels = torch.from_numpy(np.array(image).reshape(-1)).to(self._teacher.device)
                size = self._spec.size_rule(height, width)
                depths[index] = (
                    self._teacher.predict(PixelBatch(pixels, [(height, width)], size)).depth[0].cpu().numpy()
                )
        return {"path": batch["path"], "depth": depths}


def main(argument: str) -> None:
    """Label a folder the plain way."""
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
        },
        num_gpus=1 if job["device"] == "cuda" else None,
    )
    labels.write_parquet(job["output"])
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
