"""Small models of the families in transformers, with seeded weights, saved in the published form."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import transformers as tf
from PIL import Image
from torch import nn


class Built(NamedTuple):
    """A model with its image processor, and image sizes to test it with.

    Attributes:
        sizes: (H, W) of images, each an odd multiple of its network size. The centres of the network's pixels are then pixels
            of the image, where the library's interpolation to the image's size changes nothing.
    """

    model: Any
    processor: Any
    sizes: tuple[tuple[int, int], ...]

    def save(self, folder: Path) -> Path:
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        return folder


class DepthProProcessor:
    """transformers' `DepthProImageProcessor`, written with OpenCV.

    The library's own processor needs torchvision, whose build for CUDA does not load beside a torch for CPU.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def save_pretrained(self, folder: Path) -> None:
        stored = {
            "image_processor_type": "DepthProImageProcessorFast",
            "size": {"height": self.size, "width": self.size},
        }
        same = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255, "resample": 2}
        means = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7]}
        (folder / "preprocessor_config.json").write_text(json.dumps(stored | same | means))

    def __call__(self, images: Image.Image, return_tensors: str) -> tf.BatchFeature:  # noqa: ARG002 - as a pipeline calls
        normalised = (np.asarray(images) / 255 - [0.5, 0.4, 0.3]) / [0.5, 0.6, 0.7]
        resized = cv2.resize(normalised.astype(np.float32), (self.size, self.size), interpolation=cv2.INTER_LINEAR)
        return tf.BatchFeature({"pixel_values": torch.from_numpy(resized).permute(2, 0, 1)[None]})

    def post_process_depth_estimation(
        self, outputs: Any, sizes: list[tuple[int, int]]
    ) -> list[dict[str, torch.Tensor]]:
        ((height, width),) = sizes
        focal = 0.5 * width / torch.tan(0.5 * torch.deg2rad(outputs.field_of_view))
        inverse = (outputs.predicted_depth * width / focal)[:, None]
        inverse = nn.functional.interpolate(inverse, (height, width), mode="bilinear")[0, 0]
        return [{"predicted_depth": 1 / inverse.clamp(1e-4, 1e4), "focal_length": focal[0]}]


