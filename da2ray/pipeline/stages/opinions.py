"""Second opinions of a micro-batch: the same teacher's depth of the mirrored image and of the image at a smaller size, and the
depth of another teacher.

Each costs a pass through a network. `compare` makes an error map of the labels from each, and `largest_error` the mask from all.
All of this runs on the device, without waiting for it. A focal length is in pixels of the image as it was decoded, so neither
the mirror nor the network's size changes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from da2ray.pipeline.stages.batches import HostBatch
from da2ray.quality.alignment import to_disparity
from da2ray.quality.consistency import Comparison, compare
from da2ray.quality.opinions import SMALLER
from da2ray.teachers.base import Kind, PixelBatch, Prediction, Teacher


@dataclass(frozen=True, slots=True)
class Checker:
    """A second teacher, and the kind of its depth."""

    teacher: Teacher
    kind: Kind


@dataclass(frozen=True, slots=True)
class Opinions:
    """The second opinions that a run asks for.

    Attributes:
        flip: ask the teacher for the mirrored image, and mirror its depth back.
        scale_step: ask the teacher at two thirds of the network's size, with sides that are multiples of this step; None: do not.
        checker: ask a second teacher; None: do not.
    """

    flip: bool = False
    scale_step: int | None = None
    checker: Checker | None = None


@dataclass(frozen=True, slots=True)
class Answers:
    """The second opinions of N images.

    Attributes:
        comparisons: the comparison of the labels with each opinion that was asked for, by name: flip, scale, checker.
        checked: the checker's own prediction at the labels' size; None without a checker.
    """

    comparisons: dict[str, Comparison]
    checked: Prediction | None


def ask(opinions: Opinions, teacher: Teacher, kind: Kind, batch: PixelBatch, host: HostBatch, depth: Tensor) -> Answers:
    """Ask for second opinions of a micro-batch.

    Args:
        opinions: the opinions to ask for.
        teacher: the teacher that labelled the batch.
        kind: the kind of its depth.
        batch: the images.
        host: the same batch, with the sizes for the checker's network.
        depth: the teacher's depth, float32 (N, height, width), finite.
    """
    comparisons: dict[str, Comparison] = {}
    label = to_disparity(depth, kind)
    if opinions.flip:
        mirrored = teacher.predict(_mirrored(batch)).depth.flip(2)
        comparisons["flip"] = compare(label, to_disparity(mirrored, kind))
    if opinions.scale_step is not None:
        size = smaller(batch.size, opinions.scale_step)
        small = teacher.predict(replace(batch, size=size)).depth
        low_passed = interpolate(label[:, None], size, mode="area")[:, 0]
        comparisons["scale"] = compare(low_passed, to_disparity(small, kind))
    checked = None
    if opinions.checker:
        checked = _predict_at(opinions.checker.teacher, batch, host.checker_sizes)
        comparisons["checker"] = compare(label, to_disparity(checked.depth, opinions.checker.kind))
    return Answers(comparisons, checked)


def smaller(size: tuple[int, int], step: int) -> tuple[int, int]:
    """(height, width) of a network -> the smaller size for the opinion on scale: SMALLER times as long, to the nearest step."""
    height, width = (max(round(side * SMALLER / step), 1) * step for side in size)
    return height, width


def _mirrored(batch: PixelBatch) -> PixelBatch:
    """The batch with left and right exchanged in each image."""
    return replace(batch, pixels=torch.cat([image.flip(1).reshape(-1) for image in batch.images()]))


def _predict_at(teacher: Teacher, batch: PixelBatch, sizes: Sequence[tuple[int, int]] | None) -> Prediction:
    """A teacher's prediction for a micro-batch of another teacher.

    Each image goes through the network at its own size in `sizes` (None: all at `batch.size`). Its depth is then resized to
    `batch.size`, bilinear with align_corners=False.
    """
    sizes = sizes or [batch.size] * len(batch)
    groups: dict[tuple[int, int], list[int]] = {}
    for place, size in enumerate(sizes):
        groups.setdefault(size, []).append(place)
    depths: dict[int, Tensor] = {}
    focals: dict[int, Tensor] = {}
    for size, places in groups.items():
        prediction = teacher.predict(_part(batch, places, size) if len(groups) > 1 else replace(batch, size=size))
        depth = prediction.depth
        if size != batch.size:
            depth = interpolate(depth[:, None], batch.size, mode="bilinear", align_corners=False)[:, 0]
        if len(groups) == 1:
            return Prediction(depth, focals=prediction.focals)
        depths |= dict(zip(places, depth, strict=True))
        if prediction.focals is not None:
            focals |= dict(zip(places, prediction.focals, strict=True))
    in_order = range(len(batch))
    return Prediction(
        torch.stack([depths[place] for place in in_order]),
        focals=torch.stack([focals[place] for place in in_order]) if focals else None,
    )


def _part(batch: PixelBatch, places: Sequence[int], size: tuple[int, int]) -> PixelBatch:
    """The images at some places of a batch, for a network of another size."""
    images = batch.images()
    return PixelBatch(
        torch.cat([images[place].reshape(-1) for place in places]),
        [batch.shapes[place] for place in places],
        size,
        batch.scaled,
        batch.focals and [batch.focals[place] for place in places],
    )
