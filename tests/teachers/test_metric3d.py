"""Metric3D's labels equal its published usage. A small network stands in, with the repository's entry points and outputs."""

import pickle
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from da2ray.errors import UserError
from da2ray.teachers import metric3d
from da2ray.teachers.base import Camera, Kind, LoadOptions, PixelBatch
from da2ray.teachers.metric3d import Metric3D, cv2_resize

HUBCONF = '''
dependencies = ["torch"]
import math
import torch
from torch import nn
from torch.nn import functional as F

class Head(nn.Module):
    """Makes its anchors as the published heads do: on "cuda", as many rows as the first batch has images."""
    min_val, max_val, num_depth_regressor_anchor = 0.1, 200, 16
    def __init__(self):
        super().__init__()
        self.depth, self.confidence = nn.Conv2d(4, 16, 1), nn.Conv2d(4, 1, 1)
    def register_depth_expectation_anchor(self, bins_num, B):
        low, high = math.log(self.min_val), math.log(self.max_val)
        bins = torch.exp(torch.linspace(low, high, bins_num, device="cuda"))
        self.register_buffer("depth_expectation_anchor", bins.unsqueeze(0).repeat(B, 1), persistent=False)
    def forward(self, features):
        probability = self.depth(features).softmax(dim=1)
        if "depth_expectation_anchor" not in self._buffers:
            self.register_depth_expectation_anchor(self.num_depth_regressor_anchor, len(probability))
        anchors = self.depth_expectation_anchor[:len(probability)]
        return (probability * anchors[:, :, None, None]).sum(1, keepdim=True), self.confidence(features)

class DepthModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Conv2d(3, 4, 14, stride=14), Head()
    def inference(self, data):
        with torch.no_grad():
            features = self.encoder(data["input"])
            features = features + features.mean((2, 3), keepdim=True)  # the border is seen everywhere
            maps = [F.interpolate(x, data["input"].shape[-2:], mode="bilinear") for x in self.head(features)]
            return *maps, {"prediction_normal": maps[0].expand(-1, 4, -1, -1)}

def metric3d_vit_small(pretrain=False, **kwargs):
    assert not pretrain, "weights are da2ray's to load"
    return DepthModel()
'''

SHAPES: Sequence[tuple[int, int]] = [(480, 640), (240, 320), (96, 128)]
FOCALS = [500.0, None, 90.0]
SIZE = (616, 821)


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("metric3d")
    (folder / "hubconf.py").write_text(HUBCONF)
    generator = torch.Generator().manual_seed(0)
    shapes = {"encoder": (4, 3, 14, 14), "head.depth": (16, 4, 1, 1), "head.confidence": (1, 4, 1, 1)}
    state = {}
    for name, shape in shapes.items():
        spread = {"encoder": 0.05, "head.depth": 1.0, "head.confidence": 0.3}[name]
        state[f"{name}.weight"] = spread * torch.randn(shape, generator=generator)
        state[f"{name}.bias"] = torch.full((shape[0],), 0.3)
    torch.save({"model_state_dict": state}, folder / "weights.pth")
    return folder


def load(repo: Path, precision: str = "fp32") -> Metric3D:
    spec = metric3d.spec("vit_small", {"repo": str(repo)})
    options = LoadOptions(weights=str(repo / "weights.pth"), precision=precision, trust_remote_code=True)
    teacher = spec.load(options)
    assert isinstance(teacher, Metric3D)
    return teacher


@pytest.fixture(scope="module")
def teacher(repo: Path) -> Metric3D:
    return load(repo)


def images(shapes: Sequence[tuple[int, int]] = SHAPES) -> list[NDArray[np.uint8]]:
    """Images of coarse and fine noise."""
    random = np.random.default_rng(1)
    made = []
    for height, width in shapes:
        coarse = cv2.resize(random.random((6, 8, 3)), (width, height), interpolation=cv2.INTER_CUBIC)
        made.append(np.clip(200 * coarse + random.integers(0, 56, (height, width, 3)), 0, 255).astype(np.uint8))
    return made


def batch_of(
    pictures: Sequence[NDArray[np.uint8]], focals: Sequence[float | None] | None = None, size: tuple[int, int] = SIZE
) -> PixelBatch:
    pixels = torch.cat([torch.from_numpy(picture.reshape(-1)) for picture in pictures])
    return PixelBatch(pixels, [picture.shape[:2] for picture in pictures], size, focals=focals)


