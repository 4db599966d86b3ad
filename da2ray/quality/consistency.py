"""Compare opinions of one image: error maps, their scores, and a confidence from all of them.

If you change any of these, change `COMPARISON` (da2ray/labels/dataset.py) too: it enters the fingerprint. Everything is in
disparity and in batches, on the device of the input, without waiting for it.
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
"""Errors at which confidence reaches 1 (SURE, and below) and 0 (UNSURE, and above): five octaves apart. With 2 bits the levels
3, 2, 1, 0 change at errors of 0.036, 0.113 and 0.36."""
CELLS = 48
WINDOW = 9
"""A confidence follows from the mean error in a neighbourhood of WINDOW x WINDOW cells; the short side has CELLS cells. Single
pixels say little: where two maps cross, they agree by chance. On 300 worlds labelled by the embedded teacher (flip and scale;
da2ray/quality/README.md) the true error at level 0 is 2.5 times that at level 3 with single pixels, and 3.3 times with this
window, which is a fifth of the short side."""
NEAREST_METRES = 1e-3
"""Metres below this do not count: metric heads give such values where they know nothing."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The disagreement of two maps of N images. Where `valid` is False, the other attributes mean nothing.

    Attributes:
        error: float32 (N, h, w), see `compare`; at the size at which the maps were compared.
        mean: float32 (N,), mean of the error.
        p90: float32 (N,), the least error that 90 % of the pixels do not exceed.
        valid: bool (N,), False if one of the two maps is not finite, or the first is constant.
    """

    error: Tensor
    mean: Tensor
    p90: Tensor
    valid: Tensor


def compare(label: Tensor, other: Tensor) -> Comparison:
    """Measure the error of `label` against `other`: |a - (s * b + t)| / mean|a - median(a)|, with s and t by least squares.

    The error has no unit and does not depend on the scale and shift of either map, so that teachers can be compared.

    Args:
        label, other: disparity, float32 (N, h, w); may hold NaN and infinities.
    """
    a, b = label.flatten(1), other.flatten(1)
    scale, shift = fit(b, a)
    deviation = (a - a.median(1, keepdim=True).values).abs().mean(1)
    error = (a - (scale[:, None] * b + shift[:, None])).abs() / deviation[:, None]
    mean = error.mean(1)
    p90 = error.kthvalue(math.ceil(0.9 * error.shape[1]), dim=1).values
    # A NaN or infinity in either map reaches the mean, and so does a deviation of 0.
    return Comparison(error.view(label.shape), mean, p90, mean.isfinite())


def largest_error(comparisons: Sequence[Comparison], size: tuple[int, int]) -> Tensor:
    """Take the largest local mean error of several comparisons of the same N images, pixel by pixel.

    Args:
        comparisons: at least one. Maps of another size are resized (bilinear, half-pixel centres).
        size: (height, width) of the result.

    Returns:
        float32 (N, height, width). An opinion that is not valid for an image does not count there; 0 if no opinion is valid.
    """
    largest: Tensor | None = None
    for each in comparisons:
        error = local_mean(torch.where(each.valid[:, None, None], each.error, 0))
        if error.shape[1:] != size:
            error = interpolate(error[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        largest = error if largest is None else largest.maximum(error)
    assert largest is not None  # noqa: S101 - there is at least one comparison
    return largest


def local_mean(error: Tensor) -> Tensor:
    """Average error maps, float32 (N, h, w), over each pixel's neighbourhood, cut at the border; see WINDOW.

    Average on cells and interpolate back (bilinear, half-pixel centres): 3 ms for an image of 518 x 686 on one core instead of
    160 ms.
    """
    height, width = error.shape[1:]
    factor = min(1.0, CELLS / min(height, width))
    cells = interpolate(error[:, None], (round(height * factor), round(width * factor)), mode="area")
    means = avg_pool2d(cells, WINDOW, stride=1, padding=WINDOW // 2, count_include_pad=False)
    return interpolate(means, (height, width), mode="bilinear", align_corners=False)[:, 0]


def confidence(error: Tensor) -> Tensor:
    """Confidence of an error map, in [0, 1]: it falls with the logarithm of the error, from 1 at SURE to 0 at UNSURE."""
    return (math.log(UNSURE) - error.log()).div_(math.log(UNSURE / SURE)).clamp_(0, 1)


def quantise_confidence(confidence: Tensor, bits: int) -> Tensor:
    """Round confidence to uint8 levels from 0 (least sure) to 2^bits - 1 (surest). Any shape; NaN is least sure."""
    return confidence.nan_to_num(0).clamp(0, 1).mul_(2**bits - 1).round_().to(torch.uint8)


@dataclass(frozen=True, slots=True)
class MetricFit:
    """The fit that turns relative maps into metres: float32 (N,) each, NaN if there is no fit.

    Attributes:
        scale, shift: disparity: 1 / metres = scale * d + shift; affine-invariant depth: metres = scale * d + shift.
        residual: median of |metres - checker's metres| / checker's metres.
    """

    scale: Tensor
    shift: Tensor
    residual: Tensor


def fit_metric(label: Tensor, kind: Kind, metres: Tensor) -> MetricFit:
    """Fit relative maps to metres, robustly, on a grid of their pixels.

    Args:
        label: float32 (N, h, w), finite.
        kind: kind of `label`: disparity or depth.
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
