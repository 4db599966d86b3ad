"""Standard measures of depth against ground truth, on NumPy arrays.

Relative depth is aligned first: a scale and a shift in disparity, by least squares, as in the evaluation of Depth Anything V2
(arXiv 2406.09414).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from da2ray.teachers.base import Kind

Values = NDArray[np.floating]

FARTHEST = 80.0
"""Metres beyond which depth is not judged, as on KITTI and Virtual KITTI."""
LEAST_SHARE = 0.01
"""Share of a picture that must have a true depth within FARTHEST; otherwise the picture is not judged."""
SMALLEST_DISPARITY = 1e-3
"""The least 1 / metres of an aligned prediction: it is clipped to that before it is inverted, as in the official evaluation."""
CONTOUR_RATIOS = np.linspace(1.05, 1.25, 10)
"""Ratios of neighbouring depths beyond which there is an occluding contour, from Depth Pro's released evaluation (arXiv
2410.02073)."""


def aligned_depth(disparity: Values, depth: Values, farthest: float) -> Values:
    """Convert a relative prediction to metres, by the scale and shift that fit 1 / `depth` best.

    Args:
        disparity: (P,) prediction up to scale and shift, larger = nearer.
        depth: (P,) true metres, positive and finite.
        farthest: metres to which the result is clipped.

    Returns:
        (P,) metres.
    """
    scale, shift = affine_fit(disparity, 1 / depth.astype(np.float64))
    fitted = np.maximum(scale * disparity + shift, SMALLEST_DISPARITY)
    return np.minimum(1 / fitted, farthest)


def affine_fit(values: Values, target: Values) -> tuple[float, float]:
    """Find the scale and shift with which (P,) `values` fit (P,) `target` best, by least squares in double precision."""
    sides = np.stack([values, np.ones_like(values)], axis=1).astype(np.float64)
    scale, shift = np.linalg.lstsq(sides, target, rcond=None)[0]
    return scale, shift


def abs_rel(prediction: Values, truth: Values) -> float:
    """Mean of |prediction - truth| / truth over (P,) metres."""
    return float(np.mean(np.abs(prediction - truth) / truth))


def delta(prediction: Values, truth: Values, power: int = 1) -> float:
    """Share of (P,) metres within a factor of 1.25 ** `power` of the truth."""
    ratio = np.maximum(prediction / truth, truth / prediction)
    return float(np.mean(ratio < 1.25**power))


def spearman(one: Values, other: Values) -> float:
    """Rank correlation of two (P,) series; equal values share their mean rank. NaN if one series is constant."""
    a, b = _ranks(one), _ranks(other)
    a, b = a - a.mean(), b - b.mean()
    length = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / length) if length else float("nan")


def auroc(score: Values, bad: NDArray[np.bool_]) -> float:
    """Chance that a bad item has a higher score than a good one; two equal scores count half (Mann-Whitney).

    Args:
        score, bad: (P,).

    Returns:
        NaN if all items are bad, or none is.
    """
    positives = int(bad.sum())
    pairs = positives * (len(bad) - positives)
    if not pairs:
        return float("nan")
    return float((_ranks(score)[bad].sum() - positives * (positives - 1) / 2) / pairs)


def ordinal_accuracy(values: Values, pairs: NDArray[np.integer], kind: Kind) -> float:
    """Share of pairs of points that a map orders correctly, in DA-2K's convention (arXiv 2406.09414, section 6).

    A tie is wrong: a constant map orders nothing.

    Args:
        values: (H, W), a map of `kind`.
        pairs: int (P, 2, 2): for each pair the nearer point, then the other one, as [row, column].
    """
    first, second = (values[pairs[:, place, 0], pairs[:, place, 1]] for place in (0, 1))
    return float(np.mean(first > second if kind is Kind.DISPARITY else first < second))


@dataclass(frozen=True, slots=True)
class Boundaries:
    """How well a map finds occluding contours: each 0 to 1, the mean over `CONTOUR_RATIOS` weighted by the ratio."""

    precision: float
    recall: float
    f1: float


def boundaries(prediction: Values, truth: Values) -> Boundaries:
    """Scale-invariant boundary precision, recall and F1 after Depth Pro (arXiv 2410.02073, "metrics for sharp boundaries").

    A contour lies between two neighbours if one is farther than the other by more than a ratio, and it has a direction.
    Precision and recall are the means over the four directions, as in the released evaluation: a direction without
    contours counts 0. They do not depend on scale, but on shift: align relative depth first.

    Args:
        prediction, truth: (H, W) metres, positive. Truth may be infinite (sky), which is farther than any finite depth. Truth
            that is NaN or not positive is unknown, and its pairs do not count.
    """
    known = truth > 0
    found: list[NDArray[np.float64]] = []
    wanted: list[NDArray[np.float64]] = []
    for axis in (0, 1):
        pair_known = _before(known, axis) & _after(known, axis)
        for ratio, ratios in ((found, prediction), (wanted, truth)):
            one, other = (side(ratios, axis)[pair_known].astype(np.float64) for side in (_before, _after))
            with np.errstate(divide="ignore", invalid="ignore"):
                forwards = one / other
            # Two infinitely far pixels are equally far.
            forwards = np.nan_to_num(forwards, nan=1.0, posinf=np.inf)
            with np.errstate(divide="ignore"):
                ratio += [forwards, 1 / forwards]
    weights = CONTOUR_RATIOS / CONTOUR_RATIOS.sum()
    precisions, recalls, scores = (np.zeros(len(CONTOUR_RATIOS)) for _ in range(3))
    for place, least in enumerate(CONTOUR_RATIOS):
        counts = np.array([_contours(one, other, least) for one, other in zip(found, wanted, strict=True)])
        precision = np.mean(counts[:, 0] / np.maximum(counts[:, 1], 1))
        recall = np.mean(counts[:, 0] / np.maximum(counts[:, 2], 1))
        precisions[place], recalls[place] = precision, recall
        scores[place] = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return Boundaries(float(weights @ precisions), float(weights @ recalls), float(weights @ scores))


def _contours(found: Values, wanted: Values, least: float) -> tuple[int, int, int]:
    """Count the contours of one direction: in both maps, in the prediction, in the truth."""
    one, other = found > least, wanted > least
    return int(np.count_nonzero(one & other)), int(np.count_nonzero(one)), int(np.count_nonzero(other))


def _before(values: NDArray, axis: int) -> NDArray:
    return values[:-1] if axis == 0 else values[:, :-1]


def _after(values: NDArray, axis: int) -> NDArray:
    return values[1:] if axis == 0 else values[:, 1:]


def _ranks(values: Values) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + last - 1) / 2)[inverse]