def published(network: torch.nn.Module, rgb: NDArray[np.uint8], focal: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The example of the repository's hubconf.py, without its last step, which resizes the depth to the image's size."""
    scale = min(616 / rgb.shape[0], 1064 / rgb.shape[1])
    size = int(rgb.shape[1] * scale), int(rgb.shape[0] * scale)
    rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_LINEAR)  # type: ignore[assignment]
    down, across = 616 - size[1], 1064 - size[0]
    top, left = down // 2, across // 2
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    border = (top, down - top, left, across - left)
    rgb = cv2.copyMakeBorder(rgb, *border, cv2.BORDER_CONSTANT, value=mean.tolist())  # type: ignore[assignment]
    picture = torch.from_numpy((rgb - mean) / std).permute(2, 0, 1)[None].float()
    depth, confidence, _ = network.inference({"input": picture})  # type: ignore[operator]
    inside = (0, 0, slice(top, top + size[1]), slice(left, left + size[0]))
    return torch.clamp(depth[inside] * (focal * scale / 1000), 0, 300), confidence[inside]


def test_labels_equal_the_published_usage(teacher: Metric3D) -> None:
    pictures = images()
    prediction = teacher.predict(batch_of(pictures, FOCALS))
    assert prediction.confidence is not None
    assert prediction.focals is not None
    assert prediction.depth.shape == prediction.confidence.shape == (3, *SIZE)
    assert prediction.depth.dtype == prediction.confidence.dtype == prediction.focals.dtype == torch.float32
    for number, picture in enumerate(pictures):
        metres, confidence = published(teacher.network, picture, float(prediction.focals[number]))
        assert metres.std() > 0.1
        torch.testing.assert_close(prediction.depth[number], metres, atol=1e-4, rtol=0)
        torch.testing.assert_close(prediction.confidence[number], confidence.clamp(0, 1), atol=1e-4, rtol=0)
    assert ((prediction.confidence > 0) & (prediction.confidence < 1)).float().mean() > 0.3


def test_an_unknown_focal_length_is_the_canonical_camera_at_the_network_size(teacher: Metric3D) -> None:
    """With 1000 px in the picture the network's own output is in metres, at any size of the saved photograph."""
    large, small = images(SHAPES[:2])
    assumed = teacher.predict(batch_of([large, small]))
    assert assumed.focals is not None
    scales = torch.tensor([616 / 480, 616 / 240])
    torch.testing.assert_close(assumed.focals, 1000 / scales)
    given = teacher.predict(batch_of([large, small], assumed.focals.tolist()))
    torch.testing.assert_close(assumed.depth, given.depth)


def test_metres_are_proportional_to_the_focal_length_up_to_the_clamp(teacher: Metric3D) -> None:
    (picture,) = images(SHAPES[:1])
    once, twice, far = (teacher.predict(batch_of([picture], [focal])) for focal in (400.0, 800.0, 1e6))
    assert twice.depth.max() < 300
    torch.testing.assert_close(twice.depth, 2 * once.depth)
    assert far.depth.max() == 300
    assert once.confidence is not None
    assert twice.confidence is not None
    # Fixed: this process, so its threads, libraries and instruction set.
    assert torch.equal(once.confidence, twice.confidence)


def test_batch_of_one_and_of_many_agree(teacher: Metric3D) -> None:
    """Invariant 6. Heads also take a batch that is larger than their first one, which loading made."""
    pictures = images()
    together = teacher.predict(batch_of(pictures, FOCALS)).depth
    for number, picture in enumerate(pictures):
        alone = teacher.predict(batch_of([picture], FOCALS[number : number + 1])).depth[0]
        torch.testing.assert_close(alone, together[number], atol=1e-4, rtol=0)


def test_reduced_precision_stays_near_fp32_and_is_stored_as_float32(repo: Path, teacher: Metric3D) -> None:
    batch = batch_of(images())
    exact, reduced = teacher.predict(batch).depth, load(repo, "bf16").predict(batch).depth
    assert reduced.dtype == torch.float32
    assert 0 < ((exact - reduced).abs() / exact).mean() < 0.02


@pytest.mark.parametrize(
    ("shape", "size"), [((480, 640), (616, 821)), ((333, 777), (456, 1064)), ((37, 53), (616, 882))]
)
def test_the_resize_equals_cv2s_bit_for_bit(shape: tuple[int, int], size: tuple[int, int]) -> None:
    assert metric3d.SIZE(*shape) == size
    image = np.random.default_rng(2).integers(0, 256, (*shape, 3), dtype=np.uint8)
    # Both compute with integers: equal on every machine, given this release of OpenCV.
    resized = cv2_resize(torch.from_numpy(image), size)
    assert np.array_equal(resized.numpy(), cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR))


def test_the_spec_describes_the_teacher_and_travels_to_workers() -> None:
    spec = metric3d.spec("vit_giant2", {})
    assert (spec.name, spec.kind, spec.unit, spec.camera) == ("metric3d:vit_giant2", Kind.METRIC, "m", Camera.ASSUMED)
    assert spec.licence == "BSD-2-Clause"
    assert not spec.concurrent
    assert pickle.loads(pickle.dumps(spec)).size_rule(480, 640) == SIZE  # noqa: S301


def test_the_error_for_an_unknown_variant_or_option_lists_the_known_ones() -> None:
    known = "metric3d:vit_small, metric3d:vit_large, metric3d:vit_giant2"
    with pytest.raises(UserError, match=rf"no variant vit_tiny: give --teacher {known}$"):
        metric3d.spec("vit_tiny", {})
    with pytest.raises(UserError, match="metric3d:vit_small has no option steps: it takes repo"):
        metric3d.spec("vit_small", {"steps": "4"})
