"""Seeded weights of a teacher's full size, for machines that cannot fetch the published ones. They are equally fast."""

from pathlib import Path

from safetensors.torch import save_file

from da2ray.errors import UserError
from da2ray.teachers.depth_anything.configs import CONFIGS
from da2ray.teachers.depth_anything.teacher import random_state

SIZES = {"small": "vits", "base": "vitb", "large": "vitl", "giant": "vitg"}


def write_seeded_weights(teacher: str, folder: Path) -> Path:
    """Write a safetensors file for `--weights`.

    Raises:
        UserError: the teacher is not a Depth Anything V2 of one of the four sizes.
    """
    size = SIZES.get(teacher.rpartition("-")[2])
    if not teacher.startswith("depth-anything-v2-") or size is None:
        raise UserError(
            f"--seeded-weights cannot make weights for {teacher}: give a --teacher depth-anything-v2-… that ends in small, base, "
            "large or giant"
        )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{teacher}-seeded.safetensors"
    save_file(random_state(next(config for config in CONFIGS if config.name == size)), path)
    return path
