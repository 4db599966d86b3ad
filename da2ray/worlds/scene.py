"""The scene of a world: its solids and their materials, its light and its camera, all drawn from one seed."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from da2ray.worlds.builder import Builder, Material, Pattern, Vector, random_material
from da2ray.worlds.solids import Solids
from da2ray.worlds.things import car, clutter, fence, furniture, house, person, pole, rock, tree, trinket


@dataclass(frozen=True, slots=True)
class Light:
    """A light.

    Attributes:
        position: (3,), a lamp's position in metres, or the direction to the sun.
        colour: strength in linear RGB.
        sun: whether the light is the sun.
    """

    position: Tensor
    colour: Vector
    sun: bool


@dataclass(frozen=True, slots=True)
class Camera:
    """A camera.

    Attributes:
        position: (3,), in metres.
        axes: (3, 3), whose rows are right, up and forward in the world.
        view: horizontal angle of view in radians.
    """

    position: Tensor
    axes: Tensor
    view: float


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything in a world.

    Attributes:
        seed: the seed from which the scene and its noise are drawn.
        room: half extents (3,) of the room around (0, room[1], 0), None outdoors.
        solids: K solids.
        materials: K + 6 materials: of the solids, then of the room's faces -x, +x, floor (or ground), ceiling, -z, +z.
        light: the only light that casts shadows.
        ambient: light from everywhere, linear RGB.
        camera: the camera.
        sky: linear RGB at the horizon and at the zenith.
        haze: metres at which the air hides two thirds, infinite indoors.
    """

    seed: int
    room: Tensor | None
    solids: Solids
    materials: list[Material]
    light: Light
    ambient: Vector
    camera: Camera
    sky: tuple[Vector, Vector]
    haze: float


def make_scene(seed: int) -> Scene:
    """The scene of a seed: indoors, on a table, or outdoors."""
    rng = np.random.Generator(np.random.PCG64(seed))
    return rng.choice(np.array([_room, _table, _outdoors], dtype=object), p=[0.4, 0.25, 0.35])(seed, rng)


def _room(seed: int, rng: np.random.Generator) -> Scene:
    half = np.array([rng.uniform(1.6, 5), rng.uniform(1.15, 2.2), rng.uniform(1.6, 7)])
    eye = np.array([rng.uniform(-0.8, 0.8) * half[0], rng.uniform(0.3, min(2.2, 2 * half[1] - 0.3)), -half[2] + 0.4])
    b = Builder(rng, eye)
    for _ in range(rng.integers(2, 9)):
        against_wall = rng.random() < 0.5
        x = rng.choice([-1, 1]) * (half[0] - 0.5) if against_wall else rng.uniform(-0.8, 0.8) * half[0]
        with b.at(x, 0, rng.uniform(-0.6, 0.95) * half[2], rng.choice([0, 1, 2, 3]) * math.pi / 2 + rng.normal(0, 0.3)):
            furniture(b, 2 * half[1] - 0.1)
    for _ in range(rng.integers(0, 5)):  # pictures, windows and doors
        size = (rng.uniform(0.15, 0.9), rng.uniform(0.15, 0.9), 0.02)
        y = rng.uniform(0.5, 0.9) * 1.6 * half[1]
        if rng.random() < 0.5:
            b.box((rng.uniform(-0.8, 0.8) * half[0], y, half[2]), size, random_material(rng))
        else:
            side = rng.choice([-1, 1])
            b.box((side * half[0], y, rng.uniform(-0.8, 0.8) * half[2]), size, random_material(rng), yaw=math.pi / 2)
    if rng.random() < 0.4:
        b.box((0, 0.005, rng.uniform(0, 0.6) * half[2]), (half[0] * 0.5, 0.006, 1.2), random_material(rng, 0.3))
    if rng.random() < 0.4:  # a pillar or a beam
        b.rod(
            (rng.uniform(-0.8, 0.8) * half[0], half[1], rng.uniform(0, 0.8) * half[2]),
            0.15,
            half[1],
            random_material(rng),
        )
    wall = random_material(rng, 0.4, Pattern.PLAIN, Pattern.PLAIN, Pattern.BRICKS, Pattern.STRIPES, Pattern.CLOUDS)
    floor = random_material(rng, 0.4, Pattern.GRAIN, Pattern.CHECKS, Pattern.BRICKS, Pattern.PLAIN, Pattern.CLOUDS)
    ceiling = random_material(rng, 0.6, Pattern.PLAIN, Pattern.CHECKS)
    walls = [wall if rng.random() < 0.75 else random_material(rng, 0.5) for _ in range(4)]
    lamp = np.array(
        [rng.uniform(-0.7, 0.7) * half[0], 2 * half[1] * rng.uniform(0.75, 0.98), rng.uniform(-0.7, 0.7) * half[2]]
    )
    aim = np.array([rng.uniform(-0.6, 0.6) * half[0], rng.uniform(0.1, 1.2), rng.uniform(0.0, 1.0) * half[2]])
    return _finish(seed, b, half, [*walls[:2], floor, ceiling, *walls[2:]], _lamp(rng, lamp), aim)