NECK: dict[str, Any] = {"neck_hidden_sizes": [16, 16, 32, 32], "fusion_hidden_size": 16}
VIT = {"num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 2}
STAGES = ["stage1", "stage2", "stage3", "stage4"]
SQUARE = {"height": 64, "width": 64}
STRETCHED = ((64, 64), (192, 320))


def dpt_large() -> Built:
    config = tf.DPTConfig(image_size=64, backbone_out_indices=[0, 1, 2, 3], **VIT, **NECK)
    return Built(tf.DPTForDepthEstimation(config), tf.DPTImageProcessorPil(size=SQUARE), STRETCHED)


def dpt_hybrid() -> Built:
    backbone = {
        "model_type": "bit",
        "layer_type": "bottleneck",
        "global_padding": "same",
        "embedding_dynamic_padding": True,
        "depths": [1, 1, 1],
        "hidden_sizes": [16, 32, 64, 64],
        "num_groups": 2,
        "embedding_size": 16,
        "out_features": ["stage1", "stage2", "stage3"],
    }
    config = tf.DPTConfig(
        is_hybrid=True,
        backbone_config=backbone,
        backbone_featmap_shape=[1, 64, 4, 4],
        image_size=64,
        **{"backbone_out_indices": [0, 1, 2, 3], **VIT, **NECK, "neck_hidden_sizes": [16, 32, 32, 32]},
    )
    return Built(tf.DPTForDepthEstimation(config), tf.DPTImageProcessorPil(size=SQUARE), STRETCHED)


def beit() -> Any:
    return tf.BeitConfig(
        **{**VIT, "image_size": 64, "out_features": STAGES, "reshape_hidden_states": False},
        use_relative_position_bias=True,
    )


def dpt_beit() -> Built:
    config = tf.DPTConfig(backbone_config=beit(), hidden_size=32, image_size=64, **NECK)
    processor = tf.DPTImageProcessorPil(size=SQUARE, keep_aspect_ratio=True, ensure_multiple_of=32)
    return Built(tf.DPTForDepthEstimation(config), processor, ((96, 64), (192, 288)))


def dpt_swin2() -> Built:
    backbone = tf.Swinv2Config(
        image_size=64,
        patch_size=4,
        embed_dim=16,
        depths=[1] * 4,
        num_heads=[1, 1, 2, 2],
        window_size=2,
        out_features=STAGES,
    )
    config = tf.DPTConfig(
        backbone_config=backbone,
        neck_hidden_sizes=[16, 32, 64, 128],
        fusion_hidden_size=16,
        reassemble_factors=[1, 1, 1, 1],
    )
    return Built(tf.DPTForDepthEstimation(config), tf.DPTImageProcessorPil(size=SQUARE), STRETCHED)


def depth_anything(**options: Any) -> Built:
    backbone = tf.Dinov2Config(
        **{**VIT, "image_size": 56, "patch_size": 14, "out_indices": [1, 2, 3, 4], "reshape_hidden_states": False}
    )
    config = tf.DepthAnythingConfig(backbone_config=backbone, reassemble_hidden_size=32, **NECK, **options)
    processor = tf.DPTImageProcessorPil(
        size={"height": 56, "width": 56}, keep_aspect_ratio=True, ensure_multiple_of=14, resample=3
    )
    return Built(tf.DepthAnythingForDepthEstimation(config), processor, ((56, 112), (168, 252)))


def depth_anything_metric() -> Built:
    return depth_anything(depth_estimation_type="metric", max_depth=20)


def zoe_depth(heads: int = 1) -> Built:
    bins = [
        {"name": name, "n_bins": 16, "min_depth": 1e-3, "max_depth": most}
        for name, most in (("nyu", 10.0), ("kitti", 80.0))
    ]
    several = {
        "num_patch_transformer_layers": 4,
        "patch_transformer_hidden_size": 128,
        "patch_transformer_intermediate_size": 32,
        "patch_transformer_num_attention_heads": 2,
    }
    config = tf.ZoeDepthConfig(
        backbone_config=beit(),
        backbone_hidden_size=32,
        bottleneck_features=16,
        bin_embedding_dim=16,
        num_relative_features=8,
        num_attractors=[4, 2, 2, 1],
        bin_configurations=bins[:heads],
        **{**NECK, **(several if heads > 1 else {})},
    )
    processor = tf.ZoeDepthImageProcessorPil(
        size={"height": 64, "width": 96}, ensure_multiple_of=32, keep_aspect_ratio=True
    )
    return Built(tf.ZoeDepthForDepthEstimation(config), processor, ((64, 96), (192, 288)))


def depth_pro() -> Built:
    encoder = {**VIT, "model_type": "dinov2", "hidden_size": 16, "patch_size": 16, "image_size": 64}
    config = tf.DepthProConfig(
        patch_size=64,
        fusion_hidden_size=16,
        intermediate_hook_ids=[3, 1],
        intermediate_feature_dims=[16, 8],
        scaled_images_ratios=[0.5, 1.0],
        scaled_images_overlap_ratios=[0.0, 0.25],
        scaled_images_feature_dims=[16, 16],
        **{f"{part}_model_config": dict(encoder) for part in ("image", "patch", "fov")},
        use_fov_model=True,
        num_fov_head_layers=1,
    )
    processor = DepthProProcessor(128)
    return Built(tf.DepthProForDepthEstimation(config), processor, ((128, 128), (384, 640)))


def glpn() -> Built:
    config = tf.GLPNConfig(
        depths=[1] * 4,
        hidden_sizes=[8, 16, 16, 32],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=8,
    )
    return Built(tf.GLPNForDepthEstimation(config), tf.GLPNImageProcessorPil(), ((64, 96), (160, 128)))


FAMILIES: dict[str, Callable[[], Built]] = {
    "dpt-large": dpt_large,
    "dpt-hybrid": dpt_hybrid,
    "dpt-beit": dpt_beit,
    "dpt-swin2": dpt_swin2,
    "depth-anything": depth_anything,
    "depth-anything-metric": depth_anything_metric,
    "zoe": zoe_depth,
    "zoe-heads": lambda: zoe_depth(2),
    "depth-pro": depth_pro,
    "glpn": glpn,
}


def build(family: str) -> Built:
    """Build a model whose depth depends on the image: its weights are scaled to 1 / sqrt(fan in), its last bias is above zero."""
    built = FAMILIES[family]()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in built.model.named_parameters():
            values = torch.rand(parameter.shape, generator=generator) * 2 - 1
            if "norm" in name:
                parameter.copy_(1 + 0.1 * values if name.endswith("weight") else 0.1 * values)
            elif parameter.dim() > 1:
                gain = (
                    2 if family == "zoe-heads" and "metric_head" in name else 1
                )  # with 1 its depth is nearly constant
                parameter.copy_(gain * values * (3 / parameter[0].numel()) ** 0.5)
            else:
                parameter.copy_(0.5 + 0.1 * values if "lambda" in name else 0.1 * values)
        if isinstance(built.model, tf.DepthProForDepthEstimation):
            built.model.fov_model.head.layers[-1].bias.fill_(50)  # degrees
        if hasattr(built.model, "head"):
            last = [module for module in built.model.head.modules() if isinstance(module, nn.Conv2d)][-1]
            last.bias.fill_(1)
    return built._replace(model=built.model.eval())
