"""Scores of a depth map, alone and beside its image: in batches, on the device of the input, without waiting for it.

Percentiles and the histogram look at up to 4096 pixels, spread evenly (`da2ray.quality.statistics.spread_out`). The scale of a
map changes only the three values in its unit and, for metres, the far class. Its shift does not change occupancy, entropy,
edge alignment and continuity either.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from da2ray.quality.statistics import entropy, histogram, percentile, share, share_true, spread_out
from da2ray.teachers.base import Kind

BINS = 64
"""Bins of the histogram, from a map's smallest value to its largest."""
IN_USE = 1 / 1000
"""Share of a map that must lie in a bin for the bin to count as in use: about 1 / 16 of an even share."""
EDGE_JUMP = 0.02
"""Share of P95 - P5: neighbours that differ by more, at a short side of 256 pixels, are a depth edge. The floor of a room that
takes up the whole range from top to bottom has 0.004 between neighbours. If a network spreads a step over 3 such pixels, the
step is an edge from 6 % of the range on. (At 0.05 the embedded teacher, whose maps are soft, had no edge in any of nine
photographs.)"""
EDGES_LEAST = 1 / 2000
"""Share of pixels that must be depth edges for their alignment to mean something: 43 pixels of 256 x 341."""
IMAGE_EDGES = 0.9
"""Quantile of the differences of neighbouring grey levels above which there is an image edge: the tenth that changes most ..."""
CONTRAST = 4.0
"""... if the difference is also above this many levels of 0 to 255, so that noise makes no edges."""
REACH = 2
"""Pixels along each side between a depth edge and an image edge that still count as aligned: 4 at the official network size."""
LINES = 4
"""The continuity of gradients looks at every LINES-th row and column."""
FAR_DISPARITY = 0.01
"""Share of a map's P99: pixels at least a hundred times as far as the nearest things, or exactly 0, have no distance."""
FAR_METRES = 76.0
"""95 % of 80 m: outdoor heads end there, and Virtual KITTI, on which they were trained, has its sky there."""


@dataclass(frozen=True, slots=True)
class DepthStatistics:
    """The scores of N maps.

    Attributes:
        scores: float32 (N,) each, NaN if the score means nothing for a map; by the names of the index.
        far: bool (N, h, w), pixels of the far class; None if the kind has no far class.
    """

    scores: dict[str, Tensor]
    far: Tensor | None


def depth_statistics(depth: Tensor, kind: Kind, levels: Tensor) -> DepthStatistics:
    """Compute all depth scores but `nonfinite_share`.

    Args:
        depth: float32 (N, h, w), finite.
        kind: kind of `depth`.
        levels: float32 (N, rows, columns), grey levels of the same images at their scored size.

    Returns:
        depth_min, depth_max, depth_mean: in the unit of the depth.
        depth_range: (P95 - P5) / mean; NaN if the mean is not positive.
        depth_occupancy: share of BINS bins in use: near 0 if the map is flat, or has a few pixels far off all others.
        depth_entropy: entropy of the histogram, 0 to 6 bits.
        zero_share: share of pixels that are exactly 0.
        saturated_share: share of pixels at exactly the largest value, where a head ends.
        far_share: share of the far class; NaN if it cannot be known: affine-invariant depth, disparity below 0.
        edge_alignment, gradient_continuity: see the functions of that name.
    """
    flat = depth.flatten(1)
    low, high, mean = flat.amin(1), flat.amax(1), flat.mean(1)
    ordered = spread_out(depth).sort(1).values
    spread = percentile(ordered, 0.95) - percentile(ordered, 0.05)
    within = (ordered - low[:, None]) / (high - low)[:, None]  # NaN for a constant map
    counts = histogram(within.nan_to_num_(0).mul_(BINS), BINS)
    far = far_class(depth, kind, low, high, percentile(ordered, 0.99))
    scores = {
        "depth_min": low,
        "depth_max": high,
        "depth_mean": mean,
        "depth_range": torch.where(mean > 0, spread / mean, torch.nan),
        "depth_occupancy": (counts > IN_USE * ordered.shape[1]).float().mean(1),
        "depth_entropy": entropy(counts),
        "zero_share": share(torch.eq, flat, 0),
        "saturated_share": share(torch.eq, flat, high[:, None]),
        "far_share": _far_share(far, kind, low),
        "edge_alignment": edge_alignment(depth, spread, levels),
        "gradient_continuity": gradient_continuity(depth),
    }
    return DepthStatistics(scores, far)


def nonfinite_share(depth: Tensor, finite: Tensor) -> Tensor:
    """Share of NaN and infinite pixels of each map, float32 (N,).

    Args:
        depth: (N, h, w).
        finite: bool (N,), maps that are finite everywhere.
    """
    if depth.device.type == "cpu" and bool(finite.all()):  # free to look at on a CPU; counting takes 2 ms an image
        return torch.zeros(len(depth))
    return 1 - share_true(depth.isfinite())


