"""What an image alone says of how well it can be labelled: batched, on the device of its input, without waiting for it.

All of it is of the image as the network saw it, brought to one short side, so that scores of different sources and teachers can
be compared. 3 ms of an image's 4 at 518 x 686 on a CPU core are that resize, so there is one, of the grey levels; colour is
told from pixels picked out, which changes it little (a mean over 20,000 of them).
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from da2ray.quality.statistics import entropy, histogram, mean_and_variance, share
from da2ray.teachers.depth_anything.preprocess import MEAN, STD

SHORT_SIDE = 256
"""Pixels of the image's short side where it is scored: half of the official network size, and about that of the smallest."""
COLOUR_SIDE = 128
"""The same where colour is scored."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G, B in a grey level (ITU-R BT.601), as Pillow's and OpenCV's."""
DARK, BRIGHT = 5.0, 250.0
"""Grey levels, of 0 to 255, up to which and from which on a pixel counts as clipped: within what JPEG and resizing move it."""
LEVELS = 256
"""Bins of the histogram of grey levels: one a level."""


def grey(images: Tensor) -> Tensor:
    """The grey levels of images, resized (bilinear, antialiased) to a short side of SHORT_SIDE.

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
    """(height, width) -> the same with its aspect kept and another short side."""
    height, width = size
    factor = short_side / min(height, width)
    return round(height * factor), round(width * factor)


def image_scores(images: Tensor, levels: Tensor) -> dict[str, Tensor]:
    """The scores of `da2ray.labels.schema.IMAGE_SCORES`.

    Args:
        images: float32 (N, 3, h, w), RGB in ImageNet normalisation.
        levels: what `grey` makes of them.

    Returns:
        float32 (N,) each:
        blur: variance of the Laplacian (4 neighbours) of the grey levels. Low = blurred, or nothing to be seen.
        brightness: mean grey level, 0 black to 1 white.
        dark_share, bright_share: shares of pixels at or below DARK, at or above BRIGHT.
        image_entropy: of the histogram of grey levels, 0 to 8 bits.
        colourfulness: Hasler and Suesstrunk's (2003) of R, G, B in 0..255: 0 grey, 15 a little, 45 averagely, 109 extremely
            colourful.
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
    """(N, rows - 2, columns - 2): the sum of a pixel's four neighbours, less four times itself."""
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
    """float32 (3, 1, 1) each: value in 0..255 = gain * normalised + bias. Kept a device: a copy to one would wait for it."""
    with torch.inference_mode(False):
        mean, std = 255 * torch.tensor([MEAN, STD], dtype=torch.float64).view(2, 3, 1, 1)
        return std.float().to(device), mean.float().to(device)
