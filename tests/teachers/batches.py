"""Micro-batches for tests of teachers."""

import torch

from da2ray.teachers.base import PixelBatch


def batch_of(*shapes: tuple[int, int], size: tuple[int, int]) -> PixelBatch:
    """A micro-batch of noise over a ramp. The noise differs between the images, so that they differ and have structure."""
    generator = torch.Generator().manual_seed(3)
    images = []
    for height, width in shapes:
        ramp = torch.linspace(0, 200, width).expand(height, width)[..., None]
        noise = torch.randint(0, 56, (height, width, 3), generator=generator)
        images.append((ramp + noise).to(torch.uint8).flatten())
    return PixelBatch(torch.cat(images), shapes, size)
