"""What scores are made of: shares, histograms, entropy. Batched, on the device of the input, without waiting for it."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Comparison = Callable[..., Tensor]
"""torch.eq and the like: values, bound and `out`."""

POINTS = 4096
"""Pixels that stand for a map where it is sorted, at most: of all of them that takes a hundred times as long."""


def share(comparison: Comparison, values: Tensor, bound: Tensor | float) -> Tensor:
    """The share of each row's values for which `comparison` with `bound` holds, exact up to 2^24 of them.

    Compared into float32: as bools, which CPUs neither make nor count in vectors, it takes three times as long.

    Args:
        comparison: torch.eq, torch.le, …
        values: float32 (N, P).
        bound: a number, or (N, 1).

    Returns:
        float32 (N,).
    """
    return comparison(values, bound, out=torch.empty_like(values)).sum(1) / values.shape[1]


def share_true(chosen: Tensor) -> Tensor:
    """bool (N, ...) -> float32 (N,): the share that is True, likewise exact."""
    flat = chosen.flatten(1)
    return flat.view(torch.int8).sum(1, dtype=torch.int32) / flat.shape[1]


def spread_out(maps: Tensor) -> Tensor:
    """(N, h, w) -> (N, P): every k-th pixel in the order of rows, at most POINTS.

    k has no factor in common with the width, so that all rows and columns are there: an even grid of a floor, which is alike
    along its rows, would be as few values as it has rows.
    """
    height, width = maps.shape[1:]
    step = max(-(-height * width // POINTS), 1)
    while math.gcd(step, width) > 1:
        step += 1
    return maps.flatten(1)[:, ::step]


def percentile(ordered: Tensor, part: float) -> Tensor:
    """The least value that a share of them does not exceed: (N, P), sorted -> (N,)."""
    return ordered[:, math.ceil(part * ordered.shape[1]) - 1]


def histogram(places: Tensor, bins: int) -> Tensor:
    """How many values of each row lie in each bin.

    Args:
        places: (N, P), numbers of bins, rounded towards 0; those outside of 0 to `bins` - 1 count for the bin nearest to them.
        bins: how many there are.

    Returns:
        float32 (N, bins). Ones are added, so that the order of adding, which devices leave open, changes nothing.
    """
    index = places.long().clamp_(0, bins - 1)  # in this order NaN has a place too: a wrong one ends a CUDA process
    ones = torch.ones((), device=places.device).expand_as(index)
    return torch.zeros((len(places), bins), device=places.device).scatter_add_(1, index, ones)


def entropy(counts: Tensor) -> Tensor:
    """(N, bins) counts -> float32 (N,) bits."""
    shares = counts / counts.sum(1, keepdim=True)
    return (shares * shares.clamp_min(torch.finfo(torch.float32).tiny).log2()).sum(1).abs()  # and no -0


def mean_and_variance(values: Tensor) -> tuple[Tensor, Tensor]:
    """(N, P) -> (N,) each, of the values as a population. In two passes: torch.var takes ten times as long on a CPU."""
    mean = values.mean(1)
    return mean, (values - mean[:, None]).square_().mean(1)
