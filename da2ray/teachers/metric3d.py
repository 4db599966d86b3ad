"""Metric3D v2 through torch.hub: `--teacher metric3d:vit_small`, `vit_large` or `vit_giant2`.

The reference is the example at the end of `hubconf.py` in YvanYin/Metric3D, at the commit in `REPO`. It resizes the uint8 image
into 616 x 1064 with cv2's bilinear resize, adds a border of the mean colour, calls `model.inference` and cuts the border off.
Metres are prediction x focal length in the picture / 1000, clamped to 0 to 300. da2ray leaves out the example's last step, which
resizes the depth to the image's size: labels stay at the picture's size.

Focal length. The network sees the picture as if through a camera of 1000 px, so metres are proportional to the focal length. An
unknown focal length is assumed to be 1000 px in the picture. That is 56 degrees across its 1064 px, near the canonical camera of
the README (51 degrees). `mono/utils/do_test.py` assumes 1000 px in the original image instead. With that, a photograph saved at
half the size would be labelled twice as far away. `Prediction.focals` holds the focal length that was used. A label can be
corrected later by the factor true / used, except for pixels that are clamped to 300 m.

Confidence. The head is trained on 1 - |prediction - truth| / truth (`training/mono/model/losses/GRUSequenceLoss.py`), so it is 1
minus the relative error that the network expects. Nothing bounds it, so it is clamped to [0, 1].
"""

import functools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from da2ray.errors import UserError
from da2ray.storage import printable
from da2ray.teachers.base import Camera, Kind, PixelBatch, Prediction, TeacherSpec
from da2ray.teachers.torch_hub import HubModel, load_teacher, parse_repo, running
from da2ray.teachers.torch_hub_size import Metric3DSize

REPO = "YvanYin/Metric3D:eb5b6fac0dc155e4e52f576e304fbf11655ff339"

WEIGHTS = {
    "vit_small": "JUGGHM/Metric3D:metric_depth_vit_small_800k.pth",
    "vit_large": "JUGGHM/Metric3D:metric_depth_vit_large_800k.pth",
    "vit_giant2": "JUGGHM/Metric3D:metric_depth_vit_giant2_800k.pth",
}
"""Variant -> the file that `hubconf.py` would load, as a hub id. The ConvNeXt models (v1) have another size and are left out."""

LICENCE = "BSD-2-Clause"
PREPROCESSING = "metric3d-616x1064-v1"
SIZE = Metric3DSize()

CANONICAL = 1000.0
"""Focal length of the canonical camera, in pixels of the picture."""

FARTHEST = 300.0
"""Largest depth in metres; the published code clamps to it."""

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
"""Mean and standard deviation of R, G and B in 0..255. The border is the mean rounded to uint8, like `cv2.copyMakeBorder`'s."""


def spec(variant: str, options: Mapping[str, str]) -> TeacherSpec:
    """The spec of the teacher `metric3d:VARIANT`.

    Args:
        variant: a key of `WEIGHTS`.
        options: may have `repo`, a folder or `org/name:commit` to use instead of `REPO`.

    Raises:
        UserError: the variant or an option does not exist.
    """
    if variant not in WEIGHTS:
        known = ", ".join(f"metric3d:{name}" for name in WEIGHTS)
        raise UserError(f"metric3d has no variant {printable(variant)}: give --teacher {known}")
    name = f"metric3d:{variant}"
    repo = parse_repo(options, name, REPO)
    model = HubModel(name, repo, f"metric3d_{variant}", (("pretrain", False),), WEIGHTS[variant])
    return TeacherSpec(
        name=name,
        kind=Kind.METRIC,
        unit="m",
        licence=LICENCE,
        size_rule=SIZE,
        preprocessing=PREPROCESSING,
        identify=model.identify,
        load=functools.partial(load_teacher, model, Metric3D, SIZE),
        camera=Camera.ASSUMED,
    )


