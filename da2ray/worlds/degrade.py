"""Pictures on which a teacher should fail, with exact depth, to test quality scores.

There are six kinds. Four degrade the picture of an ordinary world like cameras and compression do. Two are scenes whose picture
says little about depth or something false (`da2ray.worlds.degenerate`). The delta1 of Depth Anything V2 S falls from .952 to .862
on blurred and to .910 on dark pictures (arXiv 2507.01634).
"""

from enum import StrEnum
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from da2ray.worlds.degenerate import flat_wall_scene, mirror_scene
from da2ray.worlds.render import World, render
from da2ray.worlds.scene import Scene, make_scene

Image = NDArray[np.uint8]

BLUR = (0.02, 0.05)
"""Standard deviation of the blur, as a share of the short side: 8 to 19 pixels of 378, far out of focus. At half of it the
embedded teacher, whose own maps are soft, makes no larger errors than without blur."""
NOISE = (0.15, 0.35)
"""Standard deviation of the noise of each pixel and channel, as a share of white."""
EXPOSURE = (0.01, 0.05)
"""Share of the light that reaches the sensor of an underexposed picture: 4 to 7 stops too little."""
READ_NOISE = 0.012
"""Noise of that sensor, as a share of white after development. With 8 bits it hides much of the remaining light."""
GAMMA = 2.2
JPEG_QUALITY = 10


class Degradation(StrEnum):
    """A way in which a picture is degraded."""

    BLUR = "blur"
    NOISE = "noise"
    DARK = "dark"
    JPEG10 = "jpeg10"
    FLAT_WALL = "flat_wall"
    MIRROR = "mirror"


def world_of(seed: int, degradation: Degradation | None, height: int, width: int) -> tuple[World, Scene]:
    """The world of a seed, degraded or not, and its scene. The depth is exact in both cases."""
    scene = _SCENES[degradation](seed) if degradation in _SCENES else make_scene(seed)
    world = render(scene, height, width)
    if degradation in _SPOILERS:
        image = torch.from_numpy(degrade(world.image.numpy(), degradation, seed))
        world = World(image, world.depth, world.focal)
    return world, scene


def degrade(image: Image, degradation: Degradation, seed: int) -> Image:
    """Degrade a picture: uint8 (H, W, 3) sRGB -> the same shape. The same seed gives the same bytes.

    Raises:
        ValueError: the degradation is a scene and cannot be applied to a picture.
    """
    if degradation not in _SPOILERS:
        raise ValueError(f"{degradation} is a scene: use world_of")
    return _SPOILERS[degradation](image, np.random.Generator(np.random.PCG64([seed, 0])))


def _blurred(image: Image, rng: np.random.Generator) -> Image:
    blurred: Any = cv2.GaussianBlur(image, (0, 0), min(image.shape[:2]) * rng.uniform(*BLUR))
    return blurred


def _noisy(image: Image, rng: np.random.Generator) -> Image:
    return _bytes(image / 255 + rng.normal(0, rng.uniform(*NOISE), image.shape))


def _dark(image: Image, rng: np.random.Generator) -> Image:
    light = (image / 255) ** GAMMA * np.exp(rng.uniform(*np.log(EXPOSURE)))
    return _bytes(light ** (1 / GAMMA) + rng.normal(0, READ_NOISE, image.shape))


def _compressed(image: Image, _: np.random.Generator) -> Image:
    packed = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    decoded: Any = cv2.imdecode(packed, cv2.IMREAD_COLOR)
    return np.ascontiguousarray(decoded[..., ::-1])


def _bytes(values: NDArray[np.float64]) -> Image:
    return (np.clip(values, 0, 1) * 255).round().astype(np.uint8)


_SPOILERS = {
    Degradation.BLUR: _blurred,
    Degradation.NOISE: _noisy,
    Degradation.DARK: _dark,
    Degradation.JPEG10: _compressed,
}
_SCENES = {Degradation.FLAT_WALL: flat_wall_scene, Degradation.MIRROR: mirror_scene}
