"""Each depth score is right on a map whose score is known, and ignores scale and shift where it should."""

import math

import numpy as np
import pytest
import torch

from da2ray.labels.schema import DEPTH_SCORES
from da2ray.quality.depth_scores import BINS, FAR_METRES, depth_statistics, edge_alignment, nonfinite_share
from da2ray.teachers.base import Kind

ROWS, COLUMNS = 256, 320
"""Edges are looked for at this short side, so nothing is resized."""
LEVELS = torch.zeros(1, ROWS, COLUMNS)


def scores(depth: torch.Tensor, kind: Kind = Kind.DISPARITY, levels: torch.Tensor = LEVELS) -> dict[str, float]:
    """The scores of one map, (rows, columns)."""
    return {name: value.item() for name, value in depth_statistics(depth[None], kind, levels).scores.items()}


def ramp() -> torch.Tensor:
    """A map from 1 at the top to 3 at the bottom."""
    return torch.linspace(1, 3, ROWS)[:, None].repeat(1, COLUMNS)


def noise(seed: int = 0) -> torch.Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed))


def test_the_scores_are_those_of_the_schema() -> None:
    assert set(scores(ramp())) | {"nonfinite_share"} == set(DEPTH_SCORES.names)


def test_the_values_of_a_ramp_are_known() -> None:
    found = scores(ramp())
    assert (found["depth_min"], found["depth_max"]) == (1, 3)
    assert found["depth_mean"] == pytest.approx(2)
    assert found["depth_range"] == pytest.approx(0.9 * 2 / 2, abs=0.03)
    assert found["depth_occupancy"] == 1
    assert found["depth_entropy"] == pytest.approx(math.log2(BINS), abs=0.05)
    assert found["gradient_continuity"] == pytest.approx(1, abs=1e-3)
    assert found["saturated_share"] == pytest.approx(1 / ROWS)
    assert found["zero_share"] == found["far_share"] == 0


def test_a_constant_map_has_no_range_and_no_edges() -> None:
    found = scores(torch.full((ROWS, COLUMNS), 7.0))
    assert (found["depth_range"], found["depth_entropy"], found["far_share"]) == (0, 0, 0)
    assert found["depth_occupancy"] == 1 / BINS
    assert found["saturated_share"] == 1
    assert math.isnan(found["gradient_continuity"])
    assert math.isnan(found["edge_alignment"])


def test_a_few_pixels_far_off_all_others_leave_most_bins_empty() -> None:
    spiky = 0.01 * ramp()
    spiky[3, 4] = 100
    found = scores(spiky)
    assert found["depth_occupancy"] == 1 / BINS
    assert found["depth_entropy"] == 0


def test_range_means_nothing_without_a_positive_mean() -> None:
    assert math.isnan(scores(ramp() - 3)["depth_range"])


def test_continuity_tells_noise_from_smooth_maps() -> None:
    assert scores(noise())["gradient_continuity"] == pytest.approx(-0.5, abs=0.02)
    walk = noise().cumsum(0).cumsum(1)  # gradients are independent
    assert abs(scores(noise().cumsum(1)[:1].repeat(ROWS, 1))["gradient_continuity"]) < 0.15
    y, x = torch.meshgrid(torch.arange(ROWS), torch.arange(COLUMNS), indexing="ij")
    waves = torch.sin(x / 9) + torch.cos(y / 7)
    assert scores(waves)["gradient_continuity"] > 0.97
    assert scores(walk)["gradient_continuity"] < scores(waves)["gradient_continuity"]
    assert scores(waves + 0.1 * noise())["gradient_continuity"] < 0.5


def test_continuity_looks_along_rows_and_columns() -> None:
    """Stripes are noise along one axis and constant along the other."""
    across, along = noise()[:1].repeat(ROWS, 1), noise()[:, :1].repeat(1, COLUMNS)
    for stripes in (across, along):
        assert scores(stripes)["gradient_continuity"] == pytest.approx(-0.5, abs=0.15)


# --------------------------------------------------------------------------------------------------------- far class


def far(depth: torch.Tensor, kind: Kind) -> torch.Tensor | None:
    found = depth_statistics(depth[None], kind, LEVELS).far
    return None if found is None else found[0]


def test_disparity_a_hundred_times_as_far_as_the_nearest_things_is_far() -> None:
    depth = ramp()
    depth[:32] = 0
    depth[32:40] = 0.029  # P99 is 2.98
    depth[40:48] = 0.031
    found = far(depth, Kind.DISPARITY)
    assert found.dtype == torch.bool
    expected = torch.zeros(ROWS, COLUMNS, dtype=torch.bool)
    expected[:40] = True
    torch.testing.assert_close(found, expected)
    assert scores(depth)["far_share"] == pytest.approx(40 / ROWS)
    assert scores(depth)["zero_share"] == pytest.approx(32 / ROWS)
    torch.testing.assert_close(far(200 * depth, Kind.DISPARITY), expected)


def test_nothing_is_far_where_nothing_is_near() -> None:
    for depth in (torch.zeros(ROWS, COLUMNS), -ramp(), torch.full((ROWS, COLUMNS), 5.0)):
        assert not far(depth, Kind.DISPARITY).any()