class Metric3D:
    """A loaded Metric3D with a ViT (`da2ray.teachers.base.Teacher`).

    Args:
        network: the network that the repository's entry point returns, with its weights.
        device: the device to run on.
        dtype: the dtype of the matrix products.
    """

    def __init__(self, network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.network = network.to(device)
        self._dtype = dtype
        _place_anchors(self.network, device)
        self._mean, self._std = torch.tensor([MEAN, STD], device=device).view(2, 3, 1, 1)

    def predict(self, batch: PixelBatch) -> Prediction:
        """Label a micro-batch with metres, float32 (N, height, width) at `batch.size`.

        The module's docstring describes the confidence and the focal lengths.

        Raises:
            torch.OutOfMemoryError: the micro-batch is too large for the device.
        """
        height, width = batch.size
        top, left = (SIZE.picture[0] - height) // 2, (SIZE.picture[1] - width) // 2
        image = (..., slice(top, top + height), slice(left, left + width))
        with torch.inference_mode():
            pictures = self._mean.round().repeat(len(batch), 1, *SIZE.picture)
            for picture, pixels in zip(pictures, batch.images(), strict=True):
                picture[image] = cv2_resize(pixels, batch.size).permute(2, 0, 1)
            pictures = pictures.sub_(self._mean).div_(self._std)
            with running(self.device, self._dtype):
                depth, confidence, _ = self.network.inference({"input": pictures})  # type: ignore[operator]
            scales = torch.tensor([SIZE.scale(*shape) for shape in batch.shapes], device=self.device)
            focals = self._focals(batch, scales)
            metres = depth[:, 0][image].float() * (focals * scales / CANONICAL)[:, None, None]
            return Prediction(metres.clamp(0, FARTHEST), confidence[:, 0][image].float().clamp(0, 1), focals)

    def _focals(self, batch: PixelBatch, scales: Tensor) -> Tensor:
        """The focal lengths in pixels of each image, float32 (N,): known ones, and the canonical camera's for the rest."""
        known = batch.focals or [None] * len(batch)
        focals = torch.tensor([math.nan if focal is None else focal for focal in known], device=self.device)
        return torch.where(focals.isnan(), CANONICAL / scales, focals)


def cv2_resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize like `cv2.resize(image, INTER_LINEAR)`, bit for bit, on any device.

    OpenCV computes the resize in integers, with weights of 11 bits and a rounding that leaves one value in eight a level off
    the exact one (checked: OpenCV 5.0.0). The network was trained on such images.

    Args:
        image: uint8 (H, W, 3).
        size: (height, width).

    Returns:
        int32 (height, width, 3), from 0 to 255.
    """
    upper, lower, down = _taps(image.shape[0], size[0], image.device)
    left, right, across = _taps(image.shape[1], size[1], image.device)
    across = across[:, :, None]

    def line(rows: Tensor) -> Tensor:
        values = image[rows].int()
        return (values[:, left] * across[0] + values[:, right] * across[1]) >> 4

    above, below = down[:, :, None, None]
    return (((line(upper) * above) >> 16) + ((line(lower) * below) >> 16) + 2) >> 2


def _taps(length: int, out: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The taps along one side: two int64 (out,) of pixels to read, clamped at the border, and int32 (2, out) of weights."""
    ratio = 1.0 / (out / length)
    destination = torch.arange(out, dtype=torch.float64, device=device)
    centre = ((destination + 0.5) * ratio - 0.5).float()
    first = centre.floor()
    fraction = centre - first
    weights = (torch.stack([1 - fraction, fraction]) * 2048).round().int()
    index = first.long()
    return index.clamp(0, length - 1), (index + 1).clamp(0, length - 1), weights


def _place_anchors(network: nn.Module, device: torch.device) -> None:
    """Give the heads their depth anchors on the teacher's device, as one row that serves a batch of any size.

    The published heads (`RAFTDepthNormalDPTDecoder5.py`, `HourGlassDecoder.py`) make the anchors at the first call. They always
    make them on "cuda", with a row for each image of that batch, so a later, larger batch does not fit.
    """
    for head in network.modules():
        if hasattr(head, "register_depth_expectation_anchor"):
            low, high, count = math.log(head.min_val), math.log(head.max_val), head.num_depth_regressor_anchor  # type: ignore[arg-type]
            anchors = torch.linspace(low, high, count, device=device).exp()  # type: ignore[call-overload]
            head.register_buffer("depth_expectation_anchor", anchors[None], persistent=False)
