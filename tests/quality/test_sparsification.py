"""Areas between sparsification curves: 0 for the error itself, chance for noise, the expectation for ties."""

import numpy as np
import pytest

from da2ray.quality.sparsification import STEPS, Sparsification, sparsification

RNG = np.random.default_rng(0)
ERROR = RNG.exponential(size=20_000)


def curves(error: np.ndarray, uncertainty: np.ndarray) -> Sparsification:
    found = sparsification(error, uncertainty)
    assert found is not None
    return found


def test_the_error_itself_is_the_oracle() -> None:
    for uncertainty in (ERROR, ERROR**3, 5 * ERROR - 2):
        assert curves(ERROR, uncertainty).ause == pytest.approx(0, abs=1e-12)


def test_noise_is_as_good_as_chance_and_the_opposite_of_the_error_is_worse() -> None:
    perfect, noise, opposite = (curves(ERROR, of) for of in (ERROR, RNG.random(len(ERROR)), -ERROR))
    assert noise.aurg == pytest.approx(0, abs=0.02)
    assert noise.ause == pytest.approx(perfect.aurg, abs=0.02)  # everything that the oracle gains over chance
    assert opposite.aurg < -0.2


def test_curves_by_hand() -> None:
    # Errors 4, 0, 0, 0; the wrong pixel comes second. While less than a quarter is removed, it is a right pixel.
    found = curves(np.array([4.0, 0, 0, 0]), np.array([2.0, 3.0, 1.0, 0.0]))
    remaining = [
        4 / (4 - 4 * share) if share <= 0.25 else 4 * (2 - 4 * share) / (4 - 4 * share) for share in (0.1, 0.25, 0.4)
    ]
    assert found.curve[[10, 25, 40]] == pytest.approx(remaining)
    assert found.curve[50:] == pytest.approx(0, abs=1e-12)
    assert found.oracle[[0, 25]] == pytest.approx([1, 0], abs=1e-12)


def test_a_tied_group_counts_by_expectation_whatever_its_order() -> None:
    level = (ERROR < 1).astype(np.float64)  # high where the error is small
    shuffled = RNG.permutation(len(ERROR))
    found = curves(ERROR, -level)
    assert curves(ERROR[shuffled], -level[shuffled]).aurg == pytest.approx(found.aurg)
    # The expectation is the mean of many random orders within the groups.
    broken = [curves(ERROR, -level + 0.5 * RNG.random(len(ERROR))).curve for _ in range(50)]
    assert found.curve == pytest.approx(np.mean(broken, axis=0), abs=0.02)
    constant = curves(ERROR, np.zeros(len(ERROR)))
    assert constant.curve == pytest.approx(np.ones(STEPS))
    assert constant.aurg == pytest.approx(0, abs=1e-9)


def test_without_any_error_there_is_nothing_to_find() -> None:
    assert sparsification(np.zeros(5), np.arange(5.0)) is None
    assert sparsification(np.zeros(0), np.zeros(0)) is None
