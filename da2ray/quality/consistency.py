"""How well opinions of one image agree: error maps, their scores, and a confidence from all of them.

A change of any of them is another `COMPARISON` (da2ray/labels/dataset.py), which enters the fingerprint. Everything in
disparity, batched, on the device of the input, without waiting for it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from da2ray.quality.alignment import fit, fit_robust, grid
from da2ray.teachers.base import Kind

SURE = 0.02
UNSURE = 0.64
"""Errors at and below which a pixel is sure (1), and from which on it is not at all (0): five octaves apart. With 2 bits the
levels 3, 2, 1, 0 then change at errors of 0.036, 0.113 and 0.36."""
CELLS = 48
WINDOW = 9
"""A confidence is of a neighbourhood: the mean error over WINDOW x WINDOW cells, of which the short side has CELLS. Where two
maps cross they agree by chance, and single pixels say little: on 300 worlds labelled by the embedded teacher (flip and scale;
README, Quality) the true error of level 0 is 2.5 times that of level 3 by single pixels, and 3.3 times with this window, a fifth
of the short side."""
NEAREST_METRES = 1e-3
"""Metres below this are none: what metric heads give where they know nothing."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of N images; nothing but `valid` means anything where that is False.

    Attributes:
        error: float32 (N, h, w), see `compare`; of the size at which the two were compared.
        mean, p90: float32 (N,) of the error; p90 is the least error that 90 % of the pixels do not exceed.
        valid: bool (N,), False where one of the two is not finite, or the first is constant.
    """

    error: Tensor
    mean: Tensor
    p90: Tensor
    valid: Tensor


def compare(label: Tensor, other: Tensor) -> Comparison:
    """The error of `label` by `other`: |a - (s * b + t)| / mean|a - median(a)|, s and t by least squares.

    Without a unit and without regard to scale and shift of either, so that teachers can be compared (facts: quality signals).

    Args:
        label, other: disparity, float32 (N, h, w); may hold NaN and infinities.
    """
    a, b = label.flatten(1), other.flatten(1)
    scale, shift = fit(b, a)
    deviation = (a - a.median(1, keepdim=True).values).abs().mean(1)
    error = (a - (scale[:, None] * b + shift[:, None])).abs() / deviation[:, None]
    mean = error.mean(1)
    p90 = error.kthvalue(math.ceil(0.9 * error.shape[1]), dim=1).values
    # Any NaN or infinity of either map reaches the mean, and so does a deviation of 0.
    return Comparison(error.view(label.shape), mean, p90, mean.isfinite())


def largest_error(comparisons: Sequence[Comparison], size: tuple[int, int]) -> Tensor:
    """The pixelwise largest of the local means of several error maps of the same N images.

    Args:
        comparisons: at least one; their maps may be of other sizes, and are then resized (bilinear, half-pixel centres).
        size: (height, width) of the result.

    Returns:
        float32 (N, height, width). An opinion that is not valid for an image is left out there; without any it is 0.
    """
    largest: Tensor | None = None
    for each in comparisons:
        error = local_mean(torch.where(each.valid[:, None, None], each.error, 0))
        if error.shape[1:] != size:
            error = interpolate(error[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        largest = error if largest is None else largest.maximum(error)
    assert largest is not None  # noqa: S101 - there is one
    return largest


def local_mean(error: Tensor) -> Tensor:
    """Error maps, float32 (N, h, w) -> the mean over each pixel's neighbourhood, cut at the border; see CELLS.

    By way of cells (area average there, bilinear with half-pixel centres back): 3 ms an image of 518 x 686 on a core, not 160.
    """
    height, width = error.shape[1:]
    factor = min(1.0, CELLS / min(height, width))
    cells = interpolate(error[:, None], (round(height * factor), round(width * factor)), mode="area")
    means = avg_pool2d(cells, WINDOW, stride=1, padding=WINDOW // 2, count_include_pad=False)
    return interpolate(means, (height, width), mode="bilinear", align_corners=False)[:, 0]


def confidence(error: Tensor) -> Tensor:
    """Error map -> [0, 1], falling with the logarithm of the error from 1 at SURE to 0 at UNSURE."""
    return (math.log(UNSURE) - error.log()).div_(math.log(UNSURE / SURE)).clamp_(0, 1)


def quantise_confidence(confidence: Tensor, bits: int) -> Tensor:
    """[0, 1] of any shape -> uint8 levels 0 (least sure) to 2^bits - 1 (surest), to the nearest; NaN is least sure."""
    return confidence.nan_to_num(0).clamp(0, 1).mul_(2**bits - 1).round_().to(torch.uint8)


@dataclass(frozen=True, slots=True)
class MetricFit:
    """What makes metres of relative maps: float32 (N,) each, NaN where nothing does.

    Attributes:
        scale, shift: of disparity, 1 / metres = scale * d + shift; of affine-invariant depth, metres = scale * d + shift.
        residual: median of |metres - those of the checker| / those of the checker.
    """

    scale: Tensor
    shift: Tensor
    residual: Tensor


def fit_metric(label: Tensor, kind: Kind, metres: Tensor) -> MetricFit:
    """The robust fit of relative maps to metres, on a grid of their pixels.

    Args:
        label: float32 (N, h, w), finite.
        kind: of `label`, disparity or depth.
        metres: float32 (N, h, w); pixels that are not finite or below NEAREST_METRES do not count.
    """
    d, known = grid(label), grid(metres)
    valid = known.isfinite() & (known >= NEAREST_METRES)
    known = torch.where(valid, known, 1)
    inverse = kind is Kind.DISPARITY
    scale, shift = fit_robust(d, 1 / known if inverse else known, valid)
    line = scale[:, None] * d + shift[:, None]
    found = torch.where(line > 0, 1 / line, torch.inf) if inverse else line.clamp_min(0)
    off = torch.where(valid, (found - known).abs() / known, torch.nan)
    residual = off.nanmedian(1).values
    good = scale.isfinite() & shift.isfinite() & residual.isfinite()
    return MetricFit(*(torch.where(good, value, torch.nan) for value in (scale, shift, residual)))