def _table(seed: int, rng: np.random.Generator) -> Scene:
    """A scene of small things near the camera, on a table or on the floor, with a room behind them."""
    half = np.array([rng.uniform(1.2, 4), rng.uniform(1.1, 1.6), rng.uniform(1.2, 4)])
    height = rng.choice([0.0, rng.uniform(0.5, 0.9)])
    eye = np.array([0, height + rng.uniform(0.15, 0.9), -rng.uniform(0.5, 1.0)])
    b = Builder(rng, eye)
    if height:
        wide = rng.uniform(0.5, 1.5)
        b.box((0, height - 0.03, 0), (wide, 0.03, rng.uniform(0.4, 0.8)), random_material(rng, 0.2))
    for _ in range(rng.integers(1, 8)):
        with b.at(rng.normal(0, 0.35), height, rng.normal(0.1, 0.25), rng.uniform(0, 6)):
            trinket(b, rng.uniform(0.04, 0.22))
    for _ in range(rng.integers(1, 4)):
        with b.at(rng.uniform(-0.8, 0.8) * half[0], 0, rng.uniform(0.5, 0.95) * half[2], rng.uniform(0, 6)):
            furniture(b, 2 * half[1] - 0.1)
    wall, floor = random_material(rng, 0.4), random_material(rng, 0.4)
    lamp = np.array([rng.uniform(-1, 1), min(height + rng.uniform(0.8, 1.8), 2 * half[1] - 0.1), rng.uniform(-1, 1)])
    aim = np.array([rng.normal(0, 0.15), height + rng.uniform(0, 0.15), 0.15])
    materials = [wall, wall, floor, random_material(rng, 1, Pattern.PLAIN), random_material(rng, 0.5), wall]
    return _finish(seed, b, half, materials, _lamp(rng, lamp), aim)


