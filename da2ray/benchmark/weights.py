"""Seeded weights of a teacher's full size: as fast as the published ones, for machines that cannot fetch those."""

from pathlib import Path

from safetensors.torch import save_file

from da2ray.errors import UserError
from da2ray.teachers.depth_anything.dpt import CONFIGS
from da2ray.teachers.depth_anything.teacher import random_state

SIZES = {"small": "vits", "base": "vitb", "large": "vitl", "giant": "vitg"}


def write_seeded_weights(teacher: str, folder: Path) -> Path:
    """A safetensors file that `--weights` takes.

    Raises:
        UserError: the teacher is no Depth Anything V2, or has no weights to give.
    """
    size = SIZES.get(teacher.rpartition("-")[2])
    if not teacher.startswith("depth-anything-v2-") or size is None:
        raise UserError(
            f"--seeded-weights makes weights of depth-anything-v2-small, -base, -large or -giant, not of {teacher}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{teacher}-seeded.safetensors"
    save_file(random_state(next(config for config in CONFIGS if config.name == size)), path)
    return path
