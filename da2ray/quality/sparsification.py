"""Measure whether an uncertainty knows where the errors are: sparsification curves and the areas between them (arXiv 1802.07095).

A curve follows the mean error of the remaining pixels while the most uncertain ones are removed. It falls fast if the
uncertainty is good, not at all if it is random, and as fast as possible if it is the error itself (the oracle).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.floating]

STEPS = 100
"""Shares removed, 0 % to 99 %, as in the literature. With 100 % removed there is no mean."""


@dataclass(frozen=True, slots=True)
class Sparsification:
    """The curves of one map. Errors are in units of the mean error, so that the random curve is 1 everywhere.

    Attributes:
        curve, oracle: float64 (STEPS,), mean error of the remaining pixels after 0 %, 1 %, ... are removed.
        ause: area between the curve and the oracle; 0 is perfect.
        aurg: area between the random curve and the curve; 0 is chance, below 0 is worse than chance.
    """

    curve: NDArray[np.float64]
    oracle: NDArray[np.float64]
    ause: float
    aurg: float


def sparsification(error: Values, uncertainty: Values) -> Sparsification | None:
    """Compute the curves of an uncertainty, larger = less sure.

    Pixels of equal uncertainty are removed in random order, and the curve is the expectation: removing a share of a tied group
    removes that share of its error. So a mask of four levels is judged by what it says, and a constant mask gives the random
    curve.

    Args:
        error, uncertainty: (P,), finite; error is not negative.

    Returns:
        None if there is no pixel, or no pixel has an error.
    """
    mean = float(error.mean(dtype=np.float64)) if len(error) else 0.0
    if mean == 0:
        return None
    curve, oracle = _remaining(error, uncertainty) / mean, _remaining(error, error) / mean
    area = 1 / STEPS
    return Sparsification(curve, oracle, float((curve - oracle).sum() * area), float((1 - curve).sum() * area))


def _remaining(error: Values, uncertainty: Values) -> NDArray[np.float64]:
    """Expected mean error of the remaining pixels, float64 (STEPS,)."""
    # By ascending -uncertainty the least sure come first.
    _, group, counts = np.unique(-uncertainty, return_inverse=True, return_counts=True)
    sums = np.bincount(group, weights=error)
    removed = np.arange(STEPS) / STEPS * len(error)
    ends = np.concatenate([[0], np.cumsum(counts)])
    gone = np.interp(removed, ends, np.concatenate([[0.0], np.cumsum(sums)]))
    return (sums.sum() - gone) / (len(error) - removed)
