"""What is known of transformers' classes of depth models: what each predicts, at which size, and what is left to do to it."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from da2ray.errors import UserError
from da2ray.teachers.base import Camera, Kind, PixelBatch, Prediction, SizeRule
from da2ray.teachers.hugging_face_size import FixedSize, FlooredSize, ScaledSize, reflected

MIDAS_BACKBONES = (None, "bit", "beit", "swinv2")
"""Of DPT-Large (a ViT within the model), -Hybrid, -BEiT and -SwinV2. Meta's DPT on DINOv2 has the same class and is no MiDaS."""

BILINEAR = 2
"""Pillow's number of it, by which image processors are stored."""

INVERSE_DEPTH = (1e-4, 1e4)
"""Of Depth Pro, per metre: the library's image processor keeps it in this range before it is inverted."""

Config: TypeAlias = Any
ImageProcessor: TypeAlias = Any
"""The library's, whose attributes have no types; of Depth Pro, `DepthProImages`."""


class Output(NamedTuple):
    """What a model says of a micro-batch.

    Attributes:
        depth: float32 (N, height, width), as it comes.
        field_of_view: float32 (N,), horizontal, in degrees; None where the class predicts none.
    """

    depth: Tensor
    field_of_view: Tensor | None


@dataclass(frozen=True, slots=True)
class Family:
    """What is known of a class of models.

    Attributes:
        processor: the image processor that it is published with.
        kind: its configuration -> what its depth means. Raises UserError where that is not known.
        size_rule: image processor -> the network size of an image.
        tail: names of the last modules: they run in fp32 at every precision, for otherwise depth has steps.
        prepare: image processor, micro-batch -> the network's input, float32 (N, 3, height, width) on the batch's device.
        finish: the model's raw output and the micro-batch -> depth in the kind's terms.
        camera: see `TeacherSpec`.
    """

    processor: str
    kind: Callable[[Config], Kind]
    size_rule: Callable[[ImageProcessor], SizeRule]
    prepare: Callable[[ImageProcessor, PixelBatch], Tensor]
    tail: tuple[str, ...]
    finish: Callable[[Output, PixelBatch], Prediction]
    camera: Camera = Camera.UNUSED


def _midas_kind(config: Config) -> Kind:
    backbone = getattr(config.backbone_config, "model_type", None)
    if backbone not in MIDAS_BACKBONES:
        raise UserError(
            f"a DPTForDepthEstimation on {backbone} is no MiDaS, and whether it predicts metres, depth or disparity is not "
            "known: it would need a line in da2ray/teachers/hugging_face_families.py, or a teacher of your own (MODULE:CLASS)"
        )
    return Kind.DISPARITY


def _depth_anything_kind(config: Config) -> Kind:
    return Kind.METRIC if config.depth_estimation_type == "metric" else Kind.DISPARITY


def _metric(config: Config) -> Kind:  # noqa: ARG001
    return Kind.METRIC


def _depth_pro_kind(config: Config) -> Kind:
    if not config.use_fov_model:
        raise UserError(
            "this Depth Pro has no field of view model (use_fov_model), without which it predicts no metres"
        )
    return Kind.METRIC


def _scaled_size(processor: ImageProcessor) -> SizeRule:
    size = processor.size
    if not processor.do_resize or processor.do_pad or not (size.height and size.width):
        raise UserError(
            "its image processor does not resize to a height and a width, or pads: such sizes are not supported"
        )
    return ScaledSize(size.height, size.width, processor.ensure_multiple_of, processor.keep_aspect_ratio)


def _padded_size(processor: ImageProcessor) -> SizeRule:
    size = processor.size
    if not (processor.do_resize and processor.do_pad):
        raise UserError("its image processor does not both pad and resize, as ZoeDepth's does: that is not supported")
    return ScaledSize(size.height, size.width, processor.ensure_multiple_of, processor.keep_aspect_ratio, padded=True)


def _fixed_size(processor: ImageProcessor) -> SizeRule:
    return FixedSize(*processor.size)


def _floored_size(processor: ImageProcessor) -> SizeRule:
    if not processor.do_resize:
        raise UserError("its image processor does not resize, and GLPN takes only sizes that it can divide")
    return FlooredSize(processor.size_divisor)


def _by_library(processor: ImageProcessor, batch: PixelBatch) -> Tensor:
    """Image by image, on as many threads as torch has: Pillow and NumPy let go of Python's lock."""
    images = replace(batch, pixels=batch.pixels.cpu()).images()

    def prepared(image: Tensor) -> Tensor:
        return processor(image.numpy(), input_data_format="channels_last", return_tensors="pt")["pixel_values"]

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        return torch.cat(list(threads.map(prepared, images))).to(batch.pixels.device)