def far_class(depth: Tensor, kind: Kind, low: Tensor, high: Tensor, p99: Tensor) -> Tensor | None:
    """Find the pixels without a distance, such as sky.

    Disparity: pixels at or below FAR_DISPARITY of the map's P99. A map has none if it is constant, its P99 is not positive, or
    it has values below 0: then 0 does not mean infinitely far. Metric: pixels from FAR_METRES on. Affine-invariant depth: None,
    since its zero is unknown.

    Args:
        depth: float32 (N, h, w), finite.
        kind: kind of `depth`.
        low, high: float32 (N,), least and largest value of each map.
        p99: float32 (N,), 99th percentile of each map.

    Returns:
        bool (N, h, w).
    """
    if kind is Kind.METRIC:
        return depth >= FAR_METRES
    if kind is Kind.DEPTH:
        return None
    threshold = torch.where((low >= 0) & (high > low) & (p99 > 0), FAR_DISPARITY * p99, -torch.inf)
    return depth <= threshold[:, None, None]


def _far_share(far: Tensor | None, kind: Kind, low: Tensor) -> Tensor:
    if far is None:
        return torch.full_like(low, torch.nan)
    share_far = share_true(far)
    return torch.where(low >= 0, share_far, torch.nan) if kind is Kind.DISPARITY else share_far


def edge_alignment(depth: Tensor, spread: Tensor, levels: Tensor) -> Tensor:
    """Share of depth edges that have an image edge within REACH pixels; NaN if there are hardly any depth edges.

    Only this direction means anything: textures have edges without an edge in depth. Depth is brought to the scored size by
    nearest pixels. A pixel is an edge if the value to the right or below differs by more than a threshold. The threshold is
    EDGE_JUMP of P95 - P5 for depth, and for the image the IMAGE_EDGES quantile of such differences, or CONTRAST if that is more.

    Args:
        depth: float32 (N, h, w), finite.
        spread: float32 (N,), P95 - P5 of each map.
        levels: float32 (N, rows, columns), grey levels.

    Returns:
        float32 (N,). Edges at random would get the share of the image within reach of its edges, 0.2 to 0.5.
    """
    resized = interpolate(depth[:, None], levels.shape[1:], mode="nearest-exact")[:, 0]
    edges = _steps(resized) > (EDGE_JUMP * spread)[:, None, None]
    contrast = _steps(levels)
    threshold = percentile(spread_out(contrast).sort(1).values, IMAGE_EDGES).clamp_min(CONTRAST)
    near = _dilated(contrast > threshold[:, None, None], REACH)
    found = share_true(edges)
    return torch.where(found >= EDGES_LEAST, share_true(edges & near) / found, torch.nan)


def _steps(maps: Tensor) -> Tensor:
    """The larger of the differences to the pixel on the right and to the one below: (N, h, w) -> (N, h - 1, w - 1)."""
    here = maps[:, :-1, :-1]
    return (maps[:, :-1, 1:] - here).abs_().maximum((maps[:, 1:, :-1] - here).abs_())


def _dilated(chosen: Tensor, reach: int) -> Tensor:
    """Grow the True pixels of bool (N, h, w) by `reach` pixels along each side."""
    for dim in (1, 2):
        length, grown = chosen.shape[dim], chosen.clone()
        for shift in range(1, min(reach, length - 1) + 1):
            rest = length - shift
            grown.narrow(dim, shift, rest).logical_or_(chosen.narrow(dim, 0, rest))
            grown.narrow(dim, 0, rest).logical_or_(chosen.narrow(dim, shift, rest))
        chosen = grown
    return chosen


def gradient_continuity(depth: Tensor) -> Tensor:
    """Autocorrelation of a map's gradients: how well a gradient predicts the next one.

    sum(g_i * g_i+1) / sqrt(sum(g_i^2) * sum(g_i+1^2)), numerator and denominator added up over rows and columns. 1: smooth
    everywhere; 0: neighbouring gradients are unrelated, as in a map of steps; -0.5: noise. NaN for a constant map.

    Args:
        depth: float32 (N, h, w), finite.

    Returns:
        float32 (N,).
    """
    found, most = torch.zeros((2, len(depth)), device=depth.device)
    for lines in (depth[:, ::LINES], depth[:, :, ::LINES].transpose(1, 2)):
        gradients = lines.diff(dim=2)
        first, second = gradients[:, :, :-1], gradients[:, :, 1:]
        found = found + (first * second).sum((1, 2))
        most = most + (first.square().sum((1, 2)) * second.square().sum((1, 2))).sqrt()
    return torch.where(most > 0, found / most, torch.nan)
