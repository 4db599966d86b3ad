"""Losses for labels that are known up to scale and shift."""

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


def test_log_depth_is_that_of_the_best_fit_and_leaves_out_what_is_too_far() -> None:
    disparity = maps()
    assert aligned_depth_loss(5 * disparity - 2, disparity, 80.0) < 1e-5
    # Two pixels at 1 m, two at 2 m, one of each taken for the other: the fit is flat, at the mean disparity.
    truth, given = torch.tensor([[[1.0, 1.0, 0.5, 0.5]]]), torch.tensor([[[1.0, 0.0, 1.0, 0.0]]])
    expected = torch.tensor([0.75, 0.75, 1.5, 1.5]).log().abs().mean()
    torch.testing.assert_close(aligned_depth_loss(given, truth, 80.0), expected)
    # A sky that is taken for the nearest thing costs nothing here, and no map breaks the mean for having nothing else.
    sky = torch.cat([disparity, torch.zeros(2, 24, 8)], dim=2)
    torch.testing.assert_close(
        aligned_depth_loss(torch.cat([maps().flip(2), torch.full((2, 24, 8), 9.0)], dim=2), sky, 80.0),
        aligned_depth_loss(maps().flip(2), disparity, 80.0),
    )
    assert aligned_depth_loss(maps(), torch.zeros(2, 24, 32), 80.0) == 0


def test_it_is_the_mean_difference_plus_twice_the_slopes() -> None:
    label = torch.tensor([[[0.0, 1.0, 2.0, 3.0]]]).expand(1, 1, 4)
    # Median 1 (the lower of two), deviations 1 0 1 2, whose mean is 1: the map less 1.
    torch.testing.assert_close(normalised(label), label - 1)
    difference = torch.arange(16.0).expand(1, 16, 16)
    # Nothing down; across 1, 2, 4 and 8 at the four resolutions.
    torch.testing.assert_close(gradient_differences(difference), torch.tensor([15.0]))


def test_a_flat_label_says_nothing_and_breaks_nothing() -> None:
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
def test_a_label_is_read_corner_on_corner(size: tuple[int, int]) -> None:
    ramp = torch.linspace(0, 1, 32).expand(1, 24, 32)
    torch.testing.assert_close(resized_label(ramp, size), torch.linspace(0, 1, size[1]).expand(1, *size))
