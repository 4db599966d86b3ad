"""Does an uncertainty know where the errors are? Sparsification curves and the areas between them (arXiv 1802.07095).

The most uncertain pixels are removed first, and the mean error of what remains is followed: it falls fast where the uncertainty
is good, not at all where it is random, and as fast as can be where it is the error itself (the oracle).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.floating]

STEPS = 100
"""Shares removed, 0 % to 99 %: as in the literature. Of none remaining there is no mean."""


@dataclass(frozen=True, slots=True)
class Sparsification:
    """Of one map. Errors are in units of the mean error, so that the random curve is 1 everywhere.

    Attributes:
        curve, oracle: float64 (STEPS,): what remains after 0 %, 1 %, ... were removed.
        ause: area between the curve and the oracle; 0 is perfect.
        aurg: area between the random curve and ours; 0 is no better than chance, below 0 worse.
    """

    curve: NDArray[np.float64]
    oracle: NDArray[np.float64]
    ause: float
    aurg: float


def sparsification(error: Values, uncertainty: Values) -> Sparsification | None:
    """The curves of an uncertainty, larger = less sure.

    Pixels of equal uncertainty go in random order, and the curve is the expectation over it: a share of a tied group takes that
    share of its error along. So a mask of four levels is judged by what it says, and a constant one is the random curve.

    Args:
        error, uncertainty: (P,), finite, error not negative.

    Returns:
        None where there is no error at all, or no pixel.
    """
    mean = float(error.mean(dtype=np.float64)) if len(error) else 0.0
    if mean == 0:
        return None
    curve, oracle = _remaining(error, uncertainty) / mean, _remaining(error, error) / mean
    area = 1 / STEPS
    return Sparsification(curve, oracle, float((curve - oracle).sum() * area), float((1 - curve).sum() * area))


def _remaining(error: Values, uncertainty: Values) -> NDArray[np.float64]:
    """Expected mean error of what remains, float64 (STEPS,)."""
    # Ascending -uncertainty: the least sure come first.
    _, group, counts = np.unique(-uncertainty, return_inverse=True, return_counts=True)
    sums = np.bincount(group, weights=error)
    removed = np.arange(STEPS) / STEPS * len(error)
    ends = np.concatenate([[0], np.cumsum(counts)])
    gone = np.interp(removed, ends, np.concatenate([[0.0], np.cumsum(sums)]))
    return (sums.sum() - gone) / (len(error) - removed)
