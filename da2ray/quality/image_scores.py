"""Scores of an image alone, which say how well it can be labelled: in batches, on the input's device, without waiting for it.

All scores are of the image as the network saw it, resized to one short side, so that different sources and teachers can be
compared. At 518 x 686 the resize takes 3 of an image's 4 ms on a CPU core. So only the grey levels are resized; colourfulness
is measured on pixels picked from the image, which changes it little (a mean over 20,000 pixels).
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from da2ray.quality.statistics import entropy, histogram, mean_and_variance, share
from da2ray.teachers.depth_anything.preprocess import MEAN, STD

SHORT_SIDE = 256
"""Short side, in pixels, at which an image is scored: half of the official network size, and about the smallest one."""
COLOUR_SIDE = 128
"""Short side, in pixels, at which colour is scored."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in a grey level (ITU-R BT.601), as in Pillow and OpenCV."""
DARK, BRIGHT = 5.0, 250.0
"""Grey levels of 0 to 255 up to which a pixel counts as clipped at black, and from which it counts as clipped at white. JPEG
and resizing move clipped pixels by about that much."""
LEVELS = 256
"""Bins of the histogram of grey levels: one for each level."""


def grey(images: Tensor) -> Tensor:
    """Convert images to grey levels, resized (bilinear, antialiased) to a short side of SHORT_SIDE.

    Args:
        images: float32 (N, 3, h, w), RGB in ImageNet normalisation.

    Returns:
        float32 (N, rows, columns), 0 to 255.
    """
    gains = [weight * 255 * std for weight, std in zip(LUMA, STD, strict=True)]
    level = sum(weight * 255 * mean for weight, mean in zip(LUMA, MEAN, strict=True))
    red, green, blue = images.unbind(1)
    full = red.mul(gains[0]).add_(green, alpha=gains[1]).add_(blue, alpha=gains[2]).add_(level)
    size = scored_size(images.shape[2:])
    resized = interpolate(full[:, None], size, mode="bilinear", antialias=True, align_corners=False)[:, 0]
    return resized.clamp_(0, 255)  # bicubic preprocessing overshoots


def scored_size(size: Sequence[int], short_side: int = SHORT_SIDE) -> tuple[int, int]:
    """Scale (height, width) to another short side, with the same aspect."""
    height, width = size
    factor = short_side / min(height, width)
    return round(height * factor), round(width * factor)


def image_scores(images: Tensor, levels: Tensor) -> dict[str, Tensor]:
    """Compute the scores of images.

    Args:
        images: float32 (N, 3, h, w), RGB in ImageNet normalisation.
        levels: their grey levels, from `grey`.

    Returns:
        float32 (N,) each:
        blur: variance of the Laplacian (4 neighbours) of the grey levels. Low: the image is blurred, or shows nothing.
        brightness: mean grey level, 0 black to 1 white.
        dark_share, bright_share: shares of pixels at or below DARK, and at or above BRIGHT.
        image_entropy: entropy of the histogram of grey levels, 0 to 8 bits.
        colourfulness: Hasler and Suesstrunk (2003), from R, G and B in 0..255: 0 is grey, 15 slightly, 45 averagely and 109
            extremely colourful.
    """
    flat = levels.flatten(1)
    bins = histogram(flat.round(), LEVELS)
    return {
        "blur": mean_and_variance(_laplacian(levels).flatten(1))[1],
        "brightness": flat.mean(1) / 255,
        "dark_share": share(torch.le, flat, DARK),
        "bright_share": share(torch.ge, flat, BRIGHT),
        "image_entropy": entropy(bins),
        "colourfulness": _colourfulness(images),
    }


def _laplacian(levels: Tensor) -> Tensor:
    """The sum of a pixel's four neighbours less four times the pixel: (N, rows - 2, columns - 2)."""
    middle = levels[:, 1:-1, 1:-1]
    return (
        (levels[:, :-2, 1:-1] + levels[:, 2:, 1:-1])
        .add_(levels[:, 1:-1, :-2])
        .add_(levels[:, 1:-1, 2:])
        .sub_(middle, alpha=4)
    )


def _colourfulness(images: Tensor) -> Tensor:
    size = scored_size(images.shape[2:], COLOUR_SIDE)
    gain, bias = _to_levels(images.device)
    red, green, blue = interpolate(images, size, mode="nearest-exact").mul_(gain).add_(bias).clamp_(0, 255).unbind(1)
    mean_rg, variance_rg = mean_and_variance((red - green).flatten(1))
    mean_yb, variance_yb = mean_and_variance(((red + green) / 2 - blue).flatten(1))
    return (variance_rg + variance_yb).sqrt() + 0.3 * (mean_rg.square() + mean_yb.square()).sqrt()


@functools.cache
def _to_levels(device: torch.device) -> tuple[Tensor, Tensor]:
    """Gain and bias, float32 (3, 1, 1) each: value in 0..255 = gain * normalised + bias.

    Kept for each device, because copying to a device would wait for it.
    """
    with torch.inference_mode(False):
        mean, std = 255 * torch.tensor([MEAN, STD], dtype=torch.float64).view(2, 3, 1, 1)
        return std.float().to(device), mean.float().to(device)