def test_metres_are_far_where_outdoor_heads_end() -> None:
    depth = ramp()
    depth[:10] = 80
    depth[10] = FAR_METRES
    depth[11] = 75
    found = far(depth, Kind.METRIC)
    assert found[:11].all()
    assert not found[11:].any()
    assert scores(depth, Kind.METRIC)["saturated_share"] == pytest.approx(10 / ROWS)


def test_disparity_with_values_below_zero_has_no_far_class() -> None:
    """The teacher `luminance` makes such maps: their zero lies in the middle, and half of the map would be sky."""
    shifted = ramp() - ramp().mean()
    assert not far(shifted, Kind.DISPARITY).any()
    assert math.isnan(scores(shifted)["far_share"])


def test_affine_invariant_depth_has_no_far_class() -> None:
    assert far(ramp(), Kind.DEPTH) is None
    assert math.isnan(scores(ramp(), Kind.DEPTH)["far_share"])


# ------------------------------------------------------------------------------------------------------------- edges


def step(column: int, low: float, high: float, width: int = 1) -> torch.Tensor:
    """A step up at a column, spread over `width` pixels."""
    line = torch.where(torch.arange(COLUMNS) < column, 0.0, 1.0)
    for _ in range(width - 1):
        line = torch.cat([line[:1], line[1:] / 2 + line[:-1] / 2])
    return (low + (high - low) * line).repeat(ROWS, 1)


@pytest.mark.parametrize(("off", "expected"), [(0, 1), (2, 1), (-2, 1), (3, 0), (-3, 0), (60, 0)])
def test_a_depth_edge_counts_where_an_image_edge_is_within_reach(off: int, expected: float) -> None:
    depth, levels = step(100, 1, 2), step(100 + off, 50, 150)[None]
    for turned in (False, True):
        if turned:
            depth, levels = depth.T.contiguous(), levels.transpose(1, 2).contiguous()
        found = scores(depth, levels=levels)["edge_alignment"]
        assert found == pytest.approx(expected), turned


def test_image_edges_without_a_depth_edge_cost_nothing() -> None:
    depth = step(100, 1, 2)
    levels = step(100, 50, 150) + step(200, 0, 90) + step(250, 0, 90)
    assert scores(depth, levels=levels[None])["edge_alignment"] == pytest.approx(1)


def test_half_of_the_depth_edges_lie_on_image_edges() -> None:
    depth = step(100, 1, 2) + step(200, 0, 1)
    assert scores(depth, levels=step(100, 50, 150)[None])["edge_alignment"] == pytest.approx(0.5, abs=0.01)


def test_a_faint_image_has_no_edges_and_a_floor_is_not_an_edge() -> None:
    depth = step(100, 1, 2)
    assert scores(depth, levels=step(100, 50, 53)[None])["edge_alignment"] == 0
    assert math.isnan(scores(ramp(), levels=step(100, 50, 150)[None])["edge_alignment"])


def test_edges_are_found_at_the_network_size_too() -> None:
    depth = torch.nn.functional.interpolate(step(100, 1, 2, width=3)[None, None], (518, 648), mode="bilinear")[0]
    spread = torch.ones(1)
    assert edge_alignment(depth, spread, step(101, 50, 150, width=2)[None]).item() == 1
    assert edge_alignment(depth, spread, step(120, 50, 150, width=2)[None]).item() == 0


# --------------------------------------------------------------------------------------------------------- all scores


def test_scale_and_shift_change_only_scores_that_have_a_unit() -> None:
    depth = ramp() + step(100, 0, 1) + 0.05 * noise()
    levels = step(101, 20, 200)[None]
    base, other = scores(depth, levels=levels), scores(1000 * depth + 500, levels=levels)
    for name in ("depth_occupancy", "depth_entropy", "edge_alignment", "gradient_continuity"):
        assert other[name] == pytest.approx(base[name], rel=0.02), name
    assert scores(1000 * depth)["depth_range"] == pytest.approx(scores(depth)["depth_range"], rel=1e-4)


def test_scores_do_not_depend_on_the_rest_of_the_batch() -> None:
    maps = torch.stack([ramp(), noise(1), torch.zeros(ROWS, COLUMNS), step(100, 0, 2), 80 * ramp()])
    levels = torch.stack([100 + 50 * noise(seed) for seed in range(5)])
    for kind in Kind:
        together = depth_statistics(maps, kind, levels)
        for place in range(len(maps)):
            alone = depth_statistics(maps[place : place + 1], kind, levels[place : place + 1])
            for name, values in together.scores.items():
                torch.testing.assert_close(values[place], alone.scores[name][0], equal_nan=True, msg=name)
            if together.far is not None:
                torch.testing.assert_close(together.far[place], alone.far[0])


def test_pixels_that_are_not_finite_are_counted() -> None:
    maps = torch.stack([ramp(), ramp(), ramp()])
    maps[1, :8] = torch.nan
    maps[1, 8:16] = torch.inf
    maps[2, 0, 0] = -torch.inf
    finite = torch.tensor([True, False, False])
    expected = [0, 16 / ROWS, 1 / (ROWS * COLUMNS)]
    np.testing.assert_allclose(nonfinite_share(maps, finite), expected, atol=1e-7)
    assert nonfinite_share(maps[:1], finite[:1]).tolist() == [0]
