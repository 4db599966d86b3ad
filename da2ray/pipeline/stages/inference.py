"""Label a micro-batch on the teacher's device: depth as integers, scores, hash, mask and fits, without waiting for the device.

The mask is the teacher's own confidence if it has one, else the confidence from second opinions.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from da2ray.errors import Reason
from da2ray.labels.quantise import quantise
from da2ray.labels.schema import NUMBERS
from da2ray.pipeline.stages.batches import HostBatch, LabelledBatch
from da2ray.pipeline.stages.opinions import Answers, Opinions, ask
from da2ray.quality.consistency import confidence, fit_metric, largest_error, quantise_confidence
from da2ray.quality.depth_scores import depth_statistics, nonfinite_share
from da2ray.quality.image_scores import grey, image_scores
from da2ray.quality.phash import perceptual_hash
from da2ray.teachers.base import Kind, PixelBatch, Prediction, Teacher
from da2ray.teachers.depth_anything.preprocess import preprocess


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs for N images.

    Attributes:
        q, scale, offset: as in `Quantised`.
        finite: bool (N,), False if the image failed because its depth has NaN or infinities.
        numbers: float32 (N, len(names)), NaN if not measured.
        phash: int64 (N,); its bits are the perceptual hash.
        mask: uint8 (N, h, w); None if nothing gives a confidence.
        masked: bool (N, len(mask_sources)); True for each source whose confidence went into the image's mask. An image without
            any has no mask. None if `mask` is None.
        far: bool (N, h, w), True at pixels without a distance; None if the kind of depth has none.
        names: the columns of `NUMBERS` that were measured.
        mask_sources: "teacher", or the names of second opinions.
    """

    q: Tensor
    scale: Tensor
    offset: Tensor
    finite: Tensor
    numbers: Tensor
    phash: Tensor
    mask: Tensor | None
    masked: Tensor | None
    far: Tensor | None
    names: tuple[str, ...]
    mask_sources: tuple[str, ...]

    def map(self, move: Callable[[Tensor], Tensor]) -> "Outputs":
        """The same outputs with `move` applied to each tensor."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        moved: dict[str, Any] = {name: move(value) for name, value in values if isinstance(value, Tensor)}
        return replace(self, **moved)

    def to_batch(self) -> LabelledBatch:
        """The outputs as arrays. The tensors must be in host memory."""
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
            mask_sources=self._sources(),
            phashes=self.phash.numpy().view(np.uint64),
            fars=self._packed_far(),
        )

    def _sources(self) -> list[str | None] | None:
        if self.masked is None:
            return None
        chosen = (zip(self.mask_sources, each, strict=True) for each in self.masked.tolist())
        return ["+".join(name for name, has in image if has) or None for image in chosen]

    def _packed_far(self) -> np.ndarray | None:
        """The far maps as in `LabelledBatch.fars`: packed, so that an eighth of the bytes travel."""
        if self.far is None or not self.far.any():
            return None
        return np.packbits(self.far.flatten(1).numpy(), axis=1, bitorder="little")


class Inference:
    """A teacher with its second opinions. Call `outputs` with autograd off."""

    def __init__(
        self, teacher: Teacher, kind: Kind, bits: int, *, scaled: bool, mask_bits: int, opinions: Opinions
    ) -> None:
        self._teacher = teacher
        self._kind = kind
        self._bits = bits
        self._scaled = scaled
        self._mask_bits = mask_bits
        self._opinions = opinions

    def outputs(self, batch: HostBatch, pixels: Tensor) -> Outputs:
        """Label a micro-batch. `pixels`: its pixels on the device."""
        pixel_batch = PixelBatch(pixels, batch.shapes, batch.size, self._scaled, batch.focals)
        prediction = self._teacher.predict(pixel_batch)
        flat = prediction.depth.flatten(1)
        # A NaN or an infinity of any pixel reaches the minimum or the maximum.
        finite = torch.isfinite(flat.amin(1)) & torch.isfinite(flat.amax(1))
        depth = _blank(prediction.depth, finite)

        images = preprocess(pixel_batch) if prediction.images is None else prediction.images
        levels = grey(images)
        statistics = depth_statistics(depth, self._kind, levels)
        numbers = image_scores(images, levels) | statistics.scores
        numbers["nonfinite_share"] = nonfinite_share(prediction.depth, finite)

        answers = ask(self._opinions, self._teacher, self._kind, pixel_batch, batch, depth)
        for name, comparison in answers.comparisons.items():
            for score in ("mean", "p90"):
                value = getattr(comparison, score)
                numbers[f"{name}_{score}"] = torch.where(comparison.valid, value, torch.nan)
        numbers |= self._metres(depth, answers.checked)
        focals = prediction.focals
        if focals is None and answers.checked:
            focals = answers.checked.focals
        if focals is not None:
            numbers["focal"] = focals
        sources, mask, masked = self._mask(prediction, answers, finite)
        if mask is not None and masked is not None:
            sureness = mask.flatten(1).sum(1, dtype=torch.int32) / (flat.shape[1] * (2**self._mask_bits - 1))
            numbers["confidence_mean"] = torch.where(masked.any(1), sureness, torch.nan)
        quantised = quantise(depth, self._bits)
        return Outputs(
            q=quantised.q,
            scale=quantised.scale,
            offset=quantised.offset,
            finite=finite,
            numbers=torch.stack(list(numbers.values()), dim=1),
            phash=perceptual_hash(levels),
            mask=mask,
            masked=masked,
            far=statistics.far,
            names=tuple(numbers),
            mask_sources=sources,
        )

    def _metres(self, depth: Tensor, checked: Prediction | None) -> dict[str, Tensor]:
        """The fit that turns relative labels into metres, if the checker gives metres."""
        checker = self._opinions.checker
        if checker is None or checked is None or checker.kind is not Kind.METRIC or self._kind is Kind.METRIC:
            return {}
        fit = fit_metric(depth, self._kind, checked.depth)
        return {f"metric_{name}": getattr(fit, name) for name in ("scale", "shift", "residual")}

    def _mask(
        self, prediction: Prediction, answers: Answers, finite: Tensor
    ) -> tuple[tuple[str, ...], Tensor | None, Tensor | None]:
        """The `mask_sources`, `mask` and `masked` of `Outputs`."""
        if prediction.confidence is not None:
            return ("teacher",), quantise_confidence(prediction.confidence, self._mask_bits), finite[:, None]
        if not answers.comparisons:
            return (), None, None
        comparisons = list(answers.comparisons.values())
        sureness = confidence(largest_error(comparisons, (prediction.depth.shape[1], prediction.depth.shape[2])))
        masked = torch.stack([finite & each.valid for each in comparisons], dim=1)
        return tuple(answers.comparisons), quantise_confidence(sureness, self._mask_bits), masked


def _blank(depth: Tensor, finite: Tensor) -> Tensor:
    """Replace maps that are not finite by zeros. On a CPU a look costs nothing, so there the copy is made only if needed."""
    if depth.device.type == "cpu" and bool(finite.all()):
        return depth
    return torch.where(finite[:, None, None], depth, 0)
