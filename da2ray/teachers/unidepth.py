"""UniDepth through torch.hub: `--teacher unidepth:v2-vits14`, and the other variants of v1 and v2.

The reference is `model.infer(rgb, intrinsics)` of lpiccinelli-eth/UniDepth at the commit in `REPO`. `infer` resizes and pads the
image into the network's picture, and finally resizes the depth to the image's size. In da2ray labels stay at the size that the
image has in the picture, and images of different sizes share a call. This module therefore does the first step in the same way
and gives `infer` finished pictures, which it does not change. Resizing a label to the image's size gives what `infer` would have
returned.

Focal length. A known focal length goes into the network, with the principal point in the middle of the image. Otherwise the
network uses the camera that it predicts, and `Prediction.focals` is the mean of that camera's two focal lengths.

Confidence. v1 has none. v2's confidence is in fact an uncertainty, larger = worse: exp(e), where e is trained to be the error of
the depth (`unidepth/ops/losses/confidence.py`; the author says so in github.com/lpiccinelli-eth/UniK3D/issues/18). It only ranks
the pixels of one image (`assets/docs/V2_README.md`). da2ray's confidence is m / (m + exp(e)), with m the median of exp(e) over
the label. It is 1/2 at the median, keeps the order, and claims no more of a scale than the model does. It cannot be compared
between images.

Limits of the published code: v1 needs xformers. On CPU only fp32 runs, because PyTorch's resize supports no other dtype there.
"""

import functools
import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from da2ray.errors import UserError
from da2ray.storage import printable
from da2ray.teachers.base import Camera, Kind, PixelBatch, Prediction, TeacherSpec
from da2ray.teachers.depth_anything.preprocess import MEAN
from da2ray.teachers.torch_hub import HubModel, load_teacher, parse_repo, running
from da2ray.teachers.torch_hub_size import Placement, UniDepthV1Size, UniDepthV2Size

REPO = "lpiccinelli-eth/UniDepth:8d8cfe4c7ee15297099983607febf0d4f32eb3d6"

VARIANTS = ("v1-vitl14", "v1-cnvnxtl", "v2-vits14", "v2-vitb14", "v2-vitl14")
"""The variants of the README's model zoo. It does not list `v2old`, which `hubconf.py` also knows, so neither does da2ray."""

WEIGHTS = "lpiccinelli/unidepth-{variant}:pytorch_model.bin"
"""The file that `hubconf.py` would load, as a hub id."""

LICENCE = "CC-BY-NC-4.0"
V1, V2 = UniDepthV1Size(), UniDepthV2Size()
PREPROCESSING = {"v1": "unidepth-v1-462x616-v1", "v2": "unidepth-v2-200k-600k-v1"}


def spec(variant: str, options: Mapping[str, str]) -> TeacherSpec:
    """The spec of the teacher `unidepth:VARIANT`.

    Args:
        variant: one of `VARIANTS`.
        options: may have `repo`, a folder or `org/name:commit` to use instead of `REPO`.

    Raises:
        UserError: the variant or an option does not exist.
    """
    if variant not in VARIANTS:
        known = ", ".join(f"unidepth:{name}" for name in VARIANTS)
        raise UserError(f"unidepth has no variant {printable(variant)}: give --teacher {known}")
    name = f"unidepth:{variant}"
    version, backbone = variant.split("-")
    model = HubModel(
        name,
        parse_repo(options, name, REPO),
        "UniDepth",
        (("version", version), ("backbone", backbone), ("pretrained", False)),
        WEIGHTS.format(variant=variant),
    )
    return TeacherSpec(
        name=name,
        kind=Kind.METRIC,
        unit="m",
        licence=LICENCE,
        size_rule=TEACHERS[version].geometry,
        preprocessing=PREPROCESSING[version],
        identify=model.identify,
        load=functools.partial(load_teacher, model, TEACHERS[version], TEACHERS[version].geometry),
        camera=Camera.PREDICTED,
    )


