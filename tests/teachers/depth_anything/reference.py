"""The reference: transformers' Depth Anything with the same weights as ours."""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings

from da2ray.teachers.depth_anything.configs import Config
from da2ray.teachers.depth_anything.keymap import Layout, to_hf


def build(config: Config, state: dict[str, Tensor], max_depth: float | None = None) -> DepthAnythingForDepthEstimation:
    encoder = Dinov2Config(
        image_size=518,
        hidden_size=config.encoder.dim,
        num_hidden_layers=config.encoder.depth,
        num_attention_heads=config.encoder.heads,
        use_swiglu_ffn=config.encoder.swiglu,
        out_indices=[tap + 1 for tap in config.encoder.taps],
        reshape_hidden_states=False,
    )
    with torch.device("meta"):
        model = DepthAnythingForDepthEstimation(
            DepthAnythingConfig(
                backbone_config=encoder,
                reassemble_hidden_size=config.encoder.dim,
                neck_hidden_sizes=list(config.out_channels),
                fusion_hidden_size=config.features,
                depth_estimation_type="relative" if max_depth is None else "metric",
                max_depth=1 if max_depth is None else int(max_depth),
            )
        )
    model.load_state_dict(to_hf(state, Layout.HF_MEMORY), assign=True)
    return model.eval()


def official_positions(self: Dinov2Embeddings, tokens: Tensor, height: int, width: int) -> Tensor:
    """The official repository's code, to patch over `interpolate_pos_encoding`, in which transformers passes `size=`."""
    embedding = self.position_embeddings
    if height == width and tokens.shape[1] == embedding.shape[1]:
        return embedding
    grid = embedding[0, 1:].float().reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    scale = ((height // 14 + 0.1) / 37.0, (width // 14 + 0.1) / 37.0)
    grid = F.interpolate(grid, scale_factor=scale, mode="bicubic", antialias=False)
    assert grid.shape[-2:] == (height // 14, width // 14)
    return torch.cat([embedding[:, :1], grid.permute(0, 2, 3, 1).reshape(1, -1, grid.shape[1])], dim=1)
