"""A 64-bit perceptual hash: images that look alike differ in few bits, whatever their size, format or quality.

The hash takes the discrete cosine transform (DCT-II) of 32 x 32 grey levels. Bit k says whether coefficient k is above the
median of 64 coefficients. These are the 8 x 8 of lowest frequency, row by row (vertical frequency first), except the first one,
which is the brightness. In its place, as bit 0, stands the coefficient of horizontal frequency 8 and vertical frequency 0.

How many of the 64 bits change, on 8 photographs of scikit-image and scikit-learn (tests/quality/test_phash.py): saved as a JPEG
of quality 50, 0 to 2; at half the size, 0 to 2; 10 % brighter, 0 to 4; all three, 0 to 4. Two different photographs differ in
24 to 38 bits, on average 32.6.
"""

import functools
import math

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

SIDE = 32
"""Side of the square of grey levels that is transformed."""
LOW = 8
"""Frequencies along each side that enter the hash."""
STEP = 1 / 16
"""Coefficients, in grey levels of 0 to 255, are rounded to multiples of this. So float32 noise sets no bits, and an image of
one colour has the hash 0."""


def perceptual_hash(levels: Tensor) -> Tensor:
    """Hash images.

    Args:
        levels: float32 (N, rows, columns), grey levels from 0 to 255 (`da2ray.quality.image_scores.grey`).

    Returns:
        int64 (N,) with the 64 bits of the unsigned hash; the lowest is bit 0.
    """
    small = adaptive_avg_pool2d(levels[:, None], (SIDE, SIDE))[:, 0].double()
    basis, places = _basis(levels.device)
    low = basis @ small @ basis.T  # (N, LOW + 1, LOW + 1)
    chosen = low[:, :LOW, :LOW].flatten(1)
    chosen = torch.cat([low[:, 0, LOW, None], chosen[:, 1:]], dim=1).div_(STEP).round_()
    above = chosen > chosen.median(1, keepdim=True).values
    return (above.long() << places).sum(1)


@functools.cache
def _basis(device: torch.device) -> tuple[Tensor, Tensor]:
    """The orthonormal cosines by frequency, float64 (LOW + 1, SIDE), and the bits' numbers, int64 (64,). Kept for each device."""
    with torch.inference_mode(False):
        at = torch.arange(SIDE, dtype=torch.float64) + 0.5
        cosines = torch.cos(math.pi / SIDE * torch.arange(LOW + 1, dtype=torch.float64)[:, None] * at)
        cosines *= math.sqrt(2 / SIDE)
        cosines[0] /= math.sqrt(2)
        return cosines.to(device), torch.arange(LOW * LOW).to(device)
