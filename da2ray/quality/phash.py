"""A 64-bit perceptual hash: images that look alike differ in few bits, whatever their size, format or quality.

The discrete cosine transform (DCT-II) of 32 x 32 grey levels; bit k says whether its k-th coefficient is above the median of the
64. These are the 8 x 8 of lowest frequencies, row by row (vertical frequency first), without the first one, which is the
brightness; in its place, as bit 0, stands that of horizontal frequency 8 and vertical frequency 0.

Bits that differ, of 64, on 8 photographs of scikit-image and scikit-learn (tests/quality/test_phash.py): saved as a JPEG of
quality 50, 0 to 2; at half the size, 0 to 2; 10 % brighter, 0 to 4; all three, 0 to 4. Two of the photographs: 24 to 38, on
average 32.6.
"""

import functools
import math

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

SIDE = 32
"""Grey levels along each side that are transformed."""
LOW = 8
"""Frequencies along each side that are looked at."""
STEP = 1 / 16
"""Coefficients, in grey levels of 0 to 255, are rounded to that: noise of float32 gives no bits, and an image of one
colour has the hash 0."""


def perceptual_hash(levels: Tensor) -> Tensor:
    """The hash of images.

    Args:
        levels: float32 (N, rows, columns), grey levels from 0 to 255 (`da2ray.quality.image_scores.grey`).

    Returns:
        int64 (N,), whose 64 bits are those of the unsigned hash; the lowest one is bit 0.
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
    """float64 (LOW + 1, SIDE): the orthonormal cosines, by frequency; int64 (64,): the bits' numbers. Kept a device."""
    with torch.inference_mode(False):
        at = torch.arange(SIDE, dtype=torch.float64) + 0.5
        cosines = torch.cos(math.pi / SIDE * torch.arange(LOW + 1, dtype=torch.float64)[:, None] * at)
        cosines *= math.sqrt(2 / SIDE)
        cosines[0] /= math.sqrt(2)
        return cosines.to(device), torch.arange(LOW * LOW).to(device)
