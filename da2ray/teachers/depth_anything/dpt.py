"""Depth Anything V2 (arXiv 2406.09414): a DINOv2 encoder and a DPT head (arXiv 2103.13413), in four sizes and a tiny one.

Modules have the names of the official checkpoints. All of those contain `resConfUnit1` of `refinenet4`, which is unused.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from da2ray.teachers.depth_anything.configs import PATCH, TAIL, Config
from da2ray.teachers.depth_anything.dinov2 import DinoVisionTransformer


class ResidualConvUnit(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class FeatureFusionBlock(nn.Module):
    """Add a skip connection to the coarser stage's output and upsample the sum to the next stage's size."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(features, features, 1)
        self.resConfUnit1 = ResidualConvUnit(features)
        self.resConfUnit2 = ResidualConvUnit(features)

    def forward(self, x: Tensor, skip: Tensor | None, size: tuple[int, int]) -> Tensor:
        if skip is not None:
            x = x + self.resConfUnit1(skip)
        # The paper upsamples first. A 1x1 convolution commutes with an interpolation, whose weights sum to one, and this
        # order convolves a quarter of the pixels.
        return upsample(self.out_conv(self.resConfUnit2(x)), size)


class Scratch(nn.Module):
    """The part of the official head under `scratch`: everything after the taps are resized."""

    def __init__(self, features: int, out_channels: tuple[int, int, int, int]) -> None:
        super().__init__()
        for i, channels in enumerate(out_channels, start=1):
            self.add_module(f"layer{i}_rn", nn.Conv2d(channels, features, 3, padding=1, bias=False))
            self.add_module(f"refinenet{i}", FeatureFusionBlock(features))
        self.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.output_conv2 = nn.Sequential(
            nn.Conv2d(features // 2, TAIL, 3, padding=1), nn.ReLU(), nn.Conv2d(TAIL, 1, 1)
        )

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Four maps (N, out_channels[i], h_i, w_i), fine to coarse -> (N, features / 2, 2 * h_0, 2 * w_0)."""
        skips = [self.get_submodule(f"layer{i}_rn")(x) for i, x in enumerate(maps, start=1)]
        height, width = skips[0].shape[-2:]
        sizes = [(2 * height, 2 * width), *((skip.shape[-2], skip.shape[-1]) for skip in skips[:-1])]
        x = self.get_submodule("refinenet4")(skips[3], None, sizes[3])
        for i in (3, 2, 1):
            x = self.get_submodule(f"refinenet{i}")(x, skips[i - 1], sizes[i - 1])
        return self.output_conv1(x)


class DPTHead(nn.Module):
    """The DPT head: taps -> one map at the image's size, before the final activation."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        finest, fine, _, coarsest = config.out_channels
        self.projects = nn.ModuleList(nn.Conv2d(config.encoder.dim, channels, 1) for channels in config.out_channels)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(finest, finest, 4, stride=4),
                nn.ConvTranspose2d(fine, fine, 2, stride=2),
                nn.Identity(),
                nn.Conv2d(coarsest, coarsest, 3, stride=2, padding=1),
            ]
        )
        self.scratch = Scratch(config.features, config.out_channels)

    def forward(self, taps: list[Tensor], rows: int, columns: int) -> Tensor:
        """Four taps (N, rows * columns, dim) -> float32 (N, 14 * rows, 14 * columns)."""
        x = self.fused(taps, rows, columns)
        # From here on everything is fp32, also under autocast: a 16-bit tail leaves some 400 distinct values in a depth map.
        with torch.autocast(x.device.type, enabled=False):
            x = upsample(x.float(), (PATCH * rows, PATCH * columns))
            return self.scratch.output_conv2(x).squeeze(1)

    def fused(self, taps: list[Tensor], rows: int, columns: int) -> Tensor:
        """Four taps -> (N, features / 2, 8 * rows, 8 * columns): the head up to its last interpolation, without it."""
        maps = [
            # Tokens viewed as an image are channels-last already, so this copies nothing.
            resize(project(tap.transpose(1, 2).unflatten(2, (rows, columns))))
            for tap, project, resize in zip(taps, self.projects, self.resize_layers, strict=True)
        ]
        return self.scratch(maps)


class DepthAnythingV2(nn.Module):
    """The whole network: ImageNet-normalised RGB -> disparity, or metres with a metric head.

    Args:
        config: the network's size.
        max_depth: None for relative disparity (ReLU; affine-invariant, larger = nearer, 0 = farthest). For a metric head,
            the metres to which its sigmoid is scaled: 20 for Hypersim indoor, 80 for Virtual KITTI outdoor. The weights do
            not contain it: both heads have the same parameters.
    """

    def __init__(self, config: Config, max_depth: float | None = None) -> None:
        super().__init__()
        self.config = config
        self.max_depth = max_depth
        self.pretrained = DinoVisionTransformer(config.encoder)
        self.depth_head = DPTHead(config)

    def forward(self, images: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return the depth of a micro-batch.

        Args:
            images: (N, 3, H, W); H and W multiples of 14.
            positions: `self.pretrained.positions(H / 14, W / 14)`, if the caller keeps it.

        Returns:
            float32 (N, H, W), also under autocast.

        Raises:
            ValueError: H or W is not a multiple of 14.
        """
        height, width = images.shape[-2:]
        if height % PATCH or width % PATCH:
            raise ValueError(f"image size {height} x {width} is not a multiple of {PATCH}")
        rows, columns = height // PATCH, width // PATCH
        if positions is None:
            positions = self.pretrained.positions(rows, columns)
        x = self.depth_head(self.pretrained(images, positions), rows, columns)
        return F.relu(x) if self.max_depth is None else torch.sigmoid(x) * self.max_depth


def upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)
