"""The standard measures, each against a case worked by hand."""

import numpy as np
import pytest

from da2ray.quality.metrics import abs_rel, aligned_depth, delta, spearman

TRUTH = np.array([1.0, 2.0, 4.0, 8.0])


def test_alignment_undoes_any_scale_and_shift_of_disparity() -> None:
    np.testing.assert_allclose(aligned_depth(30 / TRUTH - 2, TRUTH, 80), TRUTH)
    np.testing.assert_allclose(aligned_depth(30 / TRUTH - 2, TRUTH, 5), [1, 2, 4, 5])


def test_what_aligns_to_nothing_or_less_is_as_far_as_may_be() -> None:
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
