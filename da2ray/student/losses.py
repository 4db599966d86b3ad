"""The losses of Depth Anything V2's students, for labels that are known up to a scale and a shift (arXiv 2406.09414).

The paper's two losses, the scale-and-shift-invariant one and gradient matching, compare maps with median 0 and mean absolute
deviation 1 (MiDaS, arXiv 1907.01341, section 5).
"""

import torch.nn.functional as F
from torch import Tensor

GRADIENT_WEIGHT = 2.0
"""Weight of the gradient loss relative to the other (1 : 2 in the paper)."""
SCALES = 4
"""Number of resolutions at which gradients are compared, each half the one before (MiDaS)."""
_SMALLEST = 1e-6


def normalised(maps: Tensor) -> Tensor:
    """Shift and scale each map of float32 (N, H, W) to median 0 and mean absolute deviation 1."""
    flat = maps.flatten(1)
    centred = flat - flat.median(1, keepdim=True).values
    return (centred / centred.abs().mean(1, keepdim=True).clamp_min(_SMALLEST)).view_as(maps)


def affine_invariant_loss(prediction: Tensor, label: Tensor, gradient_weight: float = GRADIENT_WEIGHT) -> Tensor:
    """The scale-and-shift-invariant loss plus gradient matching of maps (N, H, W), as a scalar: the mean over the batch.

    A map with a flat label says nothing about relative depth and counts as 0.
    """
    difference = normalised(prediction.float()) - normalised(label.float())
    flat = label.flatten(1)
    says = (flat - flat.median(1, keepdim=True).values).abs().mean(1) > 1e-3 * flat.abs().amax(1).clamp_min(_SMALLEST)
    each = difference.abs().mean((1, 2)) + gradient_weight * gradient_differences(difference)
    return (each * says).mean()


def aligned_depth_loss(prediction: Tensor, disparity: Tensor, farthest: float) -> Tensor:
    """The mean |log| of the ratio of metres after the best scale and shift in disparity, as a scalar: the mean over the batch.

    Labels are judged in the same way (`da2ray.quality.depth_metrics.aligned_depth`, AbsRel, delta). Differences in disparity
    hardly show errors far away: at 40 m, an error of a quarter is a hundredth of the disparity at 2 m.

    Args:
        prediction: (N, H, W), up to scale and shift, larger = nearer.
        disparity: float32 (N, H, W), 1 / metres.
        farthest: metres. Pixels beyond it do not count, and a map with only such pixels counts as 0.
    """
    valid = (disparity > 1 / farthest).flatten(1).float()
    target, given = disparity.flatten(1), prediction.float().flatten(1)
    total = valid.sum(1, keepdim=True).clamp_min(1)

    def mean(values: Tensor) -> Tensor:
        return (values * valid).sum(1, keepdim=True) / total

    across, up = given - mean(given), target - mean(target)
    scale = mean(across * up) / mean(across * across).clamp_min(_SMALLEST)
    fitted = (scale * across + mean(target)).clamp_min(1 / farthest)
    return mean((fitted.log() - target.clamp_min(1 / farthest).log()).abs()).mean()


def gradient_differences(difference: Tensor) -> Tensor:
    """The mean absolute slopes (N,) of difference maps (N, H, W), summed over `SCALES` resolutions."""
    total = difference.new_zeros(len(difference))
    for scale in range(SCALES):
        coarse = difference[:, :: 2**scale, :: 2**scale]
        total = total + coarse.diff(dim=1).abs().mean((1, 2)) + coarse.diff(dim=2).abs().mean((1, 2))
    return total


def resized_label(label: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize labels (N, H, W) to `size`, corners on corners, as the network's own interpolation does."""
    return F.interpolate(label[:, None], size=size, mode="bilinear", align_corners=True)[:, 0]
