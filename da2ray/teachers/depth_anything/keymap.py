"""Names of Depth Anything V2 parameters: the official names, which our modules have, and Hugging Face's two dialects.

The tables map official names to Hugging Face's; the inverse follows from them. Hugging Face splits some parameters (qkv,
and SwiGLU's w12 in memory). The official name of such a parameter maps to several names, whose tensors are equal parts of
the parameter along dimension 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a weights file is checked without torch
    from torch import Tensor


class Layout(StrEnum):
    """The naming scheme of a weights file's keys."""

    OFFICIAL = "official"
    HF = "hf"  # the files on the hub, and the files that every version of transformers saves
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
    """The names that hold the parameter `official` in `layout`, in the order of the parts along dimension 0."""
    if layout is Layout.OFFICIAL:
        return (official,)
    name = official
    for pattern, replacement in (*_COMMON, *_DIALECT[layout]):
        name = re.sub(pattern, replacement, name)
    # Hugging Face counts these two from 0, and counts the fusion stages from the coarsest.
    name = re.sub(r"^depth_head\.scratch\.layer(\d)_rn\.", lambda m: f"neck.convs.{int(m[1]) - 1}.", name)
    name = re.sub(
        r"^depth_head\.scratch\.refinenet(\d)\.", lambda m: f"neck.fusion_stage.layers.{4 - int(m[1])}.", name
    )
    if split := re.search(r"\{(.*)\}", name):
        return tuple(name.replace(split[0], part) for part in split[1].split(","))
    return (name,)


def layout_of(names: Iterable[str]) -> Layout | None:
    """The layout of a file's keys, or None if they are not the keys of a Depth Anything network."""
    names = set(names)
    if "pretrained.cls_token" in names:
        return Layout.OFFICIAL
    if "backbone.embeddings.cls_token" in names:
        memory = any(name.startswith("backbone.encoder.layer.0.attention.q_proj.") for name in names)
        return Layout.HF_MEMORY if memory else Layout.HF
    return None


def shapes_in(layout: Layout, official: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The names and shapes in `layout` of parameters that are given by official name and shape."""
    shapes = {}
    for key, shape in official.items():
        names = names_in(layout, key)
        part = (shape[0] // len(names), *shape[1:])
        shapes.update(dict.fromkeys(names, part))
    return shapes


def to_hf(state: Mapping[str, Tensor], layout: Layout = Layout.HF) -> dict[str, Tensor]:
    """Rename an official state dict to Hugging Face's names. Parts are copies, because safetensors refuses shared memory."""
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        names = names_in(layout, key)
        if len(names) == 1:
            renamed[names[0]] = tensor
        else:
            renamed.update(zip(names, (part.clone() for part in tensor.chunk(len(names))), strict=True))
    return renamed


def from_layout(layout: Layout, state: Mapping[str, Tensor], official: Iterable[str]) -> dict[str, Tensor]:
    """Take the parameters with the names `official` from a state dict in any layout. The inverse of `to_hf`.

    Raises:
        KeyError: a name is missing.
    """
    import torch  # noqa: PLC0415 - see above

    renamed = {}
    for key in official:
        parts = [state[name] for name in names_in(layout, key)]
        renamed[key] = torch.cat(parts) if len(parts) > 1 else parts[0]
    return renamed
