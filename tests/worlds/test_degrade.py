"""Degraded worlds follow their seed and keep their exact depth. A mirror shows the room but has the depth of its surface."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from da2ray.worlds import Scene, make_scene, render
from da2ray.worlds.bucket import IMAGES, LIST, TRUTH, export_worlds, plan_worlds
from da2ray.worlds.builder import Material, Pattern
from da2ray.worlds.degenerate import LEAST_MIRROR, mirror_scene
from da2ray.worlds.degrade import Degradation, degrade, world_of
from da2ray.worlds.render import first_surfaces
from da2ray.worlds.scene import Camera, Light
from da2ray.worlds.solids import Shape, Solids

SIZE = (63, 84)
SPOILED = [Degradation.BLUR, Degradation.NOISE, Degradation.DARK, Degradation.JPEG10]
SCENES = [Degradation.FLAT_WALL, Degradation.MIRROR]


@pytest.mark.parametrize("kind", Degradation)
def test_a_seed_gives_one_degraded_world_and_another_seed_another(kind: Degradation) -> None:
    # Fixed: this process, so torch and the instruction set; `render` itself fixes the threads.
    first, again, other = (world_of(seed, kind, *SIZE)[0] for seed in (7, 7, 8))
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.depth, again.depth)
    assert not torch.equal(first.image, other.image)


@pytest.mark.parametrize("kind", SPOILED)
def test_a_spoiled_picture_keeps_the_depth_of_its_world(kind: Degradation) -> None:
    clean, spoiled = world_of(7, None, *SIZE)[0], world_of(7, kind, *SIZE)[0]
    assert torch.equal(clean.depth, spoiled.depth)
    assert (clean.image.float() - spoiled.image.float()).abs().mean() > 1


def test_each_kind_spoils_as_its_name_says() -> None:
    image = render(make_scene(7), 189, 252).image.numpy()
    steps = {kind: np.abs(np.diff(degrade(image, kind, 7).astype(float), axis=1)).mean() for kind in SPOILED}
    before = np.abs(np.diff(image.astype(float), axis=1)).mean()
    assert steps[Degradation.BLUR] < 0.7 * before
    assert steps[Degradation.NOISE] > 2 * before
    assert degrade(image, Degradation.DARK, 7).mean() < 0.4 * image.mean()
    assert np.abs(degrade(image, Degradation.JPEG10, 7).astype(float) - image).mean() > 1


@pytest.mark.parametrize("kind", SCENES)
def test_a_scene_cannot_be_applied_to_a_picture(kind: Degradation) -> None:
    with pytest.raises(ValueError, match="world_of"):
        degrade(np.zeros((4, 4, 3), np.uint8), kind, 0)


@pytest.mark.parametrize("seed", range(6))
def test_a_flat_wall_is_one_smooth_plane_at_a_slant(seed: int) -> None:
    world = world_of(seed, Degradation.FLAT_WALL, *SIZE)[0]
    disparity = 1 / world.depth.double()
    # The disparity of a plane is affine in the picture, and its depth varies.
    assert disparity.diff(n=2, dim=0).abs().max() < 1e-5
    assert disparity.diff(n=2, dim=1).abs().max() < 1e-5
    assert world.depth.max() / world.depth.min() > 1.2
    assert world.image.float().diff(dim=1).abs().max() < 12


@pytest.mark.parametrize("seed", range(4))
def test_a_mirror_shows_the_room_and_its_depth_is_its_surface(seed: int) -> None:
    scene = mirror_scene(seed)
    [glass] = [index for index, material in enumerate(scene.materials) if material.mirror]
    world = render(scene, *SIZE)
    points, surface = first_surfaces(scene, *SIZE)
    on = surface == glass
    assert on.float().mean() > LEAST_MIRROR / 2
    # The truth: all points of the mirror lie on one plane, the front of the panel.
    local = scene.solids.local(surface[on], points[on]) / scene.solids.half[glass]
    assert local.abs().amax(1) == pytest.approx(1, abs=1e-3)
    along = (points - scene.camera.position) @ scene.camera.axes[2]
    assert torch.allclose(world.depth.reshape(-1), along, rtol=1e-4)
    # The picture: without a reflection it would be plain.
    dull = render(with_reflection(scene, glass, 0.0), *SIZE)
    assert torch.equal(dull.depth, world.depth)
    shown, plain = (each.image.reshape(-1, 3)[on].float() for each in (world, dull))
    assert shown.std(0).mean() > 2 * plain.std(0).mean()


def with_reflection(scene: Scene, glass: int, share: float) -> Scene:
    """The scene with another share of reflection."""
    materials = list(scene.materials)
    materials[glass] = replace(materials[glass], mirror=share)
    return replace(scene, materials=materials)


def test_a_ball_behind_the_camera_appears_at_its_mirror_image() -> None:
    grey, red = (Material(colour, colour, Pattern.PLAIN, 1.0, 0.0, 0.0) for colour in ((0.5,) * 3, (0.9, 0.02, 0.02)))
    # The camera in the middle of the room looks at the mirror, whose front is at z = 2.9. The ball is 2 m behind the camera.
    solids = Solids(
        [Shape.BALL, Shape.BOX],
        torch.tensor([[1.0, 2.0, -2.0], [0.0, 1.5, 2.95]]),
        torch.eye(3).repeat(2, 1, 1),
        torch.tensor([[0.3, 0.3, 0.3], [2.5, 1.4, 0.05]]),
    )
    camera = Camera(torch.tensor([0.0, 1.5, 0.0]), torch.eye(3), math.pi / 2)
    light = Light(torch.tensor([0.0, 2.5, 0.0]), (1.0, 1.0, 1.0), sun=False)
    glass = replace(grey, mirror=1.0)
    sky = ((1.0,) * 3, (1.0,) * 3)
    room = torch.tensor([3.0, 1.5, 3.0])
    world = render(
        Scene(0, room, solids, [red, glass, *[grey] * 6], light, (0.3,) * 3, camera, sky, math.inf), 201, 201
    )
    redness = world.image[..., 0].float() - world.image[..., 1].float()
    rows, columns = (redness > 60).nonzero(as_tuple=True)
    # The image of the ball is at z = 2 * 2.9 + 2 = 7.8: (1, 0.5) across and up at that distance, focal length 100.5.
    assert columns.float().mean().item() == pytest.approx(100 + 100.5 * 1 / 7.8, abs=1)
    assert rows.float().mean().item() == pytest.approx(100 - 100.5 * 0.5 / 7.8, abs=1)
    assert world.depth[100, 100].item() == pytest.approx(2.9, abs=1e-4)


def test_exported_worlds_match_the_list(tmp_path: Path) -> None:
    # The export's processes compute in one thread and this one in several. Fixed: torch, the instruction set, and `render`'s
    # one thread.
    worlds = plan_worlds(12, 0.5, first_seed=500)
    assert [world.seed for world in worlds] == list(range(500, 512))
    kinds = [world.degradation for world in worlds]
    assert sorted(filter(None, kinds)) == sorted(Degradation)  # evenly
    assert plan_worlds(12, 0.5, first_seed=500) == worlds
    assert list(export_worlds(worlds[:6], tmp_path, SIZE, 1)) == [1, 2, 3, 4, 5, 6]
    lines = [json.loads(line) for line in (tmp_path / LIST).read_text().splitlines()]
    assert [line["seed"] for line in lines] == list(range(500, 506))
    for planned, line in zip(worlds, lines, strict=False):
        world, _ = world_of(planned.seed, planned.degradation, *SIZE)
        assert line["degradation"] == planned.degradation
        depth = np.load((tmp_path / TRUTH / line["key"]).with_suffix(".npy"))
        assert depth.dtype == np.float32
        assert np.array_equal(depth, world.depth.numpy())
        picture = np.asarray(Image.open(io.BytesIO((tmp_path / IMAGES / line["key"]).read_bytes())))
        assert picture.shape == (*SIZE, 3)
        assert np.abs(picture.astype(float) - world.image.numpy()).mean() < 20
