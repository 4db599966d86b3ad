"""Names of Depth Anything V2 parameters: the official ones, which our modules carry, and Hugging Face's two dialects.

One direction is written down, official -> Hugging Face; the other follows. Where Hugging Face splits a parameter (qkv,
and SwiGLU's w12 in memory), an official name maps to several names whose tensors are its equal parts along dimension 0.
"""

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum

import torch
from torch import Tensor


class Layout(StrEnum):
    """Who named the keys of a weights file."""

    OFFICIAL = "official"
    HF = "hf"  # as published on the hub, and as every version of transformers saves
    HF_MEMORY = "hf-memory"  # the state dict of a model in memory since transformers 5


_COMMON = (
    (r"^pretrained\.(cls_token|mask_token)$", r"backbone.embeddings.\1"),
    (r"^pretrained\.pos_embed$", r"backbone.embeddings.position_embeddings"),
    (r"^pretrained\.patch_embed\.proj\.", r"backbone.embeddings.patch_embeddings.projection."),
    (r"^pretrained\.norm\.", r"backbone.layernorm."),
    (r"^pretrained\.blocks\.(\d+)\.", r"backbone.encoder.layer.\1."),
    (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
    (r"^depth_head\.projects\.(\d)\.", r"neck.reassemble_stage.layers.\1.projection."),
    (r"^depth_head\.resize_layers\.(\d)\.", r"neck.reassemble_stage.layers.\1.resize."),
    (r"\.out_conv\.", r".projection."),
    (r"\.resConfUnit([12])\.conv([12])\.", r".residual_layer\1.convolution\2."),
    (r"^depth_head\.scratch\.output_conv1\.", r"head.conv1."),
    (r"^depth_head\.scratch\.output_conv2\.0\.", r"head.conv2."),
    (r"^depth_head\.scratch\.output_conv2\.2\.", r"head.conv3."),
)
_DIALECT = {
    Layout.HF: (
        (r"\.attn\.qkv\.", r".attention.attention.{query,key,value}."),
        (r"\.attn\.proj\.", r".attention.output.dense."),
        (r"\.mlp\.w12\.", r".mlp.weights_in."),
        (r"\.mlp\.w3\.", r".mlp.weights_out."),
    ),
    Layout.HF_MEMORY: (
        (r"\.attn\.qkv\.", r".attention.{q_proj,k_proj,v_proj}."),
        (r"\.attn\.proj\.", r".attention.o_proj."),
        (r"\.mlp\.w12\.", r".mlp.{gate_proj,up_proj}."),
        (r"\.mlp\.w3\.", r".mlp.down_proj."),
    ),
}


def names_in(layout: Layout, official: str) -> tuple[str, ...]:
    """Names that hold parameter `official` in `layout`, in the order of its parts along dimension 0."""
    if layout is Layout.OFFICIAL:
        return (official,)
    name = official
    for pattern, replacement in (*_COMMON, *_DIALECT[layout]):
        name = re.sub(pattern, replacement, name)
    # Hugging Face counts these two from 0, and fusion stages from the coarsest.
    name = re.sub(r"^depth_head\.scratch\.layer(\d)_rn\.", lambda m: f"neck.convs.{int(m[1]) - 1}.", name)
    name = re.sub(
        r"^depth_head\.scratch\.refinenet(\d)\.", lambda m: f"neck.fusion_stage.layers.{4 - int(m[1])}.", name
    )
    if split := re.search(r"\{(.*)\}", name):
        return tuple(name.replace(split[0], part) for part in split[1].split(","))
    return (name,)


def layout_of(names: Iterable[str]) -> Layout | None:
    """The layout that a file's keys are in, None where they are no Depth Anything's."""
    names = set(names)
    if "pretrained.cls_token" in names:
        return Layout.OFFICIAL
    if "backbone.embeddings.cls_token" in names:
        memory = any(name.startswith("backbone.encoder.layer.0.attention.q_proj.") for name in names)
        return Layout.HF_MEMORY if memory else Layout.HF
    return None


def shapes_in(layout: Layout, official: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Names and shapes in `layout` of parameters given by official name and shape."""
    shapes = {}
    for key, shape in official.items():
        names = names_in(layout, key)
        part = (shape[0] // len(names), *shape[1:])
        shapes.update(dict.fromkeys(names, part))
    return shapes


def to_hf(state: Mapping[str, Tensor], layout: Layout = Layout.HF) -> dict[str, Tensor]:
    """An official state dict under Hugging Face's names. Parts are copies: safetensors refuses shared memory."""
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        names = names_in(layout, key)
        if len(names) == 1:
            renamed[names[0]] = tensor
        else:
            renamed.update(zip(names, (part.clone() for part in tensor.chunk(len(names))), strict=True))
    return renamed


def from_layout(layout: Layout, state: Mapping[str, Tensor], official: Iterable[str]) -> dict[str, Tensor]:
    """The inverse: the parameters of `official` names, taken from a state dict in any layout.

    Raises:
        KeyError: a name is missing.
    """
    renamed = {}
    for key in official:
        parts = [state[name] for name in names_in(layout, key)]
        renamed[key] = torch.cat(parts) if len(parts) > 1 else parts[0]
    return renamed
