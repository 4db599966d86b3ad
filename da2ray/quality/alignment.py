"""Fit one depth map to another: in batches, on the device of the input, without waiting for it.

Both kinds of fit find a scale and a shift for each image. `fit` is least squares and measures disagreement: every pixel
counts. `fit_robust` is for numbers that the index keeps: if a fifth of the pixels are all wrong, it moves by less than a
thousandth.
"""

import torch
from torch import Tensor

from da2ray.teachers.base import Kind

NEAREST = 0.02
"""Floor of depth before 1 / depth, as a share of the map's mean. Without it, a few pixels near 0 would dominate least squares.
In a room with a mean depth of 5 m the floor is 10 cm."""
POINTS = 4096
"""The most pixels that a robust fit looks at, on an even grid."""
PAIRS = 64
"""Lines through two points that a robust fit tries. With 40 % outliers, one pair in three is good."""
STEPS = 4
"""Steps of reweighted least squares, beginning with the best of those lines."""
BISQUARE = 4.685
"""Tukey's constant, in standard deviations of the residuals: pixels further away do not count."""
NORMAL = 1.4826
"""Factor from the median absolute deviation to the standard deviation of a normal distribution."""


def to_disparity(depth: Tensor, kind: Kind) -> Tensor:
    """Convert maps of a kind, float32 (N, h, w), to disparity: 1 / depth, with depth at least NEAREST of its mean.

    The shift of affine-invariant depth is unknown, so its inverse is one of many. A map that is not finite gives NaN.
    """
    if kind is Kind.DISPARITY:
        return depth
    mean = depth.mean((1, 2), keepdim=True)
    floor = (NEAREST * mean).clamp_min(torch.finfo(torch.float32).tiny)
    return 1 / depth.maximum(torch.where(mean.isfinite(), floor, torch.nan))


def fit(source: Tensor, target: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Fit target ~ scale * source + shift by least squares.

    Args:
        source, target: float32 (N, P).
        weights: float32 (N, P), not negative; None weighs all pixels alike.

    Returns:
        scale, shift: float32 (N,); the scale is 0 if the source is constant.
    """
    weights = torch.ones_like(source) if weights is None else weights
    total = weights.sum(1).clamp_min(torch.finfo(torch.float32).tiny)
    middle = (weights * source).sum(1) / total
    height = (weights * target).sum(1) / total
    # Subtract the means first, so that float32 sums lose nothing.
    across = source - middle[:, None]
    spread = (weights * across.square()).sum(1)
    slope = (weights * across * (target - height[:, None])).sum(1)
    scale = torch.where(spread > 0, slope / spread, 0)
    return scale, height - scale * middle


def fit_robust(source: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Fit target ~ scale * source + shift so that outliers hardly move it.

    Try lines through pairs of points, take the one with the least median residual (a RANSAC without a threshold), and refine it
    by bisquare-weighted least squares. Huber or bisquare weights alone are not enough: if a fifth of the pixels, at the near
    end, are far in the target, both start from least squares and end with an error above the map's own deviation, while PAIRS
    lines find the exact fit. On 16 maps with 5 % noise and 20 % outliers the lines alone miss by 2 %, with the steps by 0.2 %.

    Args:
        source, target: float32 (N, P).
        valid: bool (N, P), pixels that count.

    Returns:
        scale, shift: float32 (N,); NaN if no pixel is valid.
    """
    missing = torch.where(valid, 0, torch.nan)
    first, second = _pairs(source.shape[1], source.device)
    run, rise = source[:, second] - source[:, first], target[:, second] - target[:, first]
    scales = rise / run  # (N, PAIRS); two equal pixels give no finite line, which is never the best
    shifts = target[:, first] - scales * source[:, first]
    residuals = target[:, None] - scales[:, :, None] * source[:, None] - shifts[:, :, None] + missing[:, None]
    medians = residuals.abs().nanmedian(2).values
    best = medians.nan_to_num(torch.inf).argmin(1, keepdim=True)
    scale, shift = scales.gather(1, best)[:, 0], shifts.gather(1, best)[:, 0]
    flat = ~(scale.isfinite() & shift.isfinite())
    scale = torch.where(flat, 0, scale)
    shift = torch.where(flat, (target + missing).nanmedian(1).values, shift)
    for _ in range(STEPS):
        distance = (target - scale[:, None] * source - shift[:, None] + missing).abs()
        deviation = (NORMAL * distance.nanmedian(1, keepdim=True).values).clamp_min(torch.finfo(torch.float32).tiny)
        # An exact fit has a deviation of 0, or of rounding errors: let pixels within rounding count too.
        deviation = deviation.maximum(torch.finfo(torch.float32).eps * target.abs().amax(1, keepdim=True))
        weights = (1 - (distance / (BISQUARE * deviation)).square()).clamp_min(0).square()
        scale, shift = fit(source, target, weights.nan_to_num(0))
    any_valid = valid.any(1)
    return torch.where(any_valid, scale, torch.nan), torch.where(any_valid, shift, torch.nan)


def grid(maps: Tensor) -> Tensor:
    """Pick an even grid of at most POINTS pixels: (N, h, w) -> (N, P)."""
    height, width = maps.shape[1:]
    step = 1
    while -(-height // step) * -(-width // step) > POINTS:
        step += 1
    top, left = min(step // 2, (height - 1) // 2), min(step // 2, (width - 1) // 2)
    return maps[:, top::step, left::step].flatten(1)


def _pairs(points: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices of PAIRS pairs of points, spread evenly over all pairs by the R2 sequence (powers of 1 / the plastic number)."""
    steps = torch.arange(1, PAIRS + 1, device=device, dtype=torch.float64)
    first, second = (
        (steps * irrational % 1 * points).long() for irrational in (0.7548776662466927, 0.5698402909980532)
    )
    return first, second
