"""Evaluation of a teacher: on rendered worlds that training did not see, and on one real scene with measured depth."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from da2ray.errors import UserError
from da2ray.quality.depth_metrics import FARTHEST, LEAST_SHARE, abs_rel, aligned_depth, delta, spearman
from da2ray.teachers.base import Kind, PixelBatch, Prediction, Teacher, TeacherSpec
from da2ray.worlds.render import render
from da2ray.worlds.scene import make_scene

HELD_OUT = 1_000_000
"""First seed of the scenes that training does not see."""
IMAGE = (378, 504)
"""(height, width) of the pictures. It is not a network size, so that the resize is judged too."""


@dataclass(frozen=True, slots=True)
class Score:
    """The scores of one scene after alignment: mean absolute relative error, and share of pixels within a factor of 1.25."""

    seed: int
    outdoors: bool
    abs_rel: float
    delta1: float


class Ramp:
    """The baseline that a teacher must beat: lower in the picture is nearer (`da2ray.teachers.base.Teacher`)."""

    device = torch.device("cpu")

    def predict(self, batch: PixelBatch) -> Prediction:
        rows = torch.arange(batch.size[0], dtype=torch.float32)
        return Prediction(rows[None, :, None].expand(len(batch), *batch.size))


def score_worlds(teachers: Sequence[Teacher], spec: TeacherSpec, seeds: Sequence[int]) -> Iterator[list[Score]]:
    """Render each scene, label it with each teacher, align the labels to the truth in disparity, and compare them.

    Scenes with a share of less than `LEAST_SHARE` nearer than `FARTHEST` are left out.
    """
    size = spec.size_rule(*IMAGE)
    for seed in seeds:
        scene = make_scene(seed)
        world = render(scene, *IMAGE)
        depth = F.interpolate(world.depth[None, None], size=size, mode="nearest-exact")[0, 0].numpy()
        valid = depth < FARTHEST
        if valid.mean() < LEAST_SHARE:
            continue
        truth, scores = depth[valid], []
        for teacher in teachers:
            metres = aligned_depth(_label(teacher, spec, world.image.numpy(), size)[valid], truth, FARTHEST)
            scores.append(Score(seed, scene.room is None, abs_rel(metres, truth), delta(metres, truth)))
        yield scores


def motorcycle_rank_correlation(teacher: Teacher, spec: TeacherSpec) -> float:
    """Spearman's correlation of label and measured disparity on 93 % of scikit-image's motorcycle picture (Middlebury 2014).

    Raises:
        UserError: scikit-image is not installed.
    """
    try:
        from skimage.data import stereo_motorcycle  # noqa: PLC0415 - an extra
    except ImportError:
        raise UserError("the motorcycle picture comes with scikit-image: pip install 'da2ray[demo]'") from None
    image, _, measured = stereo_motorcycle()
    label = _label(teacher, spec, np.ascontiguousarray(image), spec.size_rule(*image.shape[:2]))
    full = F.interpolate(torch.from_numpy(label)[None, None], image.shape[:2], mode="bilinear", align_corners=True)
    valid = np.isfinite(measured) & (measured > 0)
    return spearman(full[0, 0].numpy()[valid], measured[valid])


def _label(teacher: Teacher, spec: TeacherSpec, image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.float32]:
    """Label an image with disparity of `size` (height, width)."""
    pixels = torch.from_numpy(image).to(teacher.device).reshape(-1)
    depth = teacher.predict(PixelBatch(pixels, [(image.shape[0], image.shape[1])], size)).depth[0].cpu().numpy()
    return depth if spec.kind is Kind.DISPARITY else 1 / np.maximum(depth, 1e-3)
