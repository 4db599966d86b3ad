"""Rendered worlds have exact depth, and a seed gives one world."""

import math
import sys

import numpy as np
import pytest
import torch

from da2ray.worlds import Scene, make_scene, render
from da2ray.worlds.builder import Material, Pattern
from da2ray.worlds.render import FARTHEST, first_surfaces
from da2ray.worlds.scene import Camera, Light
from da2ray.worlds.solids import Shape, Solids, first_hits

SIZE = (36, 48)
SEEDS = range(12)


def inside(solids: Solids, points: torch.Tensor, shrunk: float) -> torch.Tensor:
    """Whether each of the points (P, 3) lies in a solid, by the solids' definition, with half sizes multiplied by `shrunk`."""
    found = torch.zeros(len(points), dtype=torch.bool)
    for k, shape in enumerate(solids.shape):
        local = (points - solids.centre[k]) @ solids.axes[k].T / (solids.half[k] * shrunk)
        within = {
            Shape.BOX: (local.abs() <= 1).all(1),
            Shape.BALL: (local**2).sum(1) <= 1,
            Shape.CYLINDER: (local[:, 0] ** 2 + local[:, 2] ** 2 <= 1) & (local[:, 1].abs() <= 1),
        }
        found |= within[shape]
    return found


def rays(scene: Scene) -> tuple[torch.Tensor, torch.Tensor]:
    """The directions (P, 3) of all pixels, with a forward part of 1, and the rendered depth (P,) along them."""
    world = render(scene, *SIZE)
    v, u = np.mgrid[0 : SIZE[0], 0 : SIZE[1]] + 0.5
    plane = np.stack([(u - SIZE[1] / 2) / world.focal, (SIZE[0] / 2 - v) / world.focal, np.ones(SIZE)], axis=-1)
    return torch.tensor(plane.reshape(-1, 3), dtype=torch.float32) @ scene.camera.axes, world.depth.reshape(-1)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_solid_lies_in_front_of_a_pixels_depth(seed: int) -> None:
    scene = make_scene(seed)
    directions, depth = rays(scene)
    for share in torch.linspace(0.02, 0.99, 40):
        before = scene.camera.position + (depth.clamp_max(100) * share)[:, None] * directions
        assert not inside(scene.solids, before, 0.98).any()
        floor = 0.0 if scene.room is None else -1e-3
        assert (before[:, 1] >= floor - 1e-3).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_surface_lies_at_a_pixels_depth(seed: int) -> None:
    scene = make_scene(seed)
    directions, depth = rays(scene)
    seen = torch.isfinite(depth)
    behind = scene.camera.position + (depth[seen] * 1.0001)[:, None] * directions[seen]
    met = inside(scene.solids, behind, 1.02) | (behind[:, 1] <= 1e-3)
    if scene.room is not None:
        middle = scene.room * torch.tensor([0.0, 1.0, 0.0])
        met |= ((behind - middle).abs() >= scene.room * 0.999).any(1)
    assert met.all()


def test_a_seed_gives_one_world_and_another_seed_another() -> None:
    # Fixed: this process, so torch and the instruction set; `render` itself fixes the threads.
    first, again, other = (render(make_scene(seed), *SIZE) for seed in (3, 3, 4))
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.depth, again.depth)
    assert not torch.equal(first.image, other.image)


def test_a_world_is_rendered_in_one_thread_on_any_number_of_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(*args: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(torch.get_num_threads())
        return first_hits(*args)

    # The package exports the function `render` under the name of its module.
    monkeypatch.setattr(sys.modules["da2ray.worlds.render"], "first_hits", spy)
    before = torch.get_num_threads()
    worlds = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            worlds.append(render(make_scene(3), *SIZE))
            first_surfaces(make_scene(3), *SIZE)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}
    # Fixed: torch and the instruction set. On Intel with AVX-512, one thread and two give different last bits.
    assert all(torch.equal(world.depth, worlds[0].depth) for world in worlds)
    assert all(torch.equal(world.image, worlds[0].image) for world in worlds)


def test_worlds_are_of_all_sorts() -> None:
    scenes = [make_scene(seed) for seed in range(60)]
    assert 0.2 < np.mean([scene.room is None for scene in scenes]) < 0.6
    assert {shape for scene in scenes for shape in scene.solids.shape} == set(Shape)
    assert {material.pattern for scene in scenes for material in scene.materials} == set(Pattern)
    worlds = [render(scene, *SIZE) for scene in scenes[:20]]
    assert any(torch.isinf(world.depth).any() for world in worlds)
    assert min(world.image.float().std() for world in worlds) > 5
    assert all((world.depth > 0.05).all() for world in worlds)


def one_ball(material: Material) -> Scene:
    ball = Solids([Shape.BALL], torch.tensor([[0.0, 2.0, 5.0]]), torch.eye(3)[None], torch.ones(1, 3))
    camera = Camera(torch.tensor([0.0, 2.0, 0.0]), torch.eye(3), math.pi / 2)
    light = Light(torch.tensor([0.0, 1.0, 0.0]), (1.0, 1.0, 1.0), sun=True)
    sky = ((1.0, 1.0, 1.0), (0.0, 0.0, 1.0))
    return Scene(0, None, ball, [material] * 7, light, (0.2, 0.2, 0.2), camera, sky, math.inf)


def test_a_ball_on_open_ground_has_the_depth_and_shadow_of_its_geometry() -> None:
    plain = Material((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), Pattern.PLAIN, 1.0, 0.0, 0.0)
    world = render(one_ball(plain), 201, 201)
    # Half the width spans 45 degrees, so 100.5 pixels are 1 m at a distance of 1 m.
    assert world.focal == pytest.approx(100.5)
    assert world.depth[100, 100].item() == pytest.approx(4.0, abs=1e-4)
    assert torch.isinf(world.depth[20, 100])
    assert world.depth[200, 100].item() == pytest.approx(2 / (100 / 100.5), rel=1e-4)  # the ground, 2 m below
    # The sun is straight above, so the ground below the ball, at depth 5, is darker than the ground beside it.
    row = 100 + round(100.5 * 2 / 5)
    assert world.image[row, 100].sum() < world.image[row, 160].sum() / 1.5


def test_rays_that_hit_nothing_keep_their_limit() -> None:
    nothing = Solids([], torch.zeros(0, 3), torch.zeros(0, 3, 3), torch.zeros(0, 3))
    limit = torch.tensor([3.0, FARTHEST])
    distance, index = first_hits(nothing, torch.zeros(3), torch.eye(3)[:2], limit)
    assert torch.equal(distance, limit)
    assert index.tolist() == [-1, -1]
