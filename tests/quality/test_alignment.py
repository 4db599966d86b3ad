"""Fits recover scale and shift, and outliers do not move the robust fit."""

import pytest
import torch

from da2ray.quality.alignment import POINTS, fit, fit_robust, grid, to_disparity
from da2ray.teachers.base import Kind

N, P = 6, 3000
SCALES, SHIFTS = torch.linspace(0.2, 4, N), torch.linspace(-1, 2, N)


def lines(noise: float = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(source, target), float32 (N, P): target = SCALES * source + SHIFTS, plus noise as a share of its deviation."""
    random = torch.Generator().manual_seed(0)
    source = 0.5 + 3 * torch.rand(N, P, generator=random) ** 2
    target = SCALES[:, None] * source + SHIFTS[:, None]
    return source, target + noise * target.std(1, keepdim=True) * torch.randn(N, P, generator=random)


def test_least_squares_is_exact_on_a_line_and_zero_on_a_constant() -> None:
    source, target = lines()
    scale, shift = fit(source, target)
    torch.testing.assert_close(scale, SCALES, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shift, SHIFTS, rtol=1e-5, atol=1e-5)
    scale, shift = fit(torch.full((N, P), 3.0), target)
    assert (scale == 0).all()
    torch.testing.assert_close(shift, target.mean(1))


def spread(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """A fifth of the pixels, anywhere, is far too high."""
    wrong = torch.arange(P) % 5 == 0
    return torch.where(wrong, 5 * target.amax() + 10 * source.flip(1), target)


def nearest_seen_far(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The nearest fifth of the pixels is far, which would tilt a fit of all pixels."""
    return torch.where(source > source.quantile(0.8, dim=1, keepdim=True), target.amin(1, keepdim=True), target)


def farthest_seen_near(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.where(source < source.quantile(0.2, dim=1, keepdim=True), 3 * target.amax(1, keepdim=True), target)


@pytest.mark.parametrize("spoil", [spread, nearest_seen_far, farthest_seen_near])
@pytest.mark.parametrize(("noise", "tolerance"), [(0, 1e-5), (0.05, 0.01)])
def test_a_fifth_of_gross_outliers_does_not_move_the_robust_fit(spoil, noise: float, tolerance: float) -> None:
    source, target = lines(noise)
    spoiled = spoil(source, target)
    _, plain_shift = fit(source, spoiled)
    assert (plain_shift - SHIFTS).abs().mean() > 0.05, "these outliers do not move least squares, so they test nothing"
    scale, shift = fit_robust(source, spoiled, torch.ones(N, P, dtype=torch.bool))
    torch.testing.assert_close(scale, SCALES, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(shift, SHIFTS, rtol=2 * tolerance, atol=2 * tolerance)


def test_pixels_that_are_not_valid_do_not_count() -> None:
    source, target = lines()
    valid = torch.arange(P).expand(N, P) % 10 < 4
    scale, shift = fit_robust(source, torch.where(valid, target, 77), valid)
    torch.testing.assert_close(scale, SCALES, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shift, SHIFTS, rtol=1e-5, atol=1e-5)


def test_a_constant_source_has_scale_0_and_nothing_valid_no_fit() -> None:
    source, target = lines()
    scale, shift = fit_robust(torch.full((N, P), 2.0), target, torch.ones(N, P, dtype=torch.bool))
    assert (scale == 0).all()
    assert ((shift > target.amin(1)) & (shift < target.amax(1))).all()
    scale, shift = fit_robust(source, target, torch.zeros(N, P, dtype=torch.bool))
    assert scale.isnan().all()
    assert shift.isnan().all()


def test_an_image_is_fitted_alike_in_any_company() -> None:
    source, target = lines(0.05)
    valid = torch.ones(N, P, dtype=torch.bool)
    together = torch.stack(fit_robust(source, target, valid))
    alone = [torch.stack(fit_robust(source[i : i + 1], target[i : i + 1], valid[:1])) for i in range(N)]
    torch.testing.assert_close(together, torch.cat(alone, dim=1), rtol=1e-5, atol=1e-5)


def test_disparity_is_larger_for_what_is_nearer_and_has_a_floor() -> None:
    metres = torch.tensor([[[1.0, 2.0], [4.0, 0.0]]])
    disparity = to_disparity(metres, Kind.METRIC)
    torch.testing.assert_close(disparity.flatten()[:3], torch.tensor([1, 0.5, 0.25]))
    assert disparity.flatten()[3] == pytest.approx(1 / (0.02 * 1.75))
    assert to_disparity(metres, Kind.DISPARITY) is metres
    assert to_disparity(torch.tensor([[[1.0, torch.inf]]]), Kind.METRIC).isnan().all()


@pytest.mark.parametrize("size", [(1, 1), (14, 28), (518, 686), (3, 100_000)])
def test_the_grid_is_even_and_bounded(size: tuple[int, int]) -> None:
    maps = torch.arange(size[0] * size[1]).float().view(1, *size)
    points = grid(maps)
    assert 1 <= points.shape[1] <= POINTS
    assert points.mean() == pytest.approx(float(maps.mean()), rel=0.05, abs=0.5)
