"""The DINOv2 encoder (arXiv 2304.07193) as Depth Anything V2 uses it: a plain ViT whose intermediate blocks are tapped.

Modules and parameters have the names of the official checkpoints, so that a `.pth` loads without renaming.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from da2ray.teachers.depth_anything.configs import GRID, PATCH, EncoderConfig, swiglu_width

NORM_EPS = 1e-6


class PatchEmbed(nn.Module):
    """Image (N, 3, H, W) -> tokens (N, H/14 * W/14, dim), row by row."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=PATCH, stride=PATCH)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(query, key, value)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, dim))


class LayerScale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = swiglu_width(dim)
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, eps=NORM_EPS)
        self.attn = Attention(config.dim, config.heads)
        self.ls1 = LayerScale(config.dim)
        self.norm2 = nn.LayerNorm(config.dim, eps=NORM_EPS)
        self.mlp = (SwiGLU if config.swiglu else Mlp)(config.dim)
        self.ls2 = LayerScale(config.dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class DinoVisionTransformer(nn.Module):
    """The encoder: image -> the outputs of four blocks, each after the shared final norm, without the CLS token.

    Under autocast only the matrix products run in 16 bits. The residual stream stays fp32, because the position embedding
    and the LayerScale gammas are fp32.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.mask_token = nn.Parameter(torch.zeros(1, config.dim))  # in every checkpoint, used only in pretraining
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + GRID * GRID, config.dim))
        self.patch_embed = PatchEmbed(config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, eps=NORM_EPS)

    def positions(self, rows: int, columns: int) -> Tensor:
        """The position embedding of CLS and a rows x columns grid of patches: float32 (1, 1 + rows * columns, dim).

        It depends on the weights and the size alone, so a caller that sees a size often should keep the result.
        """
        if (rows, columns) == (GRID, GRID):
            return self.pos_embed
        cls, grid = self.pos_embed.float().split([1, GRID * GRID], dim=1)
        # DINOv2 adds 0.1 so that floor(37 * scale) never loses a row to rounding. It passes the scale instead of the size,
        # so the 0.1 also shifts the sampling grid. With `size=` labels would differ by up to 0.3 of their std.
        grid = F.interpolate(
            grid.transpose(1, 2).unflatten(2, (GRID, GRID)),
            scale_factor=((rows + 0.1) / GRID, (columns + 0.1) / GRID),
            mode="bicubic",
            align_corners=False,
        )
        return torch.cat([cls, grid.flatten(2).transpose(1, 2)], dim=1)

    def forward(self, images: Tensor, positions: Tensor) -> list[Tensor]:
        """Return the tokens of the tapped blocks.

        Args:
            images: (N, 3, H, W), ImageNet-normalised RGB; H and W multiples of 14.
            positions: `self.positions(H / 14, W / 14)`.

        Returns:
            Four tensors (N, H/14 * W/14, dim), shallow to deep.
        """
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + positions
        taps = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.config.taps:
                taps.append(self.norm(x)[:, 1:])
        return taps
