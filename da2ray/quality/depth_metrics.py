"""The standard measures of depth against ground truth, on NumPy arrays.

Relative depth is first aligned: affinely, in disparity, by least squares, as Depth Anything V2 is evaluated (arXiv 2406.09414).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from da2ray.teachers.base import Kind

Values = NDArray[np.floating]

FARTHEST = 80.0
"""Metres beyond which nothing is judged, as on KITTI and Virtual KITTI."""
LEAST_SHARE = 0.01
"""Of a picture that must have a true depth nearer than that, for it to be judged."""
SMALLEST_DISPARITY = 1e-3
"""1 / metres to which an aligned prediction is clipped before it is inverted, as the official evaluation does."""
CONTOUR_RATIOS = np.linspace(1.05, 1.25, 10)
"""Of neighbouring depths, beyond which there is an occluding contour: Depth Pro's released evaluation (arXiv 2410.02073)."""


def aligned_depth(disparity: Values, depth: Values, farthest: float) -> Values:
    """A relative prediction as metres.

    Args:
        disparity: (P,) prediction up to scale and shift, larger = nearer.
        depth: (P,) true metres, positive and finite.
        farthest: metres; what comes out is clipped to that.

    Returns:
        (P,) metres, by the scale and shift that fit 1 / `depth` best.
    """
    scale, shift = affine_fit(disparity, 1 / depth.astype(np.float64))
    fitted = np.maximum(scale * disparity + shift, SMALLEST_DISPARITY)
    return np.minimum(1 / fitted, farthest)


def affine_fit(values: Values, target: Values) -> tuple[float, float]:
    """The scale and shift of (P,) `values` that fit (P,) `target` best, by least squares in double precision."""
    sides = np.stack([values, np.ones_like(values)], axis=1).astype(np.float64)
    scale, shift = np.linalg.lstsq(sides, target, rcond=None)[0]
    return scale, shift


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


def auroc(score: Values, bad: NDArray[np.bool_]) -> float:
    """Chance that a bad one has a higher score than one that is not; of two that are equal, half (Mann-Whitney).

    Args:
        score, bad: (P,). NaN where all are bad, or none.
    """
    positives = int(bad.sum())
    pairs = positives * (len(bad) - positives)
    if not pairs:
        return float("nan")
    return float((_ranks(score)[bad].sum() - positives * (positives - 1) / 2) / pairs)


def ordinal_accuracy(values: Values, pairs: NDArray[np.integer], kind: Kind) -> float:
    """Share of pairs of points whose order is seen, in DA-2K's convention (arXiv 2406.09414, section 6).

    Args:
        values: (H, W) of `kind`.
        pairs: int (P, 2, 2): of each pair the nearer point, then the other one, as [row, column].

    A tie is wrong: a constant map sees nothing.
    """
    first, second = (values[pairs[:, place, 0], pairs[:, place, 1]] for place in (0, 1))
    return float(np.mean(first > second if kind is Kind.DISPARITY else first < second))


@dataclass(frozen=True, slots=True)
class Boundaries:
    """How well occluding contours are found, each 0 to 1, means over `CONTOUR_RATIOS` weighted by the ratio."""

    precision: float
    recall: float
    f1: float


def boundaries(prediction: Values, truth: Values) -> Boundaries:
    """Scale-invariant boundary precision, recall and F1 after Depth Pro (arXiv 2410.02073, "metrics for sharp boundaries").

    A contour lies between two neighbours, and has a direction, where one is farther than the other by more than a ratio.
    Precision and recall are the means over the four directions, as in the released evaluation: a direction without
    contours counts 0. Invariant to scale, not to shift: align relative depth first.

    Args:
        prediction, truth: (H, W) metres, positive. Truth may be infinite (sky), which is farther than anything that is not;
            where it is NaN or not positive it is unknown, and its pairs do not count.
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
            # Of two that are infinitely far none is farther.
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
    """Contours of one direction: those that both have, those found, those wanted."""
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
