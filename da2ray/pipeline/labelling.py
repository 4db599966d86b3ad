"""What is made of a micro-batch on the teacher's device: depth as integers, scores, mask and fits, without waiting for it.

Whatever gives a second opinion of the images goes through `compare` and adds its scores under its own name; the mask is the
teacher's own confidence, else that of the opinion.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from da2ray.labels.quantise import quantise
from da2ray.labels.schema import NUMBERS, Reason
from da2ray.pipeline.batches import HostBatch, LabelledBatch
from da2ray.quality.alignment import to_disparity
from da2ray.quality.consistency import compare, confidence, fit_metric, quantise_confidence
from da2ray.teachers.base import Kind, PixelBatch, Prediction, Teacher


@dataclass(frozen=True, slots=True)
class Checker:
    """A second teacher: `kind` is that of its depth, `of` that of the labels it checks."""

    teacher: Teacher
    kind: Kind
    of: Kind


@dataclass(frozen=True, slots=True)
class Outputs:
    """Of N images.

    Attributes:
        q, scale, offset: as `Quantised`.
        finite: bool (N,), False where the image failed for its depth has NaN or infinities.
        numbers: float32 (N, len(names)), NaN where not measured.
        mask: uint8 (N, h, w), None where nothing gives a confidence.
        masked: bool (N,), which images have a mask; None where `mask` is.
        names: columns of `NUMBERS` that were measured.
        mask_source: whose confidence it is, "teacher" or "checker".
    """

    q: Tensor
    scale: Tensor
    offset: Tensor
    finite: Tensor
    numbers: Tensor
    mask: Tensor | None
    masked: Tensor | None
    names: tuple[str, ...]
    mask_source: str

    def map(self, move: Callable[[Tensor], Tensor]) -> "Outputs":
        """The same with another tensor in place of each."""
        return Outputs(
            q=move(self.q),
            scale=move(self.scale),
            offset=move(self.offset),
            finite=move(self.finite),
            numbers=move(self.numbers),
            mask=None if self.mask is None else move(self.mask),
            masked=None if self.masked is None else move(self.masked),
            names=self.names,
            mask_source=self.mask_source,
        )

    def to_batch(self) -> LabelledBatch:
        """As arrays; the tensors must be in host memory."""
        numbers = np.full((len(self.scale), len(NUMBERS)), np.nan, dtype=np.float32)
        numbers[:, [NUMBERS.get_field_index(name) for name in self.names]] = self.numbers.numpy()
        message = "the depth map has NaN or infinite values"
        return LabelledBatch(
            depths=self.q.numpy().view(np.uint16),
            scales=self.scale.numpy(),
            offsets=self.offset.numpy(),
            numbers=numbers,
            errors=[None if fine else (Reason.NON_FINITE.value, message) for fine in self.finite.numpy()],
            masks=None if self.mask is None else self.mask.numpy(),
            mask_sources=None
            if self.masked is None
            else [self.mask_source if has else None for has in self.masked.numpy()],
        )


class Labelling:
    """Teacher, checker and options; `outputs` is called with autograd off."""

    def __init__(self, teacher: Teacher, bits: int, *, scaled: bool, mask_bits: int, checker: Checker | None) -> None:
        self._teacher = teacher
        self._bits = bits
        self._scaled = scaled
        self._mask_bits = mask_bits
        self._checker = checker

    def outputs(self, batch: HostBatch, pixels: Tensor) -> Outputs:
        """Label a micro-batch whose pixels are on the device as `pixels`."""
        pixel_batch = PixelBatch(pixels, batch.shapes, batch.size, self._scaled, batch.focals)
        prediction = self._teacher.predict(pixel_batch)
        depth, sureness, focals = prediction.depth, prediction.confidence, prediction.focals
        flat = depth.flatten(1)
        low, high = flat.amin(1), flat.amax(1)
        # min and max carry a NaN or an infinity of any pixel.
        finite = masked = torch.isfinite(low) & torch.isfinite(high)
        depth = _blank(depth, finite)
        numbers = {
            "depth_min": low,
            "depth_max": high,
            "depth_mean": flat.mean(1),
            "zero_share": (flat == 0).float().mean(1),
        }
        source = "teacher"
        if self._checker:
            checked = _predict_at(self._checker.teacher, pixel_batch, batch.checker_sizes)
            focals = checked.focals if focals is None else focals
            label, other = (
                to_disparity(depth, self._checker.of),
                to_disparity(checked.depth, self._checker.kind),
            )
            comparison = compare(label, other)
            for name, value in (("checker_mean", comparison.mean), ("checker_p90", comparison.p90)):
                numbers[name] = torch.where(comparison.valid, value, torch.nan)
            if sureness is None:
                source, sureness, masked = "checker", confidence(comparison.error), finite & comparison.valid
            if self._checker.kind is Kind.METRIC and self._checker.of is not Kind.METRIC:
                found = fit_metric(depth, self._checker.of, checked.depth)
                numbers |= {f"metric_{name}": getattr(found, name) for name in ("scale", "shift", "residual")}
        if focals is not None:
            numbers["focal"] = focals
        quantised = quantise(depth, self._bits)
        return Outputs(
            q=quantised.q,
            scale=quantised.scale,
            offset=quantised.offset,
            finite=finite,
            numbers=torch.stack(list(numbers.values()), dim=1),
            mask=None if sureness is None else quantise_confidence(sureness, self._mask_bits),
            masked=None if sureness is None else masked,
            names=tuple(numbers),
            mask_source=source,
        )


def _predict_at(teacher: Teacher, batch: PixelBatch, sizes: Sequence[tuple[int, int]] | None) -> Prediction:
    """A teacher's prediction for a micro-batch of another's: each image through its network at the size of its own in
    `sizes` (None: all at `batch.size`), the depth then resized to `batch.size`, bilinear with align_corners=False.
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
    """Some of the images, for a network of another size."""
    images = batch.images()
    return PixelBatch(
        torch.cat([images[place].reshape(-1) for place in places]),
        [batch.shapes[place] for place in places],
        size,
        batch.scaled,
        batch.focals and [batch.focals[place] for place in places],
    )


def _blank(depth: Tensor, finite: Tensor) -> Tensor:
    """Zeros in place of the maps that are not finite; on CPU, where looking costs nothing, only if there are any."""
    if depth.device.type == "cpu" and bool(finite.all()):
        return depth
    return torch.where(finite[:, None, None], depth, 0)
