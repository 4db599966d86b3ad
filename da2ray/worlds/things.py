"""The things in worlds: furniture, small things on tables, and things outdoors."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from da2ray.worlds.builder import Builder, Material, Pattern, random_material
from da2ray.worlds.solids import Shape


@dataclass(frozen=True, slots=True)
class _Measure:
    """The measures of a piece of furniture: half its width and depth, its height and its limit in metres, and its material."""

    w: float
    d: float
    h: float
    limit: float
    wood: Material


def furniture(b: Builder, limit: float) -> None:
    """Build one thing that stands on the floor and is at most `limit` metres tall."""
    rng = b.rng
    wood = random_material(rng, 0.1)
    w, d, h = rng.uniform(0.25, 0.9), rng.uniform(0.2, 0.5), min(rng.uniform(0.35, 1.0), limit)
    _FURNITURE[rng.integers(len(_FURNITURE))](b, _Measure(w, d, h, limit, wood))


def _desk(b: Builder, m: _Measure) -> None:
    """A table with things on it."""
    rng = b.rng
    leg = rng.uniform(0.015, 0.05)
    b.box((0, m.h, 0), (m.w, 0.025, m.d), m.wood)
    for x in (-1, 1):
        for z in (-1, 1):
            b.box((x * (m.w - leg), m.h / 2, z * (m.d - leg)), (leg, m.h / 2, leg), m.wood)
    for _ in range(rng.integers(4)):
        with b.at(rng.uniform(-m.w, m.w) * 0.8, m.h + 0.025, rng.uniform(-m.d, m.d) * 0.8, rng.uniform(0, 6)):
            trinket(b, rng.uniform(0.05, 0.2))


def _chair(b: Builder, m: _Measure) -> None:
    """A chair."""
    seat = min(0.45, m.h)
    b.box((0, seat, 0), (0.22, 0.025, 0.22), m.wood)
    b.box((0, seat + 0.3, -0.2), (0.22, 0.25, 0.02), m.wood)
    for x in (-0.2, 0.2):
        for z in (-0.2, 0.2):
            b.rod((x, seat / 2, z), 0.02, seat / 2, m.wood)


def _shelves(b: Builder, m: _Measure) -> None:
    """Shelves."""
    rng = b.rng
    height = min(rng.uniform(0.8, 2.2), m.limit)
    for side in (-1, 1):
        b.box((side * m.w, height / 2, 0), (0.02, height / 2, 0.18), m.wood)
    for y in np.arange(0.1, height, rng.uniform(0.25, 0.5)):
        b.box((0, float(y), 0), (m.w, 0.015, 0.18), m.wood)
        if rng.random() < 0.6:
            x = rng.uniform(-0.6, 0.6) * m.w
            b.box((x, float(y) + 0.11, 0), (rng.uniform(0.05, 0.3) * m.w, 0.1, 0.1), random_material(rng, 0.05))


def _sofa(b: Builder, m: _Measure) -> None:
    """A sofa or a bed."""
    rng = b.rng
    soft = random_material(rng, 0.15)
    b.box((0, 0.22, 0), (m.w + 0.3, 0.2, 0.45), soft)
    b.box((0, 0.5, -0.4), (m.w + 0.3, 0.3, 0.1), soft)
    for side in (-1, 1):
        b.box((side * (m.w + 0.25), 0.4, 0), (0.09, 0.2, 0.45), soft)


def _lamp_or_plant(b: Builder, m: _Measure) -> None:
    """A lamp or a plant."""
    rng = b.rng
    b.rod((0, m.h / 2, 0), rng.uniform(0.01, 0.03), m.h / 2, m.wood)
    b.rod((0, 0.02, 0), 0.15, 0.02, m.wood)
    for _ in range(rng.integers(1, 5)):
        spread = rng.normal(0, 0.12, 3)
        half = rng.uniform(0.08, 0.25, 3)
        b.ball(
            (spread[0], m.h + spread[1], spread[2]),
            tuple(half),
            random_material(rng, 0.08, Pattern.CLOUDS, Pattern.PLAIN),
        )


def _cupboard(b: Builder, m: _Measure) -> None:
    """A cupboard."""
    rng = b.rng
    b.box((0, m.h, 0), (m.w, m.h, m.d), m.wood)
    b.box((0, m.h, m.d), (0.006, m.h * 0.95, 0.006), random_material(rng))
    b.rod((0.06, m.h, m.d + 0.02), 0.01, 0.08, random_material(rng))


def _stack(b: Builder, m: _Measure) -> None:
    """A stack of boxes."""
    rng = b.rng
    y = 0.0
    for _ in range(rng.integers(1, 5)):
        half = rng.uniform(0.08, 0.35, 3)
        b.box(
            (rng.normal(0, 0.05), y + half[1], rng.normal(0, 0.05)),
            tuple(half),
            random_material(rng),
            yaw=rng.uniform(0, 6),
        )
        y += 2 * half[1]
        if y > m.limit:
            break


def _motorcycle(b: Builder, _: _Measure) -> None:
    """A motorcycle."""
    rng = b.rng
    metal, rubber = random_material(rng, 0.1), random_material(rng, 0.1, Pattern.PLAIN)
    r = rng.uniform(0.22, 0.36)
    for x in (-1.6 * r, 1.6 * r):
        b.rod((x, r, 0), r, 0.05, rubber, tilt=math.pi / 2)
        b.rod((x, r, 0), r * 0.6, 0.07, metal, tilt=math.pi / 2)
    b.box((0, 1.5 * r, 0), (1.1 * r, 0.25 * r, 0.12), metal)
    b.ball((0.5 * r, 2.2 * r, 0), (0.7 * r, 0.35 * r, 0.15), random_material(rng))
    b.rod((1.3 * r, 2.2 * r, 0), 0.02, 1.1 * r, metal)
    b.rod((1.2 * r, 3.2 * r, 0), 0.02, 0.35, metal, tilt=math.pi / 2)
    b.box((-0.9 * r, 2.1 * r, 0), (0.8 * r, 0.1, 0.13), random_material(rng))


def _jumble(b: Builder, _m: _Measure) -> None:
    """Random solids in any position."""
    rng = b.rng
    for _ in range(rng.integers(2, 9)):
        half = rng.uniform(0.03, 0.4, 3)
        centre = (rng.normal(0, 0.3), abs(rng.normal(0.3, 0.3)), rng.normal(0, 0.3))
        turned = {"yaw": rng.uniform(0, 6), "tilt": rng.uniform(0, 3)}
        b.add(Shape(int(rng.integers(3))), centre, tuple(half), random_material(rng, 0.1), **turned)


_FURNITURE: list[Callable[[Builder, _Measure], None]] = [
    _desk,
    _chair,
    _shelves,
    _sofa,
    _lamp_or_plant,
    _cupboard,
    _stack,
    _motorcycle,
    _jumble,
]


def trinket(b: Builder, s: float) -> None:
    """Build one thing that stands on a table and is about 2 `s` metres tall."""
    rng = b.rng
    m = random_material(rng, s / 2)
    kind = rng.integers(7)
    if kind == 0:  # a cup on its saucer, with a spoon
        b.rod((0, 0.03 * s, 0), 1.3 * s, 0.03 * s, m)
        b.rod((0, 0.5 * s, 0), 0.6 * s, 0.5 * s, m)
        b.rod((0, 1.0 * s, 0), 0.52 * s, 0.01 * s, random_material(rng, s))
        b.rod((0.7 * s, 0.5 * s, 0), 0.25 * s, 0.06 * s, m, tilt=math.pi / 2)
        b.ball((0, 0.1 * s, 1.0 * s), (0.9 * s, 0.04 * s, 0.08 * s), random_material(rng, s, Pattern.PLAIN))
    elif kind == 1:  # a bottle
        b.rod((0, 0.8 * s, 0), 0.35 * s, 0.8 * s, m)
        b.rod((0, 1.9 * s, 0), 0.12 * s, 0.4 * s, m)
    elif kind == 2:  # a pile of books
        for i in range(rng.integers(1, 6)):
            b.box(
                (0, (0.15 + 0.3 * i) * s, 0),
                (0.9 * s, 0.14 * s, 0.6 * s),
                random_material(rng, s),
                yaw=rng.normal(0, 0.3),
            )
    elif kind == 3:
        half = rng.uniform(0.3, 1.0, 3) * s
        b.ball((0, half[1], 0), tuple(half), m)
    elif kind == 4:
        half = rng.uniform(0.2, 1.0, 3) * s
        b.box((0, half[1], 0), tuple(half), m)
    elif kind == 5:  # head and shoulders
        b.ball((0, 0.6 * s, 0), (0.9 * s, 0.7 * s, 0.4 * s), m)
        b.rod((0, 1.3 * s, 0), 0.2 * s, 0.3 * s, m)
        b.ball((0, 1.8 * s, 0), (0.35 * s, 0.45 * s, 0.4 * s), random_material(rng, s))
    else:  # an animal
        coat = random_material(rng, s / 2)
        b.ball((0, 0.8 * s, 0), (0.9 * s, 0.45 * s, 0.4 * s), coat)
        b.ball((0.9 * s, 1.3 * s, 0), (0.35 * s, 0.35 * s, 0.3 * s), coat)
        for x in (-0.6, 0.6):
            for z in (-0.25, 0.25):
                b.rod((x * s, 0.3 * s, z * s), 0.1 * s, 0.3 * s, coat)


def tree(b: Builder) -> None:
    rng = b.rng
    height = rng.uniform(1, 5)
    b.rod(
        (0, height / 2, 0),
        rng.uniform(0.05, 0.25),
        height / 2,
        random_material(rng, 0.2, Pattern.GRAIN, Pattern.CLOUDS),
    )
    leaf = random_material(rng, 0.25, Pattern.CLOUDS)
    for _ in range(rng.integers(1, 6)):
        half = rng.uniform(0.2, 0.45, 3) * height
        spread = rng.normal(0, 0.2, 3) * height
        b.ball((spread[0], height + 0.5 * spread[1], spread[2]), tuple(half), leaf)


def pole(b: Builder) -> None:
    height = b.rng.uniform(1, 4)
    b.rod((0, height, 0), b.rng.uniform(0.03, 0.12), height, random_material(b.rng))
    if b.rng.random() < 0.6:
        b.box((0, 2 * height, 0), tuple(b.rng.uniform(0.03, 0.5, 3)), random_material(b.rng))


def car(b: Builder) -> None:
    paint, wheel = random_material(b.rng, 0.5, Pattern.PLAIN), random_material(b.rng, 0.3, Pattern.PLAIN)
    b.box((0, 0.65, 0), (2.1, 0.35, 0.85), paint)
    b.box((-0.2, 1.2, 0), (1.1, 0.25, 0.75), random_material(b.rng, 0.5, Pattern.PLAIN, Pattern.WINDOWS))
    for x in (-1.3, 1.3):
        for z in (-0.8, 0.8):
            b.rod((x, 0.33, z), 0.33, 0.1, wheel, tilt=math.pi / 2)


def person(b: Builder) -> None:
    cloth = random_material(b.rng, 0.2)
    for x in (-0.1, 0.1):
        b.rod((x, 0.4, 0), 0.08, 0.4, random_material(b.rng, 0.2))
    b.ball((0, 1.1, 0), (0.25, 0.4, 0.16), cloth)
    for x in (-0.3, 0.3):
        b.rod((x, 1.05, 0), 0.05, 0.35, cloth)
    b.ball((0, 1.62, 0), (0.11, 0.15, 0.12), random_material(b.rng, 0.1, Pattern.PLAIN))


def rock(b: Builder) -> None:
    half = b.rng.uniform(0.2, 1.2, 3)
    b.ball((0, half[1] * 0.5, 0), tuple(half), random_material(b.rng, 0.4, Pattern.CLOUDS), tilt=b.rng.normal(0, 0.3))


def fence(b: Builder) -> None:
    wood, height, long = random_material(b.rng, 0.2), b.rng.uniform(0.4, 1.1), b.rng.uniform(1, 4)
    for x in np.linspace(-long, long, int(b.rng.integers(4, 10))):
        b.box((float(x), height / 2, 0), (0.04, height / 2, 0.04), wood)
    for y in (0.4, 0.9):
        b.box((0, y * height, 0), (long, 0.04, 0.02), wood)


def house(b: Builder) -> None:
    half = (b.rng.uniform(2, 6), b.rng.uniform(1.5, 5), b.rng.uniform(2, 6))
    b.box((0, half[1], 0), half, random_material(b.rng, 1.5, Pattern.WINDOWS, Pattern.BRICKS, Pattern.PLAIN))
    b.box((0, 2 * half[1] + 0.2, 0), (half[0] * 1.08, 0.2, half[2] * 1.08), random_material(b.rng, 0.5))


def clutter(b: Builder) -> None:
    furniture(b, 2.5)
