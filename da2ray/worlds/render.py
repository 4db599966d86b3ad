"""The renderer of worlds: rays, surfaces, light, and the exact depth of every pixel.

A world is always rendered in one thread, because matrix products and vectorised loops round differently where threads split
them. A seed therefore gives the same bytes on any number of cores. The bytes still depend on torch's version and on the
instruction set (AVX2 or AVX-512, Intel or AMD), by the last bits of a float32.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from da2ray.worlds.builder import Pattern
from da2ray.worlds.scene import Scene
from da2ray.worlds.solids import NEAR, first_hits, leave_box

FARTHEST = 1e4
"""Distance of the sky in metres."""
_NOISE = 4096  # random numbers from which the noise is made, a power of two


@dataclass(frozen=True, slots=True)
class World:
    """A rendered picture and its true depth.

    Attributes:
        image: uint8 (H, W, 3), sRGB.
        depth: float32 (H, W), metres along the camera's axis, infinite for the sky.
        focal: focal length in pixels.
    """

    image: Tensor
    depth: Tensor
    focal: float


def render(scene: Scene, height: int, width: int) -> World:
    """Render a scene with one ray through each pixel's centre, and one from its end to the light.

    A mirror reflects once: a mirror in a mirror shows its surface. The depth of a mirror is that of its surface.
    """
    camera = scene.camera
    with _one_thread():
        focal, direction = _rays(scene, height, width)
        distance, colour = _seen(scene, camera.position, direction, bounces=1)
        depth = torch.where(distance < FARTHEST, distance * (direction @ camera.axes[2]), torch.inf)
        return World(_developed(colour).view(height, width, 3), depth.view(height, width), focal)


def first_surfaces(scene: Scene, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The point that each pixel sees, (H * W, 3), not finite for the sky, and its index in `scene.materials`, (H * W,)."""
    with _one_thread():
        _, direction = _rays(scene, height, width)
        distance, surface = _look(scene, scene.camera.position, direction)
        return scene.camera.position + distance[:, None] * direction, surface


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch and the libraries below it compute in one thread inside the context."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _rays(scene: Scene, height: int, width: int) -> tuple[float, Tensor]:
    """The focal length in pixels, and the unit direction of each pixel's ray (H * W, 3)."""
    focal = width / (2 * math.tan(scene.camera.view / 2))
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    plane = torch.stack(
        [(columns + 0.5 - width / 2) / focal, (height / 2 - rows - 0.5) / focal, torch.ones(height, width)], dim=-1
    )
    return focal, torch.nn.functional.normalize(plane.reshape(-1, 3) @ scene.camera.axes, dim=1)


def _seen(scene: Scene, origin: Tensor, direction: Tensor, bounces: int) -> tuple[Tensor, Tensor]:
    """The distance (P,), infinite for the sky, and linear RGB (P, 3) that rays from (3,) or (P, 3) see."""
    distance, surface = _look(scene, origin, direction)
    points = origin + distance.clamp_max(FARTHEST)[:, None] * direction
    colour = _sky(scene, direction)
    seen = (distance < FARTHEST).nonzero().squeeze(1)
    if len(seen):
        lit = _lit(scene, points[seen], direction[seen], surface[seen])
        if bounces and any(material.mirror for material in scene.materials):
            lit = _mirrored(scene, points[seen], direction[seen], surface[seen], lit, bounces)
        clear = torch.exp(-distance[seen] / scene.haze)[:, None]
        colour[seen] = lit * clear + colour.new_tensor(scene.sky[0]) * (1 - clear)
    return distance, colour


def _mirrored(scene: Scene, points: Tensor, direction: Tensor, surface: Tensor, lit: Tensor, bounces: int) -> Tensor:
    """The colours `lit` (P, 3). The colour of a mirror is mixed with the colour in the direction that it reflects."""
    share = points.new_tensor([material.mirror for material in scene.materials])[surface]
    at = (share > 0).nonzero().squeeze(1)
    if not len(at):
        return lit
    normals = _normals(scene, points[at], surface[at])
    onwards = direction[at] - 2 * (direction[at] * normals).sum(1, keepdim=True) * normals
    _, reflected = _seen(scene, points[at] + 1e-3 * normals, onwards, bounces - 1)
    lit[at] = torch.lerp(lit[at], reflected, share[at][:, None])
    return lit


