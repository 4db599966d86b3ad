"""The standard measures of depth against ground truth, on NumPy arrays.

Relative depth is first aligned: affinely, in disparity, by least squares, as Depth Anything V2 is evaluated (arXiv 2406.09414).
"""

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.floating]

SMALLEST_DISPARITY = 1e-3
"""1 / metres to which an aligned prediction is clipped before it is inverted, as the official evaluation does."""


def aligned_depth(disparity: Values, depth: Values, farthest: float) -> Values:
    """A relative prediction as metres.

    Args:
        disparity: (P,) prediction up to scale and shift, larger = nearer.
        depth: (P,) true metres, positive and finite.
        farthest: metres; what comes out is clipped to that.

    Returns:
        (P,) metres, by the scale and shift that fit 1 / `depth` best.
    """
    sides = np.stack([disparity, np.ones_like(disparity)], axis=1).astype(np.float64)
    scale, shift = np.linalg.lstsq(sides, 1 / depth.astype(np.float64), rcond=None)[0]
    fitted = np.maximum(scale * disparity + shift, SMALLEST_DISPARITY)
    return np.minimum(1 / fitted, farthest)


def abs_rel(prediction: Values, truth: Values) -> float:
    """Mean of |prediction - truth| / truth over (P,) metres."""
    return float(np.mean(np.abs(prediction - truth) / truth))


def delta(prediction: Values, truth: Values, power: int = 1) -> float:
    """Share of (P,) metres that are within a factor of 1.25 ** `power` of the truth."""
    ratio = np.maximum(prediction / truth, truth / prediction)
    return float(np.mean(ratio < 1.25**power))


def spearman(one: Values, other: Values) -> float:
    """Rank correlation of two (P,) series; equal values share their mean rank. NaN where one of them is constant."""
    a, b = _ranks(one), _ranks(other)
    a, b = a - a.mean(), b - b.mean()
    length = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / length) if length else float("nan")


def _ranks(values: Values) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + last - 1) / 2)[inverse]
