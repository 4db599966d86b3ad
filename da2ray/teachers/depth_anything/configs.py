"""Sizes of Depth Anything V2, and the shapes of their parameters.

Importing this module needs no torch: a weights file can be checked on a machine that runs no network.
"""

from dataclasses import dataclass
from itertools import pairwise

PATCH = 14
"""Side of a patch in pixels."""
GRID = 37
"""Side of the trained grid of position embeddings in patches: 518 / 14."""
TAIL = 32
"""Channels between the last two convolutions, for every size."""


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """The size of an encoder.

    Attributes:
        dim, depth, heads: width, number of blocks, number of attention heads.
        taps: 0-based indices of the blocks whose outputs are returned, ascending.
        swiglu: whether the feed-forward is SwiGLU instead of GELU (giant only).
    """

    dim: int
    depth: int
    heads: int
    taps: tuple[int, int, int, int]
    swiglu: bool = False

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        if not all(0 <= a < b < self.depth for a, b in pairwise(self.taps)):
            raise ValueError(f"taps {self.taps} are not ascending indices of {self.depth} blocks")


@dataclass(frozen=True, slots=True)
class Config:
    """The size of a Depth Anything V2 network.

    Attributes:
        size: the word for the size in a teacher's name.
        name: the encoder's short name, as in the official file names.
        encoder: the encoder's size.
        features: channels of the fusion stages.
        out_channels: channels that each tap is projected to, shallow to deep.
    """

    size: str
    name: str
    encoder: EncoderConfig
    features: int
    out_channels: tuple[int, int, int, int]


VITS = Config("small", "vits", EncoderConfig(384, 12, 6, (2, 5, 8, 11)), 64, (48, 96, 192, 384))
VITB = Config("base", "vitb", EncoderConfig(768, 12, 12, (2, 5, 8, 11)), 128, (96, 192, 384, 768))
VITL = Config("large", "vitl", EncoderConfig(1024, 24, 16, (4, 11, 17, 23)), 256, (256, 512, 1024, 1024))
VITG = Config("giant", "vitg", EncoderConfig(1536, 40, 24, (9, 19, 29, 39), swiglu=True), 384, (1536, 1536, 1536, 1536))
VITT = Config("tiny", "vitt", EncoderConfig(192, 8, 3, (1, 3, 5, 7)), 32, (24, 48, 96, 192))
"""The embedded teacher's size, trained by `jobs/train_teacher.py`: 4.6 M parameters, 9 MB in half precision."""
TINY = Config("random-tiny", "tiny", EncoderConfig(64, 4, 2, (0, 1, 2, 3)), 32, (16, 24, 32, 48))
"""A size for tests of the pipeline: 0.5 M parameters. No trained weights exist."""

CONFIGS = (VITS, VITB, VITL, VITG, VITT, TINY)


def parameter_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The shapes of all parameters of a size by official key, in the order of the network's state dict."""
    encoder, features = config.encoder, config.features
    dim = encoder.dim
    shapes: dict[str, tuple[int, ...]] = {
        "pretrained.cls_token": (1, 1, dim),
        "pretrained.mask_token": (1, dim),
        "pretrained.pos_embed": (1, 1 + GRID * GRID, dim),
    }

    def layer(name: str, *weight: int) -> None:
        shapes[f"{name}.weight"] = weight
        shapes[f"{name}.bias"] = (weight[0],)

    layer("pretrained.patch_embed.proj", dim, 3, PATCH, PATCH)
    for number in range(encoder.depth):
        block = f"pretrained.blocks.{number}"
        layer(f"{block}.norm1", dim)
        layer(f"{block}.attn.qkv", 3 * dim, dim)
        layer(f"{block}.attn.proj", dim, dim)
        shapes[f"{block}.ls1.gamma"] = (dim,)
        layer(f"{block}.norm2", dim)
        if encoder.swiglu:
            layer(f"{block}.mlp.w12", 2 * swiglu_width(dim), dim)
            layer(f"{block}.mlp.w3", dim, swiglu_width(dim))
        else:
            layer(f"{block}.mlp.fc1", 4 * dim, dim)
            layer(f"{block}.mlp.fc2", dim, 4 * dim)
        shapes[f"{block}.ls2.gamma"] = (dim,)
    layer("pretrained.norm", dim)

    finest, fine, _, coarsest = config.out_channels
    for number, channels in enumerate(config.out_channels):
        layer(f"depth_head.projects.{number}", channels, dim, 1, 1)
    layer("depth_head.resize_layers.0", finest, finest, 4, 4)
    layer("depth_head.resize_layers.1", fine, fine, 2, 2)
    layer("depth_head.resize_layers.3", coarsest, coarsest, 3, 3)
    scratch = "depth_head.scratch"
    for number, channels in enumerate(config.out_channels, start=1):
        shapes[f"{scratch}.layer{number}_rn.weight"] = (features, channels, 3, 3)
        fusion = f"{scratch}.refinenet{number}"
        layer(f"{fusion}.out_conv", features, features, 1, 1)
        for unit in ("resConfUnit1", "resConfUnit2"):
            layer(f"{fusion}.{unit}.conv1", features, features, 3, 3)
            layer(f"{fusion}.{unit}.conv2", features, features, 3, 3)
    layer(f"{scratch}.output_conv1", features // 2, features, 3, 3)
    layer(f"{scratch}.output_conv2.0", TAIL, features // 2, 3, 3)
    layer(f"{scratch}.output_conv2.2", 1, TAIL, 1, 1)
    return shapes


def swiglu_width(dim: int) -> int:
    """The width of a SwiGLU feed-forward: two thirds of the GELU feed-forward's 4 x dim, rounded up to a multiple of 8."""
    return (4 * dim * 2 // 3 + 7) // 8 * 8
