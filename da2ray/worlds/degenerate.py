"""Scenes whose picture says little about depth, or something false: a bare wall up close, and a large mirror."""

import math
from dataclasses import replace

import numpy as np
import torch

from da2ray.worlds.builder import Material, Pattern, random_colour
from da2ray.worlds.render import first_surfaces
from da2ray.worlds.scene import Camera, Light, Scene, make_scene
from da2ray.worlds.solids import Shape, Solids

ANOTHER_SEED = 1 << 32
"""Number that is added to a seed until its scene has a place for a mirror."""
LEAST_MIRROR = 0.15
"""Smallest share of the picture that a mirror covers."""
SKETCH = (36, 48)
"""(height, width) of the sketch in which that share is measured."""
MIRROR_SHARE = 0.92
"""Share of the light that a glass mirror reflects."""
_HALL = (12.0, 6.0, 12.0)  # half extents of the room whose wall fills the picture
_WALLS = {0: (0, -1), 1: (0, 1), 4: (2, -1), 5: (2, 1)}  # face of a room -> its axis and side


def flat_wall_scene(seed: int) -> Scene:
    """The scene of a plain wall at 0.4 to 1.5 m, seen at 15 to 45 degrees from its normal, with nothing else in the picture.

    The wall is slanted so that its depth varies. The depth of a wall seen straight on is constant, and alignment would make any
    label of it right.
    """
    rng = np.random.Generator(np.random.PCG64([seed, 1]))
    view, near = rng.uniform(0.75, 1.1), rng.uniform(0.4, 1.5)
    yaw, pitch = rng.choice([-1, 1]) * math.radians(rng.uniform(15, 45)), rng.uniform(-0.2, 0.2)
    eye = np.array([0.0, _HALL[1], _HALL[2] - near])
    forward = np.array([math.sin(yaw) * math.cos(pitch), math.sin(pitch), math.cos(yaw) * math.cos(pitch)])
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(forward, right), forward])
    colour = random_colour(rng, 0.2)
    wall = Material(colour, colour, Pattern.PLAIN, 1.0, grime=float(rng.uniform(0, 0.08)), gloss=0.0)
    lamp = eye + np.array([rng.uniform(-1.5, 1.5), rng.uniform(0.5, 2.0), -rng.uniform(0.5, 2.0)])
    nothing = Solids([], torch.zeros(0, 3), torch.zeros(0, 3, 3), torch.zeros(0, 3))
    return Scene(
        seed,
        room=torch.tensor(_HALL),
        solids=nothing,
        materials=[wall] * 6,
        light=Light(torch.tensor(lamp, dtype=torch.float32), (1.0, 0.95, 0.85), sun=False),
        ambient=(0.35, 0.35, 0.35),
        camera=Camera(
            torch.tensor(eye, dtype=torch.float32), torch.tensor(axes, dtype=torch.float32), view=float(view)
        ),
        sky=((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
        haze=math.inf,
    )


def mirror_scene(seed: int) -> Scene:
    """The scene of a room with a large mirror on the wall that fills most of the picture. Things may stand in front of it.

    The reflection looks as far away as the path to the mirror and on to the reflected thing. The true depth is that of the
    mirror's surface.
    """
    while True:
        found = with_mirror(make_scene(seed), np.random.Generator(np.random.PCG64([seed, 2])))
        if found is not None:
            return found
        seed += ANOTHER_SEED


def with_mirror(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """The scene with a mirror on its most visible wall, or None outdoors or if too little of the mirror would be visible."""
    if scene.room is None:
        return None
    solids, half = len(scene.solids), scene.room.numpy()
    points, surface = (values.numpy() for values in first_surfaces(scene, *SKETCH))
    face = max(_WALLS, key=lambda wall: np.count_nonzero(surface == solids + wall))
    on_wall = points[surface == solids + face]
    if not len(on_wall):
        return None
    axis, side = _WALLS[face]
    along = 2 - axis
    middle, extent = on_wall.mean(0), half * rng.uniform(0.55, 0.9, 3)
    extent[axis] = 0.02
    # The mirror stays within the wall: its middle moves only until an edge reaches the wall's edge.
    centre = np.array([0.0, half[1], 0.0])
    for direction in (along, 1):
        room = half[direction] - extent[direction]
        centre[direction] += np.clip(middle[direction] - centre[direction], -room, room)
    centre[axis] = side * (half[axis] - 0.02)
    glass = Material((0.5, 0.52, 0.52), (0.5, 0.52, 0.52), Pattern.PLAIN, 1.0, 0.0, 0.0, MIRROR_SHARE)
    changed = replace(
        scene,
        solids=Solids(
            [*scene.solids.shape, Shape.BOX],
            torch.cat([scene.solids.centre, torch.tensor(centre, dtype=torch.float32)[None]]),
            torch.cat([scene.solids.axes, torch.eye(3)[None]]),
            torch.cat([scene.solids.half, torch.tensor(extent, dtype=torch.float32)[None]]),
        ),
        materials=[*scene.materials[:solids], glass, *scene.materials[solids:]],
    )
    eye = scene.camera.position.numpy()
    inside = np.all(np.abs(eye - centre) <= extent + 0.1)
    _, seen = first_surfaces(changed, *SKETCH)
    return None if inside or (seen == solids).float().mean() < LEAST_MIRROR else changed