@dataclass(frozen=True, slots=True)
class DepthProImages:
    """What the library's `DepthProImageProcessor` does, which there is for torchvision only: normalised first, then resized.

    Bilinear without antialiasing, half-pixel centres, in float32 and on the device.

    Attributes:
        size: (height, width) of the network, in pixels.
        mean, std: of R, G, B in 0..255.
    """

    NAME: ClassVar = "DepthProImageProcessor"
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> "DepthProImages":
        """Of a preprocessor_config.json; what is not in it is as in the library's class.

        Raises:
            UserError: a step is switched off or is another one.
        """
        switched = [stored.get(step, True) for step in ("do_resize", "do_rescale", "do_normalize")]
        if not all(switched) or stored.get("resample", BILINEAR) != BILINEAR:
            raise UserError(
                "its image processor leaves out steps of Depth Pro's, or does not resize bilinearly: not supported"
            )
        size = stored.get("size", {"height": 1536, "width": 1536})
        factor = stored.get("rescale_factor", 1 / 255)
        mean, std = ([value / factor for value in stored.get(name, [0.5] * 3)] for name in ("image_mean", "image_std"))
        return cls((size["height"], size["width"]), tuple(mean), tuple(std))

    def prepare(self, batch: PixelBatch) -> Tensor:
        """float32 (N, 3, height, width), image by image."""
        mean, std = (_on(batch.pixels.device, values).view(3, 1, 1) for values in (self.mean, self.std))
        planes = [(image.permute(2, 0, 1) - mean) / std for image in batch.images()]
        return torch.cat([F.interpolate(image[None], self.size, mode="bilinear") for image in planes])


def _as_it_is(output: Output, batch: PixelBatch) -> Prediction:
    return Prediction(_of_size(output.depth, batch))


def _without_padding(output: Output, batch: PixelBatch) -> Prediction:
    """Depth of the padded image -> of the image itself, at the network's size.

    The padding is the same at both ends of a side, so what is left lies in the middle. The sampling is that by which the
    library's post-processing goes to the padded image's pixels: bicubic, no antialiasing, half-pixel centres. Unlike it,
    nothing comes nearer than the nearest that the model said: beside an edge, bicubic may go below 0 m.
    """
    depth = output.depth[:, None]
    shares = [
        (width / (width + 2 * reflected(width)), height / (height + 2 * reflected(height)))
        for height, width in batch.shapes
    ]
    maps = torch.diag_embed(_on(depth.device, shares))
    grid = F.affine_grid(F.pad(maps, (0, 1)), [len(batch), 1, *batch.size], align_corners=False)
    inner = F.grid_sample(depth, grid, "bicubic", "border", align_corners=False)
    return Prediction(inner.clamp(min=depth.amin((2, 3), keepdim=True))[:, 0])


def _depth_pro(output: Output, batch: PixelBatch) -> Prediction:
    """Canonical inverse depth and field of view -> metres, with the focal lengths that are known, else those it predicts.

    As the library's post-processing: depth = focal / (width * canonical), with both in pixels of the given image.
    """
    canonical, view = output
    assert view is not None  # noqa: S101 - `_depth_pro_kind`
    widths = _on(view.device, [width for _, width in batch.shapes])
    focals = 0.5 * widths / torch.tan(0.5 * torch.deg2rad(view))
    if batch.focals is not None:
        given = _on(view.device, [torch.nan if focal is None else focal for focal in batch.focals])
        focals = torch.where(given.isnan(), focals, given)
    inverse = canonical * (widths / focals)[:, None, None]
    return Prediction(_of_size(1 / inverse.clamp(*INVERSE_DEPTH), batch), focals=focals)


def _of_size(depth: Tensor, batch: PixelBatch) -> Tensor:
    if depth.shape[1:] != batch.size:
        # Models cut sides down to whole patches; the image processors that are published with them leave nothing to cut.
        raise ValueError(f"the model makes depth of {tuple(depth.shape[1:])} at the network size {batch.size}")
    return depth


def _on(device: torch.device, values: Sequence[Any]) -> Tensor:
    host = torch.tensor(values, dtype=torch.float32)
    if device.type == "cuda":  # from pageable memory the copy would wait for all that is queued there
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


FAMILIES = {
    "DPTForDepthEstimation": Family(
        processor="DPTImageProcessor",
        kind=_midas_kind,
        size_rule=_scaled_size,
        prepare=_by_library,
        tail=("head",),
        finish=_as_it_is,
    ),
    "DepthAnythingForDepthEstimation": Family(
        processor="DPTImageProcessor",
        kind=_depth_anything_kind,
        size_rule=_scaled_size,
        prepare=_by_library,
        tail=("head",),
        finish=_as_it_is,
    ),
    "ZoeDepthForDepthEstimation": Family(
        processor="ZoeDepthImageProcessor",
        kind=_metric,
        size_rule=_padded_size,
        prepare=_by_library,
        tail=("relative_head", "metric_head"),
        finish=_without_padding,
    ),
    "DepthProForDepthEstimation": Family(
        processor=DepthProImages.NAME,
        kind=_depth_pro_kind,
        size_rule=_fixed_size,
        prepare=DepthProImages.prepare,
        tail=("head", "fov_model.head"),
        finish=_depth_pro,
        camera=Camera.PREDICTED,
    ),
    "GLPNForDepthEstimation": Family(
        processor="GLPNImageProcessor",
        kind=_metric,
        size_rule=_floored_size,
        prepare=_by_library,
        tail=("head",),
        finish=_as_it_is,
    ),
}

REFUSED = {
    "PromptDepthAnythingForDepthEstimation": "it needs a measured depth map with each image; without one it runs, but what "
    "its numbers then mean is documented nowhere",
}