def _outdoors(seed: int, rng: np.random.Generator) -> Scene:
    eye = np.array([0, rng.choice([rng.uniform(0.4, 2.2), rng.uniform(2, 12)], p=[0.8, 0.2]), 0])
    b = Builder(rng, eye)
    reach = rng.choice([12, 30, 80])
    view = rng.uniform(0.75, 1.4)

    def somewhere(nearest: float = 2) -> tuple[float, float]:
        z = nearest + (reach - nearest) * rng.random() ** 2
        return float(rng.uniform(-1, 1) * math.tan(view / 2) * 1.1 * z), float(z)

    if rng.random() < 0.5:  # a street with buildings along it
        wide = rng.uniform(3, 9)
        b.box((0, 0.01, reach), (wide * 0.6, 0.02, 2 * reach), random_material(rng, 1.5))
        for side in (-1, 1):
            b.box((side * wide * 0.75, 0.05, reach), (wide * 0.15, 0.1, 2 * reach), random_material(rng, 0.8))
            z = rng.uniform(0, 10)
            while z < 1.5 * reach and rng.random() < 0.9:
                half = (rng.uniform(2, 6), rng.uniform(2, 12), rng.uniform(2, 8))
                front = random_material(rng, 1.5, Pattern.WINDOWS, Pattern.BRICKS, Pattern.WINDOWS, Pattern.PLAIN)
                b.box((side * (wide + half[0]), half[1], z + half[2]), half, front)
                z += 2 * half[2] + rng.choice([0, rng.uniform(0, 8)])
    makers: list[Callable[[Builder], None]] = [tree, tree, pole, car, person, rock, fence, house, clutter]
    for maker in rng.choice(np.array(makers, dtype=object), rng.integers(3, 11)):
        x, z = somewhere(9 if maker is house else 2)
        with b.at(x, 0, z, rng.uniform(0, 6)):
            maker(b)
    for _ in range(rng.integers(0, 4)):  # hills
        x, z = rng.uniform(-1, 1) * 3 * reach, rng.uniform(1.5, 4) * reach
        half = (rng.uniform(0.5, 2) * reach, rng.uniform(0.05, 0.4) * reach, rng.uniform(0.5, 1) * reach)
        b.ball((x, 0, z), half, random_material(rng, reach / 8, Pattern.CLOUDS))
    ground = random_material(rng, 1.0, Pattern.CLOUDS, Pattern.PLAIN, Pattern.CHECKS, Pattern.BRICKS, Pattern.CLOUDS)
    height, round_ = rng.uniform(0.15, 1.3), rng.uniform(0, 2 * math.pi)
    to_sun = np.array([math.cos(height) * math.cos(round_), math.sin(height), math.cos(height) * math.sin(round_)])
    strength = rng.choice([0.25, rng.uniform(0.7, 1.4)], p=[0.3, 0.7])
    light = Light(_vector(to_sun), _scaled((1.0, 0.95, 0.85), strength), sun=True)
    far = np.array([rng.normal(0, 2), eye[1] + rng.normal(-1.0, 1.0) - 0.1 * max(eye[1] - 2, 0) * 10, 12])
    return _finish(seed, b, None, [ground] * 6, light, far, view)


def _lamp(rng: np.random.Generator, position: np.ndarray) -> Light:
    warm = rng.uniform(0.7, 1.0)
    return Light(
        _vector(position), _scaled((1.0, 0.5 + 0.5 * warm, 0.2 + 0.8 * warm), rng.uniform(0.5, 1.3)), sun=False
    )


def _finish(
    seed: int,
    b: Builder,
    half: np.ndarray | None,
    faces: list[Material],
    light: Light,
    aim: np.ndarray,
    view: float | None = None,
) -> Scene:
    """The scene around the builder's solids, with a camera at the builder's eye that looks at `aim`."""
    rng = b.rng
    forward = aim - b.eye
    forward = forward / np.linalg.norm(forward)
    roll = rng.normal(0, 0.05)
    right = np.cross([math.sin(roll), math.cos(roll), 0], forward)
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(forward, right), forward])
    camera = Camera(_vector(b.eye), torch.tensor(axes, dtype=torch.float32), view or float(rng.uniform(0.75, 1.4)))
    ambient = _scaled((1.0, 1.0, 1.0), rng.uniform(0.2, 0.5))
    blue = rng.random()
    zenith = _scaled((1 - 0.75 * blue, 1 - 0.5 * blue, 1.0), rng.uniform(0.4, 1.0))
    horizon = _scaled((1.0, 1.0, 1.0), rng.uniform(0.5, 1.0))
    haze = math.inf if half is not None else float(np.exp(rng.uniform(math.log(40), math.log(3000))))
    room = None if half is None else _vector(half)
    materials = [*b.materials(), *faces]
    return Scene(seed, room, b.solids(), materials, light, ambient, camera, (horizon, zenith), haze)


def _vector(values: np.ndarray) -> Tensor:
    return torch.tensor(np.asarray(values, dtype=np.float32))


def _scaled(colour: Vector, strength: float) -> Vector:
    return colour[0] * strength, colour[1] * strength, colour[2] * strength
