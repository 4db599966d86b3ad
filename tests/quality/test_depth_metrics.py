"""Each standard measure agrees with a case worked by hand."""

from dataclasses import astuple

import numpy as np
import pytest

from da2ray.quality.depth_metrics import (
    CONTOUR_RATIOS,
    Boundaries,
    abs_rel,
    aligned_depth,
    auroc,
    boundaries,
    delta,
    ordinal_accuracy,
    spearman,
)
from da2ray.teachers.base import Kind

TRUTH = np.array([1.0, 2.0, 4.0, 8.0])


def test_alignment_undoes_any_scale_and_shift_of_disparity() -> None:
    np.testing.assert_allclose(aligned_depth(30 / TRUTH - 2, TRUTH, 80), TRUTH)
    np.testing.assert_allclose(aligned_depth(30 / TRUTH - 2, TRUTH, 5), [1, 2, 4, 5])


def test_disparity_that_aligns_to_zero_or_less_is_as_far_as_allowed() -> None:
    # The best line through (0, 1), (0, 1), (1, 1), (10, 0) falls below zero at the last: far, not behind the camera.
    assert aligned_depth(np.array([0.0, 0.0, 1.0, 30.0]), np.array([1.0, 1.0, 1.0, 1e6]), 80)[-1] == 80


def test_abs_rel_and_delta_by_hand() -> None:
    prediction = np.array([1.1, 2.0, 6.0, 4.0])
    assert abs_rel(prediction, TRUTH) == pytest.approx((0.1 + 0 + 0.5 + 0.5) / 4)
    # Ratios 1.1, 1, 1.5, 2 against 1.25, 1.5625 and 1.953.
    assert [delta(prediction, TRUTH, power) for power in (1, 2, 3)] == [0.5, 0.75, 0.75]


def test_spearman_by_hand() -> None:
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 100.0, 1e6])) == pytest.approx(1)
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])) == pytest.approx(-1)
    # Ranks 0 1.5 1.5 3 and 0 1 2 3: covariance 4.5 over the root of 4.5 * 5.
    assert spearman(np.array([1.0, 5.0, 5.0, 9.0]), np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(4.5 / 22.5**0.5)
    assert np.isnan(spearman(np.ones(3), np.arange(3.0)))


def test_auroc_by_hand_ties_count_half() -> None:
    # Bad: 3 and 2; good: 1, 2, 4. Pairs won: 3 > 1, 3 > 2; 2 > 1, 2 = 2 half: 3.5 of 6.
    score, bad = np.array([3.0, 2.0, 1.0, 2.0, 4.0]), np.array([True, True, False, False, False])
    assert auroc(score, bad) == pytest.approx(3.5 / 6)
    assert auroc(-score, bad) == pytest.approx(2.5 / 6)
    assert auroc(np.ones(5), bad) == 0.5
    assert np.isnan(auroc(score, np.zeros(5, dtype=bool)))


def test_ordinal_accuracy_reads_points_as_row_and_column_and_a_tie_as_wrong() -> None:
    disparity = np.array([[9.0, 5.0, 1.0], [5.0, 4.0, 3.0]])
    pairs = np.array(
        [
            [[0, 0], [0, 2]],  # 9 > 1: right
            [[1, 2], [0, 2]],  # 3 > 1: right; taken as (x, y) it would be outside
            [[0, 1], [1, 0]],  # 5 and 5: wrong
            [[1, 2], [1, 1]],  # 3 < 4: wrong
        ]
    )
    assert ordinal_accuracy(disparity, pairs, Kind.DISPARITY) == 0.5
    assert ordinal_accuracy(disparity, pairs, Kind.METRIC) == 0.25
    assert ordinal_accuracy(np.ones((2, 3)), pairs, Kind.DISPARITY) == 0


def staircase(*depths: float) -> np.ndarray:
    """(2, n) with equal rows, so that no contour lies between them."""
    return np.array([depths, depths], dtype=np.float64)


def test_boundaries_by_hand() -> None:
    # Farther to the right at 0|1 and 3|4, to the left at 1|2. Two of the four directions have contours; the others count 0.
    truth = staircase(1, 2, 1, 1, 4)
    assert astuple(boundaries(7 * truth, truth)) == pytest.approx((0.5, 0.5, 0.5))
    # To the right, one of two is found, and one that does not exist; to the left, the only one is found.
    found = boundaries(staircase(1, 2, 1, 4, 4), truth)
    assert astuple(found) == pytest.approx(((0.5 + 1) / 4, (0.5 + 1) / 4, (0.5 + 1) / 4))
    # After a shift the ratios are 3:2 and 5:2, so all contours are still found. A smooth map has none.
    assert boundaries(truth + 1, truth).recall == pytest.approx(0.5)
    assert boundaries(np.ones((2, 5)), truth) == Boundaries(0, 0, 0)


def test_larger_ratios_weigh_more_and_what_is_unknown_does_not_count() -> None:
    # A step of 1.15 is a contour only at ratios below 1.15.
    step = staircase(1, 1.15)
    below = CONTOUR_RATIOS < 1.15
    weight = CONTOUR_RATIOS[below].sum() / CONTOUR_RATIOS.sum()
    assert boundaries(step, step).f1 == pytest.approx(0.25 * weight)
    # Sky is farther than everything. Unknown neighbours (0, NaN) are neither true contours nor false ones.
    truth = staircase(1, np.inf, np.inf, np.nan, 3, 0)
    assert boundaries(staircase(1, 80, 80, 1, 9, 1), truth).precision == pytest.approx(0.25)
