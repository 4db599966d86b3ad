"""Disagreement does not depend on scale, shift or unit; confidence falls with it; metres are recovered from relative maps."""

import math

import numpy as np
import pytest
import torch

from da2ray.quality.consistency import (
    CELLS,
    SURE,
    UNSURE,
    WINDOW,
    compare,
    confidence,
    fit_metric,
    local_mean,
    quantise_confidence,
)
from da2ray.teachers.base import Kind

SIZE = (40, 50)


def scene(seed: int = 0) -> torch.Tensor:
    """Disparity of a floor with some steps, float32 (1, *SIZE), above 0.2."""
    y, x = torch.meshgrid(*(torch.linspace(0, 1, side) for side in SIZE), indexing="ij")
    return (0.2 + y + 0.4 * (x > 0.3 + 0.1 * seed) + 0.2 * torch.sin(7 * x + seed))[None]


def test_the_error_is_that_of_the_definition() -> None:
    a, b = scene(0), scene(1)
    found = compare(a, b)
    flat_a, flat_b = a.flatten().double().numpy(), b.flatten().double().numpy()
    s, t = np.linalg.lstsq(np.stack([flat_b, np.ones_like(flat_b)], 1), flat_a, rcond=None)[0]
    error = np.abs(flat_a - (s * flat_b + t)) / np.abs(flat_a - np.median(flat_a)).mean()
    np.testing.assert_allclose(found.error.flatten().numpy(), error, atol=1e-3)
    assert found.mean.item() == pytest.approx(error.mean(), rel=1e-3)
    assert found.p90.item() == pytest.approx(np.quantile(error, 0.9), rel=0.01)
    assert found.valid.all()


def test_scale_and_shift_of_either_map_change_nothing() -> None:
    a, b = scene(0), scene(1)
    for other in (compare(3 * a - 1, b), compare(a, 100 * b + 7), compare(a, -b)):
        torch.testing.assert_close(other.error, compare(a, b).error, rtol=1e-3, atol=1e-4)
    assert compare(a, 5 * a + 1).mean < 1e-5


def test_maps_that_cannot_be_compared_spoil_only_themselves() -> None:
    label = torch.cat([scene(0), scene(0), torch.ones(1, *SIZE), scene(0)])
    other = torch.cat([scene(1)] * 4)
    other[0, 3, 4] = torch.nan
    other[1, 3, 4] = torch.inf
    assert compare(label, other).valid.tolist() == [False, False, False, True]
    torch.testing.assert_close(compare(label, other).error[3], compare(scene(0), scene(1)).error[0])


def test_confidence_falls_with_the_error_between_its_bounds() -> None:
    error = torch.tensor([0, SURE, 0.036, 0.113, 0.359, UNSURE, 10])
    sure = confidence(error)
    assert sure[[0, 1]].tolist() == [1, 1]
    assert sure[[5, 6]].tolist() == pytest.approx([0, 0], abs=1e-6)
    assert (sure.diff() <= 0).all()
    # The levels of 2 bits change at 5 / 6, 1 / 2 and 1 / 6.
    assert sure[2:5].tolist() == pytest.approx([5 / 6, 1 / 2, 1 / 6], abs=0.01)
    assert quantise_confidence(confidence(torch.tensor([0.03, 0.1, 0.3, 0.5])), 2).tolist() == [3, 2, 1, 0]


@pytest.mark.parametrize("size", [(96, 144), (480, 480), (28, 42), (14, 14)])
def test_a_local_mean_covers_a_fifth_of_the_short_side_of_its_own_image(size: tuple[int, int]) -> None:
    assert torch.allclose(local_mean(torch.full((1, *size), 0.3)), torch.tensor(0.3))
    one = torch.zeros(2, *size)
    one[0, 0, 0] = 1.0
    means = local_mean(one)
    assert (means[1] == 0).all()
    assert means[0, 0, 0] == means[0].amax()
    reach = min(*size, CELLS) / min(size)
    beyond = math.ceil((WINDOW // 2 + 2) / reach)
    assert (means[0, beyond:] == 0).all()
    # The disagreement changes sign in the middle: pixels at zero must not be surer than those around them.
    crossing = torch.linspace(-1, 1, size[1]).abs().expand(1, *size)
    assert local_mean(crossing).amin() > 0.02


@pytest.mark.parametrize("bits", range(1, 9))
def test_levels_are_the_nearest_ones_and_nan_is_least_sure(bits: int) -> None:
    top = 2**bits - 1
    levels = quantise_confidence(torch.tensor([math.nan, -1, 0, 0.49 / top, 0.51 / top, 1, 2, math.inf]), bits)
    assert levels.dtype == torch.uint8
    assert levels.tolist() == [0, 0, 0, 0, 1, top, top, top]


@pytest.mark.parametrize("kind", [Kind.DISPARITY, Kind.DEPTH])
def test_metres_come_back_from_relative_maps_among_outliers(kind: Kind) -> None:
    metres = torch.cat([3 / scene(0), 20 / scene(1)])
    linear = 1 / metres if kind is Kind.DISPARITY else metres
    relative = (linear - 0.1) / torch.tensor([0.5, 0.02])[:, None, None]
    spoiled = metres.clone()
    spoiled[:, :, ::5] = 500  # a fifth of the columns
    spoiled[:, 1, :3] = torch.tensor([torch.nan, torch.inf, 0])
    found = fit_metric(relative, kind, spoiled)
    torch.testing.assert_close(found.scale, torch.tensor([0.5, 0.02]), rtol=1e-3, atol=0)
    torch.testing.assert_close(found.shift, torch.tensor([0.1, 0.1]), rtol=1e-3, atol=0)
    assert (found.residual < 1e-3).all()


def test_without_metres_there_is_no_fit() -> None:
    found = fit_metric(scene(0), Kind.DISPARITY, torch.zeros(1, *SIZE))
    assert torch.stack([found.scale, found.shift, found.residual]).isnan().all()