class UniDepth(ABC):
    """A loaded UniDepth (`da2ray.teachers.base.Teacher`). Its subclasses are the versions.

    Args:
        network: the network that the repository's entry point returns, with its weights.
        device: the device to run on.
        dtype: the dtype of the matrix products.
    """

    geometry: UniDepthV1Size | UniDepthV2Size
    maps: tuple[str, ...]
    """Names of the outputs of `infer` that are kept, (N, 1, height, width) each."""

    def __init__(self, network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.network: Any = network.to(device)
        self._dtype = dtype
        # Without its decorators: v2's `infer` puts CUDA under fp16 autocast at any precision.
        self._infer = functools.partial(inspect.unwrap(type(network).infer), network)  # type: ignore[attr-defined]
        self._mean = torch.tensor(MEAN, device=device).view(3, 1, 1)

    def predict(self, batch: PixelBatch) -> Prediction:
        """Label a micro-batch with metres, float32 (N, height, width) at `batch.size`.

        The module's docstring describes the confidence and the focal lengths.

        Raises:
            torch.OutOfMemoryError: the micro-batch is too large for the device.
        """
        images = batch.images()
        places = [self.geometry.place(*shape) for shape in batch.shapes]
        focals = batch.focals or [None] * len(batch)
        # Images that can share a call do. Pictures of images of one network size nearly always have one size, too.
        calls: dict[tuple[tuple[int, int], bool], list[int]] = {}
        for number, (place, focal) in enumerate(zip(places, focals, strict=True)):
            calls.setdefault((place.picture, focal is None), []).append(number)
        labels = torch.empty((len(self.maps), len(batch), *batch.size), device=self.device)
        used = torch.empty(len(batch), device=self.device)
        with torch.inference_mode():
            for numbers in calls.values():
                pictures = torch.stack([self._picture(images[number], places[number]) for number in numbers])
                maps, lengths = self._call(pictures, [places[n] for n in numbers], [focals[n] for n in numbers])
                used[numbers] = lengths
                for number, of_image in zip(numbers, maps, strict=True):
                    labels[:, number] = cut(of_image, places[number], batch.size)
        confidence = certainty(labels[1]) if len(self.maps) > 1 else None
        return Prediction(labels[0], confidence, used)

    def _call(
        self, pictures: Tensor, places: Sequence[Placement], focals: Sequence[float | None]
    ) -> tuple[Tensor, Tensor]:
        """Run the network on images whose focal lengths are all known or all unknown.

        Returns:
            float32 (N, maps, height, width) and float32 (N,), the focal lengths in pixels of each image.
        """
        known = [focal for focal in focals if focal is not None]
        cameras = None
        if known:
            cameras = torch.zeros(len(known), 3, 3)
            for camera, focal, place in zip(cameras, known, places, strict=True):
                y, x = place.centre
                camera[:] = torch.tensor([[focal * place.scale, 0, x], [0, focal * place.scale, y], [0, 0, 1]])
            cameras = cameras.to(self.device)
        with running(self.device, self._dtype):
            output = self._infer(pictures, cameras)
        maps = torch.cat([output[name].float() for name in self.maps], dim=1)
        if known:
            return maps, torch.tensor(known, device=self.device)
        lengths = output["intrinsics"].float().diagonal(dim1=1, dim2=2)[:, :2].mean(1)
        return maps, lengths / torch.tensor([place.scale for place in places], device=self.device)

    @abstractmethod
    def _picture(self, image: Tensor, place: Placement) -> Tensor:
        """Prepare the picture of an image: uint8 (H, W, 3) -> float32 (3, *place.picture), in the units of `infer`."""


class UniDepthV1(UniDepth):
    """UniDepth v1. It scales with antialiasing and then pads.

    Pictures are in 0..1: `infer` guesses the units from the range of values over all images, and is always right for 0..1.
    """

    geometry = V1
    maps = ("depth",)

    def __init__(self, network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(network, device, dtype)
        _refuse_others("image_shape", tuple(self.network.image_shape), V1.picture)

    def _picture(self, image: Tensor, place: Placement) -> Tensor:
        (top, left), (height, width) = ([int(side) for side in pair] for pair in (place.corner, place.extent))
        rgb = image.permute(2, 0, 1)[None].float().div_(255)
        scaled = F.interpolate(rgb, (height, width), mode="bilinear", align_corners=False, antialias=True)
        picture = self._mean.repeat(1, *place.picture)  # becomes zero when `infer` normalises it
        picture[:, top : top + height, left : left + width] = scaled[0].clamp_(0, 1)
        return picture


class UniDepthV2(UniDepth):
    """UniDepth v2. It pads and then scales without antialiasing. Pictures are in 0..255."""

    geometry = V2
    maps = ("depth", "confidence")

    def __init__(self, network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(network, device, dtype)
        constraints = self.network.shape_constraints
        found = (*constraints["ratio_bounds"], constraints["pixels_min"], constraints["pixels_max"])
        _refuse_others("shape_constraints", found, (*V2.aspects, *V2.areas))
        warnings.filterwarnings(
            "ignore", message="!! self.resolution_level"
        )  # it warns at each call about the bounds that we set

    def _call(
        self, pictures: Tensor, places: Sequence[Placement], focals: Sequence[float | None]
    ) -> tuple[Tensor, Tensor]:
        height, width = pictures.shape[-2:]
        # Bounds that exactly this size meets. The aspect is a little larger, because `infer` computes int(height * aspect).
        aspect, area = width / height * (1 + 1e-9), height * width
        bounds = {"ratio_bounds": (aspect, aspect), "pixels_min": area, "pixels_max": area}
        self.network.shape_constraints = {**self.network.shape_constraints, **bounds}
        return super()._call(pictures, places, focals)

    def _picture(self, image: Tensor, place: Placement) -> Tensor:
        height, width = image.shape[:2]
        padded_height, padded_width = V2.padded(height, width)
        down, across = padded_height - height, padded_width - width
        border = (across // 2, across - across // 2, down // 2, down - down // 2)
        mean = self._mean * 255
        rgb = F.pad(image.permute(2, 0, 1)[None].float().sub_(mean), border)  # zeros, which are the mean colour
        return F.interpolate(rgb, place.picture, mode="bilinear", align_corners=False)[0].add_(mean)


TEACHERS: dict[str, type[UniDepth]] = {"v1": UniDepthV1, "v2": UniDepthV2}


def cut(maps: Tensor, place: Placement, size: tuple[int, int]) -> Tensor:
    """Cut the image out of maps of the picture, at the label's size, with linear interpolation between the picture's pixels.

    Args:
        maps: float32 (C, *place.picture).
        place: the image's place in the picture.
        size: (height, width) of the label.

    Returns:
        float32 (C, *size).
    """
    for dim, start, extent, count in zip((1, 2), place.corner, place.extent, size, strict=True):
        last = maps.shape[dim] - 1
        middles = (torch.arange(count, dtype=torch.float64, device=maps.device) + 0.5) * (extent / count)
        positions = (start + middles - 0.5).clamp_(0, last)
        first = positions.floor()
        weights = (positions - first).float().view(-1, 1) if dim == 1 else (positions - first).float()
        index = first.long()
        maps = maps.index_select(dim, index).lerp(maps.index_select(dim, (index + 1).clamp_(max=last)), weights)
    return maps


def certainty(uncertainty: Tensor) -> Tensor:
    """Turn v2's uncertainty (N, height, width), larger = worse, into confidence in [0, 1], larger = surer."""
    median = uncertainty.flatten(1).median(dim=1).values[:, None, None]
    return median / (median + uncertainty)


def _refuse_others(name: str, found: tuple[float, ...], known: tuple[float, ...]) -> None:
    if found != known:
        raise UserError(
            f"the UniDepth of this repository has {name} {found} instead of {known}, so labels would have other sizes than "
            "planned: give another --teacher-option repo"
        )
