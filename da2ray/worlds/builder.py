"""Materials, and a builder that puts solids together."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from da2ray.worlds.solids import Shape, Solids

GAP = 0.25
"""Free space around the camera in metres."""

Vector = tuple[float, float, float]


class Pattern(IntEnum):
    """The pattern in which a surface's second colour covers its first."""

    PLAIN = 0
    CHECKS = 1
    STRIPES = 2
    BRICKS = 3
    WINDOWS = 4
    DOTS = 5
    CLOUDS = 6  # noise of several octaves
    GRAIN = 7  # noise stretched along one direction, as in wood


@dataclass(frozen=True, slots=True)
class Material:
    """The material of a surface.

    Attributes:
        colour, second: linear RGB in [0, 1].
        pattern: the pattern of the second colour.
        size: period of the pattern in metres.
        grime: how much noise darkens the surface, 0 to 1.
        gloss: strength of its highlights, 0 to 1.
        mirror: share of light that it reflects like a mirror, 0 to 1.
    """

    colour: Vector
    second: Vector
    pattern: Pattern
    size: float
    grime: float
    gloss: float
    mirror: float = 0.0


@dataclass(slots=True)
class Builder:
    """A collector of solids, which are given in the frame of the thing that is being built."""

    rng: np.random.Generator
    eye: np.ndarray  # the camera's position
    _parts: list[tuple[Shape, np.ndarray, np.ndarray, Vector, Material]] = field(default_factory=list)
    _origin: np.ndarray = field(default_factory=lambda: np.zeros(3))
    _axes: np.ndarray = field(default_factory=lambda: np.eye(3))

    @contextmanager
    def at(self, x: float, y: float, z: float, yaw: float = 0.0) -> Iterator[None]:
        """Make positions inside the context relative to this place and turn them by `yaw`. Contexts nest."""
        before = self._origin, self._axes
        self._origin, self._axes = self._origin + np.array([x, y, z]) @ self._axes, _turn(yaw) @ self._axes
        yield
        self._origin, self._axes = before

    def add(
        self, shape: Shape, centre: Vector, half: Vector, material: Material, *, yaw: float = 0, tilt: float = 0
    ) -> None:
        """Add a solid. Leave it out if it would contain or touch the camera."""
        axes = _turn(yaw, tilt) @ self._axes
        middle = self._origin + np.array(centre) @ self._axes
        outside = np.maximum(np.abs(axes @ (self.eye - middle)) - half, 0)
        if np.linalg.norm(outside) > GAP:
            self._parts.append((shape, middle, axes, half, material))

    def box(self, centre: Vector, half: Vector, material: Material, **turned: float) -> None:
        self.add(Shape.BOX, centre, half, material, **turned)

    def ball(self, centre: Vector, half: Vector, material: Material, **turned: float) -> None:
        self.add(Shape.BALL, centre, half, material, **turned)

    def rod(self, centre: Vector, radius: float, half: float, material: Material, **turned: float) -> None:
        """Add a cylinder, which stands upright unless it is tilted."""
        self.add(Shape.CYLINDER, centre, (radius, half, radius), material, **turned)

    def materials(self) -> list[Material]:
        """The material of each solid."""
        return [material for *_, material in self._parts]

    def solids(self) -> Solids:
        def stacked(values: list[Any], *shape: int) -> Tensor:
            return torch.tensor(np.array(values, dtype=np.float32).reshape(-1, *shape))

        shapes, centres, axes, halves, _ = zip(*self._parts, strict=True) if self._parts else ((), (), (), (), ())
        return Solids(list(shapes), stacked(list(centres), 3), stacked(list(axes), 3, 3), stacked(list(halves), 3))


def _turn(yaw: float, tilt: float = 0.0) -> np.ndarray:
    """The axes, as rows, of something turned about y and then tilted about its own x."""
    c, s = math.cos(yaw), math.sin(yaw)
    turned = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
    c, s = math.cos(tilt), math.sin(tilt)
    return np.array([[1, 0, 0], [0, c, s], [0, -s, c]]) @ turned


def random_colour(rng: np.random.Generator, low: float = 0.03, high: float = 0.85) -> Vector:
    """A random colour, linear RGB. Most are rather grey, like most things."""
    value = rng.uniform(low, high)
    tint = rng.normal(0, 0.35 * rng.random() ** 1.5, 3)
    red, green, blue = np.clip(value * (1 + tint - tint.mean()), 0.01, 0.95)
    return float(red), float(green), float(blue)


def random_material(rng: np.random.Generator, size: float = 0.2, *patterns: Pattern) -> Material:
    pattern = Pattern(int(rng.choice(patterns or tuple(Pattern))))
    colour = random_colour(rng)
    second = (
        random_colour(rng) if rng.random() < 0.5 else tuple(float(c) for c in np.clip(np.array(colour) * 0.6, 0, 1))
    )
    gloss = rng.random() ** 3
    return Material(colour, second, pattern, float(size * rng.uniform(0.4, 2.5)), rng.random() * 0.6, gloss)  # type: ignore[arg-type]