def _look(scene: Scene, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """The distance (P,) to the first surface on each ray, infinite for the sky, and the index of its material (P,)."""
    distance, face = _surroundings(scene, origin, direction)
    met, index = first_hits(scene.solids, origin, direction, distance)
    return met, torch.where(index < 0, len(scene.solids) + face, index)


def _surroundings(scene: Scene, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """The distance (P,) to the room's walls, or to the ground and the sky, and the face (P,) from 0 to 5."""
    if scene.room is not None:
        return leave_box(scene.room, origin - scene.room * scene.room.new_tensor([0.0, 1.0, 0.0]), direction)
    down = -direction[..., 1]
    distance = torch.where(down > 1e-9, origin[..., 1] / down.clamp_min(1e-9), torch.inf)
    return torch.where(distance < FARTHEST, distance, torch.inf), torch.full_like(distance, 2, dtype=torch.int64)


def _normals(scene: Scene, points: Tensor, surface: Tensor) -> Tensor:
    count = len(scene.solids)
    axes = torch.eye(3)
    inwards = torch.stack([axes[0], -axes[0], axes[1], -axes[1], axes[2], -axes[2]])
    normals = inwards[(surface - count).clamp_min(0)]
    on = (surface < count).nonzero().squeeze(1)
    normals[on] = scene.solids.normals(surface[on], points[on])
    return normals


def _lit(scene: Scene, points: Tensor, direction: Tensor, surface: Tensor) -> Tensor:
    """The linear RGB (P, 3) that surfaces send back along the rays: diffuse light, highlights, shadows and contact shadows."""
    normals = _normals(scene, points, surface)
    start = points + 1e-3 * (1 + points.abs().amax(1, keepdim=True) * 1e-2) * normals
    light = scene.light
    to_light = light.position.expand_as(points) if light.sun else light.position - start
    away = to_light.norm(dim=1)
    to_light = to_light / away[:, None]
    facing = (normals * to_light).sum(1)
    reach = torch.full_like(away, torch.inf) if light.sun else away * (1 - NEAR)
    towards = (facing > 0).nonzero().squeeze(1)
    met, _ = first_hits(scene.solids, start[towards], to_light[towards], reach[towards])
    falloff = 1.0 if light.sun else 4.0 / (1.0 + away[:, None] ** 2).clamp_min(0.25)
    shown = torch.zeros_like(away)
    shown[towards] = (met >= reach[towards]).float()
    half = torch.nn.functional.normalize(to_light - direction, dim=1)
    gloss = points.new_tensor([material.gloss for material in scene.materials])[surface]
    shine = gloss * (normals * half).sum(1).clamp_min(0) ** 40
    strength = (shown * facing.clamp_min(0))[:, None] * falloff * points.new_tensor(light.colour)
    # Less ambient light comes from below, and little reaches the places where things stand on the floor.
    open_ = (0.75 + 0.25 * normals[:, 1]) * (
        1 - 0.5 * torch.exp(-points[:, 1].clamp_min(0) / 0.1) * (normals[:, 1] < 0.5)
    )
    albedo = _textured(scene, points, normals, surface)
    ambient = points.new_tensor(scene.ambient)
    highlight = shine[:, None] * shown[:, None] * falloff * points.new_tensor(light.colour)
    return albedo * (strength + ambient * open_[:, None]) + 0.5 * highlight


def _textured(scene: Scene, points: Tensor, normals: Tensor, surface: Tensor) -> Tensor:
    """The linear RGB (P, 3) of the materials at surface points."""
    count = len(scene.solids)
    where, facing = points.clone(), normals.abs()
    on = (surface < count).nonzero().squeeze(1)
    # A solid's pattern turns with it.
    where[on] = scene.solids.local(surface[on], points[on])
    facing[on] = torch.einsum("pij,pj->pi", scene.solids.axes[surface[on]], normals[on]).abs()
    materials = scene.materials
    size = points.new_tensor([material.size for material in materials])[surface]
    pattern = torch.tensor([material.pattern for material in materials])[surface]
    where = where / size[:, None]
    axis = facing.argmax(1)
    across = where.gather(1, torch.where(axis == 0, 2, 0)[:, None]).squeeze(1)
    upwards = where.gather(1, torch.where(axis == 1, 2, 1)[:, None]).squeeze(1)
    table = torch.rand(_NOISE, generator=torch.Generator().manual_seed(scene.seed))
    noise = _octaves(table, where + 17.0 * surface[:, None])
    share = torch.zeros_like(size)
    for kind in Pattern:
        at = (pattern == kind).nonzero().squeeze(1)
        if len(at):
            share[at] = _share(kind, across[at], upwards[at], noise[at], table)
    colour = points.new_tensor([material.colour for material in materials])[surface]
    second = points.new_tensor([material.second for material in materials])[surface]
    grime = points.new_tensor([material.grime for material in materials])[surface]
    return torch.lerp(colour, second, share[:, None]) * (1 - grime * noise)[:, None]


def _share(kind: Pattern, u: Tensor, v: Tensor, noise: Tensor, table: Tensor) -> Tensor:
    """The share (P,), 0 to 1, of a surface's second colour at places (u, v), in periods of its pattern."""
    match kind:
        case Pattern.CHECKS:
            share = ((u.floor() + v.floor()) % 2).abs()
        case Pattern.STRIPES:
            share = (u % 1 < 0.5).float()
        case Pattern.BRICKS:
            share = ((v % 1 < 0.1) | ((u / 2 + 0.5 * (v.floor() % 2)) % 1 < 0.05)).float()
        case Pattern.WINDOWS:
            share = ((u % 1 > 0.3) & (u % 1 < 0.75) & (v % 1 > 0.25) & (v % 1 < 0.8)).float()
        case Pattern.DOTS:
            share = ((u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.08).float()
        case Pattern.CLOUDS:
            share = ((noise - 0.5) * 2 + 0.5).clamp(0, 1)
        case Pattern.GRAIN:
            share = _octaves(table, torch.stack([u * 6, v * 0.7, torch.zeros_like(u)], dim=1))
        case Pattern.PLAIN:
            share = torch.zeros_like(u)
    return share


def _octaves(table: Tensor, where: Tensor) -> Tensor:
    """Noise (P,) in [0, 1] at points (P, 3): values on a lattice, smoothly interpolated, at three scales."""
    total = torch.zeros(len(where))
    for octave, weight in enumerate((0.55, 0.3, 0.15)):
        cell = (where * 2.1**octave).floor()
        part = where * 2.1**octave - cell
        part = part * part * (3 - 2 * part)
        corner = cell.long() @ torch.tensor([1619, 31337, 6971])
        for x in (0, 1):
            for y in (0, 1):
                for z in (0, 1):
                    value = table[(corner + (1619 * x + 31337 * y + 6971 * z)) & (_NOISE - 1)]
                    share = (part[:, 0] if x else 1 - part[:, 0]) * (part[:, 1] if y else 1 - part[:, 1])
                    total += weight * value * share * (part[:, 2] if z else 1 - part[:, 2])
    return total


def _sky(scene: Scene, direction: Tensor) -> Tensor:
    """The linear RGB (P, 3) of the sky, from horizon to zenith, with clouds."""
    horizon, zenith = (direction.new_tensor(colour) for colour in scene.sky)
    up = direction[:, 1].clamp_min(0)
    colour = torch.lerp(horizon, zenith, up[:, None] ** 0.5)
    above = (up > 0.02).nonzero().squeeze(1)
    if scene.room is None and len(above):
        table = torch.rand(_NOISE, generator=torch.Generator().manual_seed(scene.seed + 1))
        flat = direction[above] / up[above][:, None]
        clouds = ((_octaves(table, flat * 0.7) - 0.45) * 3).clamp(0, 0.9)
        colour[above] = torch.lerp(colour[above], torch.ones(3), clouds[:, None])
    return colour


def _developed(colour: Tensor) -> Tensor:
    """Develop linear RGB into sRGB uint8. The exposure gives the picture a camera's usual mean; the brightest part is clipped."""
    exposed = (colour * (0.32 / colour.mean().clamp_min(1e-3))).clamp(0, 1)
    return ((exposed ** (1 / 2.2)) * 255).round().to(torch.uint8)
