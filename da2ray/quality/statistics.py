"""Building blocks of scores: shares, histograms, entropy. In batches, on the device of the input, without waiting for it."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Comparison = Callable[..., Tensor]
"""A function such as torch.eq, which takes values, a bound and `out`."""

POINTS = 4096
"""The most pixels that stand for a map in a sort. Sorting all pixels takes a hundred times as long."""


def share(comparison: Comparison, values: Tensor, bound: Tensor | float) -> Tensor:
    """Share of each row's values for which `comparison` with `bound` holds. Exact for up to 2^24 values.

    The comparison writes float32. With bools, which CPUs neither make nor count in vectors, it takes three times as long.

    Args:
        comparison: torch.eq, torch.le, ...
        values: float32 (N, P).
        bound: a number, or (N, 1).

    Returns:
        float32 (N,).
    """
    return comparison(values, bound, out=torch.empty_like(values)).sum(1) / values.shape[1]


def share_true(chosen: Tensor) -> Tensor:
    """Share of True in each item: bool (N, ...) -> float32 (N,). Exact, like `share`."""
    flat = chosen.flatten(1)
    return flat.view(torch.int8).sum(1, dtype=torch.int32) / flat.shape[1]


def spread_out(maps: Tensor) -> Tensor:
    """Pick every k-th pixel in the order of rows, at most POINTS: (N, h, w) -> (N, P).

    k has no factor in common with the width, so that all rows and columns occur. An even grid would give a floor, which is
    alike along each row, only as many values as the grid has rows.
    """
    height, width = maps.shape[1:]
    step = max(-(-height * width // POINTS), 1)
    while math.gcd(step, width) > 1:
        step += 1
    return maps.flatten(1)[:, ::step]


def percentile(ordered: Tensor, part: float) -> Tensor:
    """The least value that a share of the values does not exceed: (N, P), sorted -> (N,)."""
    return ordered[:, math.ceil(part * ordered.shape[1]) - 1]


def histogram(places: Tensor, bins: int) -> Tensor:
    """Count how many values of each row lie in each bin.

    Args:
        places: (N, P), bin numbers, rounded towards 0. A number outside of 0 to `bins` - 1 counts for the nearest bin.
        bins: number of bins.

    Returns:
        float32 (N, bins). Only ones are added, so the order of additions, which devices leave open, changes nothing.
    """
    # Clamp last, so that NaN has a valid bin too: an invalid one ends a CUDA process.
    index = places.long().clamp_(0, bins - 1)
    ones = torch.ones((), device=places.device).expand_as(index)
    return torch.zeros((len(places), bins), device=places.device).scatter_add_(1, index, ones)


def entropy(counts: Tensor) -> Tensor:
    """Entropy of histograms in bits: counts (N, bins) -> float32 (N,)."""
    shares = counts / counts.sum(1, keepdim=True)
    return (shares * shares.clamp_min(torch.finfo(torch.float32).tiny).log2()).sum(1).abs()  # abs turns -0 into 0


def mean_and_variance(values: Tensor) -> tuple[Tensor, Tensor]:
    """Population mean and variance of each row: (N, P) -> (N,) each.

    In two passes: torch.var takes ten times as long on a CPU.
    """
    mean = values.mean(1)
    return mean, (values - mean[:, None]).square_().mean(1)
