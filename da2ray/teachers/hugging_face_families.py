"""transformers' classes of depth models: what each predicts, at which size, and how its output becomes a label."""

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
"""Backbones of DPT-Large (None: a ViT within the model), -Hybrid, -BEiT and -SwinV2. Meta's DPT on DINOv2 has the same class but
is not a MiDaS."""

BILINEAR = 2
"""Pillow's number for bilinear, which image processors store."""

INVERSE_DEPTH = (1e-4, 1e4)
"""Range of Depth Pro's inverse depth per metre. The library's image processor clamps to it before it inverts."""

Config: TypeAlias = Any
ImageProcessor: TypeAlias = Any
"""An image processor of the library, whose attributes have no types. For Depth Pro, a `DepthProImages`."""


class Output(NamedTuple):
    """A model's raw output for a micro-batch.

    Attributes:
        depth: float32 (N, height, width), in the model's terms.
        field_of_view: float32 (N,), horizontal, in degrees; None if the class does not predict it.
    """

    depth: Tensor
    field_of_view: Tensor | None


@dataclass(frozen=True, slots=True)
class Family:
    """What da2ray knows of a class of models.

    Attributes:
        processor: the image processor that the class is published with.
        kind: configuration -> what the depth means. Raises UserError if that is unknown.
        size_rule: image processor -> the network size of an image.
        tail: names of the last modules. They run in fp32 at every precision, because otherwise depth has steps.
        prepare: image processor, micro-batch -> the network's input, float32 (N, 3, height, width) on the batch's device.
        finish: the model's raw output, micro-batch -> depth in the kind's terms.
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
            f"a DPTForDepthEstimation on {backbone} is not a MiDaS, and da2ray does not know whether it predicts metres, depth "
            "or disparity: add it to da2ray/teachers/hugging_face_families.py, or write a teacher of your own (MODULE:CLASS)"
        )
    return Kind.DISPARITY


def _depth_anything_kind(config: Config) -> Kind:
    return Kind.METRIC if config.depth_estimation_type == "metric" else Kind.DISPARITY


def _metric(config: Config) -> Kind:  # noqa: ARG001
    return Kind.METRIC


def _depth_pro_kind(config: Config) -> Kind:
    if not config.use_fov_model:
        raise UserError(
            "this Depth Pro has no field of view model (use_fov_model), and without one it does not predict metres"
        )
    return Kind.METRIC


def _scaled_size(processor: ImageProcessor) -> SizeRule:
    size = processor.size
    if not processor.do_resize or processor.do_pad or not (size.height and size.width):
        raise UserError(
            "its image processor pads, or does not resize to a height and a width: such sizes are not supported"
        )
    return ScaledSize(size.height, size.width, processor.ensure_multiple_of, processor.keep_aspect_ratio)


def _padded_size(processor: ImageProcessor) -> SizeRule:
    size = processor.size
    if not (processor.do_resize and processor.do_pad):
        raise UserError("its image processor does not pad and resize like ZoeDepth's: such sizes are not supported")
    return ScaledSize(size.height, size.width, processor.ensure_multiple_of, processor.keep_aspect_ratio, padded=True)


def _fixed_size(processor: ImageProcessor) -> SizeRule:
    return FixedSize(*processor.size)


def _floored_size(processor: ImageProcessor) -> SizeRule:
    if not processor.do_resize:
        raise UserError("its image processor does not resize, but GLPN takes only multiples of its size_divisor")
    return FlooredSize(processor.size_divisor)


def _by_library(processor: ImageProcessor, batch: PixelBatch) -> Tensor:
    """Preprocess with the library, image by image, on as many threads as torch has. Pillow and NumPy release Python's lock."""
    images = replace(batch, pixels=batch.pixels.cpu()).images()

    def prepared(image: Tensor) -> Tensor:
        return processor(image.numpy(), input_data_format="channels_last", return_tensors="pt")["pixel_values"]

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        return torch.cat(list(threads.map(prepared, images))).to(batch.pixels.device)


@dataclass(frozen=True, slots=True)
class DepthProImages:
    """A replacement of the library's `DepthProImageProcessor`, which exists for torchvision only.

    It normalises first and then resizes: bilinear without antialiasing, with half-pixel centres, in float32 on the device.

    Attributes:
        size: (height, width) of the network, in pixels.
        mean, std: mean and standard deviation of R, G, B in 0..255.
    """

    NAME: ClassVar = "DepthProImageProcessor"
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> "DepthProImages":
        """The processor that a preprocessor_config.json describes. Values that it lacks have the library's defaults.

        Raises:
            UserError: the file switches a step off, or asks for another resize.
        """
        switched = [stored.get(step, True) for step in ("do_resize", "do_rescale", "do_normalize")]
        if not all(switched) or stored.get("resample", BILINEAR) != BILINEAR:
            raise UserError(
                "its image processor leaves out a step of Depth Pro's, or does not resize bilinearly: that is not supported"
            )
        size = stored.get("size", {"height": 1536, "width": 1536})
        factor = stored.get("rescale_factor", 1 / 255)
        mean, std = ([value / factor for value in stored.get(name, [0.5] * 3)] for name in ("image_mean", "image_std"))
        return cls((size["height"], size["width"]), tuple(mean), tuple(std))

    def prepare(self, batch: PixelBatch) -> Tensor:
        """The network's input, float32 (N, 3, height, width), computed image by image."""
        mean, std = (_on(batch.pixels.device, values).view(3, 1, 1) for values in (self.mean, self.std))
        planes = [(image.permute(2, 0, 1) - mean) / std for image in batch.images()]
        return torch.cat([F.interpolate(image[None], self.size, mode="bilinear") for image in planes])


def _as_it_is(output: Output, batch: PixelBatch) -> Prediction:
    return Prediction(_of_size(output.depth, batch))


def _without_padding(output: Output, batch: PixelBatch) -> Prediction:
    """Cut the padding off the depth and resize the rest to the network's size.

    The padding is the same at both ends of a side, so the image lies in the middle. The sampling is the one with which the
    library's post-processing resizes to the padded image's pixels: bicubic, no antialiasing, half-pixel centres. Unlike the
    library, this clamps to the nearest depth that the model predicted, because bicubic may go below 0 m beside an edge.
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
    """Turn canonical inverse depth into metres, with known focal lengths where given and predicted ones elsewhere.

    This follows the library's post-processing: depth = focal / (width * canonical), with both in pixels of the given image.
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
        # Models cut sides down to whole patches. With the image processors that they are published with, nothing is cut.
        raise ValueError(f"the model returned depth of {tuple(depth.shape[1:])} for the network size {batch.size}")
    return depth


def _on(device: torch.device, values: Sequence[Any]) -> Tensor:
    host = torch.tensor(values, dtype=torch.float32)
    if device.type == "cuda":  # a copy from pageable memory would wait for all queued work
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
    "PromptDepthAnythingForDepthEstimation": "it needs a measured depth map with each image. Without one it runs, but the "
    "meaning of its numbers is then documented nowhere",
}
