"""Losses ignore the scale and shift of labels, and have the values of their definitions."""

import pytest
import torch

from da2ray.student.losses import (
    affine_invariant_loss,
    aligned_depth_loss,
    gradient_differences,
    normalised,
    resized_label,
)


def maps(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 24, 32, generator=torch.Generator().manual_seed(0)) + 0.1


def test_scale_and_shift_of_either_side_change_nothing() -> None:
    one, other = maps(), maps().flip(2)
    loss = affine_invariant_loss(one, other)
    assert loss > 0.5
    torch.testing.assert_close(affine_invariant_loss(7 * one + 3, 0.2 * other + 1), loss)
    assert affine_invariant_loss(5 * one - 2, one) < 1e-5


def test_the_log_depth_loss_uses_the_best_fit_and_ignores_pixels_that_are_too_far() -> None:
    disparity = maps()
    assert aligned_depth_loss(5 * disparity - 2, disparity, 80.0) < 1e-5
    # Two pixels are at 1 m and two at 2 m, and one of each is mistaken for the other. The fit is flat, at the mean disparity.
    truth, given = torch.tensor([[[1.0, 1.0, 0.5, 0.5]]]), torch.tensor([[[1.0, 0.0, 1.0, 0.0]]])
    expected = torch.tensor([0.75, 0.75, 1.5, 1.5]).log().abs().mean()
    torch.testing.assert_close(aligned_depth_loss(given, truth, 80.0), expected)
    # A sky that is predicted as the nearest thing costs nothing here. A map of only sky does not break the mean.
    sky = torch.cat([disparity, torch.zeros(2, 24, 8)], dim=2)
    torch.testing.assert_close(
        aligned_depth_loss(torch.cat([maps().flip(2), torch.full((2, 24, 8), 9.0)], dim=2), sky, 80.0),
        aligned_depth_loss(maps().flip(2), disparity, 80.0),
    )
    assert aligned_depth_loss(maps(), torch.zeros(2, 24, 32), 80.0) == 0


def test_the_loss_is_the_mean_difference_plus_twice_the_slopes() -> None:
    label = torch.tensor([[[0.0, 1.0, 2.0, 3.0]]]).expand(1, 1, 4)
    # The median is 1 (the lower of two) and the deviations are 1 0 1 2 with mean 1, so the result is the map minus 1.
    torch.testing.assert_close(normalised(label), label - 1)
    difference = torch.arange(16.0).expand(1, 16, 16)
    # The slope is 0 down, and 1, 2, 4 and 8 across at the four resolutions.
    torch.testing.assert_close(gradient_differences(difference), torch.tensor([15.0]))


def test_a_flat_label_has_no_loss_and_breaks_no_gradient() -> None:
    label = maps()
    label[0] = 0.25
    prediction = maps().flip(1).requires_grad_()
    loss = affine_invariant_loss(prediction, label)
    loss.backward()
    assert torch.isfinite(loss)
    assert prediction.grad is not None
    assert prediction.grad[0].abs().max() == 0
    assert prediction.grad[1].abs().max() > 0


@pytest.mark.parametrize("size", [(24, 32), (12, 16), (5, 7)])
def test_a_label_is_resized_corner_on_corner(size: tuple[int, int]) -> None:
    ramp = torch.linspace(0, 1, 32).expand(1, 24, 32)
    torch.testing.assert_close(resized_label(ramp, size), torch.linspace(0, 1, size[1]).expand(1, *size))
