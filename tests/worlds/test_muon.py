"""The optimiser of the blocks' matrices makes orthogonal updates of AdamW's size."""

import pytest
import torch

from da2ray.worlds.muon import RMS, Muon, orthogonalised


@pytest.mark.parametrize("shape", [(3, 24, 8), (3, 8, 24), (2, 8, 8)])
def test_an_update_has_singular_values_near_one_and_the_directions_of_its_gradient(shape: tuple[int, int, int]) -> None:
    gradients = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    updates = orthogonalised(gradients)
    values = torch.linalg.svdvals(updates)
    assert values.min() > 0.3
    assert values.max() < 1.4
    u, _, vh = torch.linalg.svd(gradients, full_matrices=False)
    assert (torch.diagonal(u.mT @ updates @ vh.mT, dim1=1, dim2=2) > 0.3).all()


def test_each_matrix_is_orthogonalised_alone() -> None:
    gradients = torch.randn((3, 24, 8), generator=torch.Generator().manual_seed(0))
    alone = torch.cat([orthogonalised(each[None]) for each in gradients])
    torch.testing.assert_close(orthogonalised(gradients), alone)


def test_a_step_is_as_large_as_adamws_and_descends_and_decays() -> None:
    matrix = torch.nn.Parameter(torch.ones(16, 64))
    unused = torch.nn.Parameter(torch.ones(16, 64))
    optimiser = Muon([matrix, unused], lr=0.01, weight_decay=0.5)
    gradient = torch.randn((16, 64), generator=torch.Generator().manual_seed(0))
    (matrix * gradient).sum().backward()
    optimiser.step()
    moved = matrix.detach() - (1 - 0.01 * 0.5)
    assert moved.square().mean().sqrt() == pytest.approx(0.01 * RMS, rel=0.3)
    assert (moved * gradient).sum() < 0
    assert torch.equal(unused, torch.ones(16, 64))
