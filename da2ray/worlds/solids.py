"""Solids and rays: where a ray first meets a box, an ellipsoid or a cylinder, and the direction of the surface there.

Every solid is a unit solid (|x|, |y|, |z| <= 1; |p| <= 1; x^2 + z^2 <= 1 and |y| <= 1) that is stretched by its half sizes,
rotated and moved. Stretching does not change ray parameters, so three small tests serve all solids.
"""

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

NEAR = 1e-4
"""Distance from a ray's start in metres within which a hit counts as the surface where the ray starts."""


class Shape(IntEnum):
    BOX = 0
    BALL = 1
    CYLINDER = 2  # along y


@dataclass(frozen=True, slots=True)
class Solids:
    """K solids, in metres, with y upwards.

    Attributes:
        shape: K shapes.
        centre: float32 (K, 3).
        axes: float32 (K, 3, 3), whose rows are the solid's own axes in the world.
        half: float32 (K, 3), half the solid's extent along each axis.
    """

    shape: list[Shape]
    centre: Tensor
    axes: Tensor
    half: Tensor

    def __len__(self) -> int:
        return len(self.shape)

    def local(self, index: Tensor, points: Tensor) -> Tensor:
        """World points (P, 3) -> metres (P, 3) along the axes of the solids `index` (P,)."""
        return torch.einsum("pij,pj->pi", self.axes[index], points - self.centre[index])

    def normals(self, index: Tensor, points: Tensor) -> Tensor:
        """Unit outward normals (P, 3) at surface points (P, 3) of the solids `index` (P,)."""
        half = self.half[index]
        unit = self.local(index, points) / half
        shape = torch.tensor(self.shape, device=points.device)[index]
        face = torch.nn.functional.one_hot(unit.abs().argmax(1), 3).to(unit.dtype) * unit.sign()
        side = unit * unit.new_tensor([1.0, 0.0, 1.0])
        on_cap = unit[:, 1].abs() > side.norm(dim=1)
        cap = unit * unit.new_tensor([0.0, 1.0, 0.0])
        normal = torch.where(
            (shape == Shape.BOX)[:, None],
            face,
            torch.where((shape == Shape.BALL)[:, None], unit, torch.where(on_cap[:, None], cap, side)),
        )
        world = torch.einsum("pij,pi->pj", self.axes[index], normal / half)
        return torch.nn.functional.normalize(world, dim=1)


def first_hits(solids: Solids, origin: Tensor, direction: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Find the first solid along each ray.

    A loop over the solids tests each of them only against the rays that pass its bounding sphere. They are a small share of a
    picture's rays, and tests of the others would only find misses.

    Args:
        solids: K solids.
        origin: float32 (P, 3), or (3,) if all rays start at one point.
        direction: float32 (P, 3), unit vectors.
        limit: float32 (P,), metres along each ray beyond which nothing counts.

    Returns:
        distance, float32 (P,), which is `limit` for a miss, and index, int64 (P,), which is -1 for a miss.
    """
    distance = limit.clone()
    index = torch.full(limit.shape, -1, dtype=torch.int64, device=limit.device)
    radii = torch.where(
        torch.tensor([shape == Shape.BALL for shape in solids.shape], dtype=torch.bool, device=limit.device),
        solids.half.amax(1),
        solids.half.norm(dim=1),
    ).tolist()
    # |c - o|^2 and (c - o) . d are split into parts, so that the parts that depend only on the rays are computed once.
    origin_along, origin_squared = (origin * direction).sum(1), (origin * origin).sum(-1)
    for k, (shape, radius) in enumerate(zip(solids.shape, radii, strict=True)):
        centre = solids.centre[k]
        along = direction @ centre - origin_along
        squared = origin_squared - 2 * (origin @ centre) + centre @ centre
        passes = squared - along * along < 1.01 * radius * radius
        rays = (passes & (along > -radius) & (along - radius < distance)).nonzero().squeeze(1)
        if not len(rays):
            continue
        frame = solids.axes[k].T / solids.half[k]
        starts = (origin if origin.ndim == 1 else origin[rays]) - centre
        enters = _enter(shape, (starts @ frame).expand(len(rays), 3), direction[rays] @ frame)
        nearer = enters < distance[rays]
        distance[rays[nearer]] = enters[nearer]
        index[rays[nearer]] = k
    return distance, index


def leave_box(half: Tensor, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Find where rays that start inside a box around 0, with half extents (3,), leave it.

    Returns:
        distance, float32 (P,), and face, int64 (P,), which is 2 * axis, + 1 on the positive side.
    """
    steps = (half * direction.sign() - origin) / direction
    distance, axis = torch.where(direction == 0, torch.inf, steps).min(1)
    positive = direction.gather(1, axis[:, None]).squeeze(1) > 0
    return distance, 2 * axis + positive.long()


def _enter(shape: Shape, origin: Tensor, direction: Tensor) -> Tensor:
    """The ray parameter (P,) at which rays enter a unit solid; infinity if they miss it or start inside."""
    if shape is Shape.BOX:
        first, last = _slab(origin, direction)
        first, last = first.amax(1), last.amin(1)
    elif shape is Shape.BALL:
        first, last = _ball(origin, direction)
    else:
        side_first, side_last = _ball(origin[:, ::2], direction[:, ::2])
        cap_first, cap_last = _slab(origin[:, 1], direction[:, 1])
        first, last = torch.maximum(side_first, cap_first), torch.minimum(side_last, cap_last)
    return torch.where((first < last) & (first > NEAR), first, torch.inf)


def _slab(origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """The parameters at which each coordinate enters and leaves [-1, 1]."""
    safe = torch.where(direction.abs() < 1e-12, 1e-12, direction)
    one, other = (-1 - origin) / safe, (1 - origin) / safe
    return torch.minimum(one, other), torch.maximum(one, other)


def _ball(origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """The parameters at which rays enter and leave |p| <= 1, in any number of dimensions; (inf, -inf) for a miss."""
    a = (direction * direction).sum(1).clamp_min(1e-20)
    b = (origin * direction).sum(1)
    c = (origin * origin).sum(1) - 1
    root = b * b - a * c
    hit, root = root > 0, root.clamp_min(0).sqrt()
    return torch.where(hit, (-b - root) / a, torch.inf), torch.where(hit, (-b + root) / a, -torch.inf)
