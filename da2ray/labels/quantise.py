"""Depth -> integers, on the teacher's device. `da2ray.labels.codec` turns them back into depth."""

from dataclasses import dataclass
from typing import Final

import torch

_FLOAT32: Final = torch.finfo(torch.float32)


@dataclass(frozen=True, slots=True)
class Quantised:
    """A micro-batch of N maps as integers, on the device of its input: depth = offset + scale * q.

    Attributes:
        q: uint16 (N, h, w), at most 2^bits - 1.
        scale: float32 (N,), 0 for a constant map.
        offset: float32 (N,), the smallest value of each map, exactly.
    """

    q: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor


def quantise(depth: torch.Tensor, bits: int) -> Quantised:
    """Map each image's own range onto 0 .. 2^bits - 1, to the nearest step.

    Args:
        depth: float32 (N, h, w), all finite; on any device. Not changed.
        bits: 8 to 16.

    Returns:
        Integers whose dequantised values lie within scale / 2, and float32 rounding, of the input. The smallest value
        of each image (an exact zero, say) comes back exactly.

    Raises:
        ValueError: `bits`, the dtype or the shape do not fit; on CPU, also if a value is not finite. On CUDA this check would
            have to wait for the device; there such an image gets a scale or offset that is not finite, which `build_shard`
            refuses. Filter such images before.
    """
    if depth.dtype != torch.float32 or depth.ndim != 3:
        raise ValueError(f"depth must be float32 (N, h, w), not {depth.dtype} {tuple(depth.shape)}")
    if not 8 <= bits <= 16:
        raise ValueError(f"bits must be 8 to 16, not {bits}")
    flat = depth.reshape(len(depth), -1)
    # Two passes: on CPU `aminmax(dim=1)` is not vectorised and takes 20x as long as amin and amax together (torch 2.13).
    low, high = flat.amin(1), flat.amax(1)
    if depth.device.type == "cpu" and not bool((low.isfinite() & high.isfinite()).all()):
        raise ValueError("depth has NaN or infinite values")
    # A range above the largest float32 is computed in halves.
    part = torch.where((high - low).isinf(), 0.5, 1.0)
    span = high * part - low * part
    # At least the smallest normal number, because 1 / denormal is infinite and devices may flush denormals to zero.
    step = (span / (2**bits - 1)).clamp_(min=_FLOAT32.smallest_normal)
    # A constant map gives 0 / step = 0.
    steps = (flat * part[:, None]).sub_((low * part)[:, None]).div_(step[:, None]).round_()
    scale = torch.where(high > low, step / part, 0.0)
    return Quantised(steps.to(torch.uint16).view(depth.shape), scale, low)
