"""UniDepth's labels equal `model.infer`. Small networks stand in, with the repository's entry point, resizing and outputs."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from da2ray.errors import UserError
from da2ray.teachers import unidepth
from da2ray.teachers.base import Camera, Kind, LoadOptions, PixelBatch
from da2ray.teachers.torch_hub_size import Placement, UniDepthV2Size
from da2ray.teachers.unidepth import UniDepth, certainty, cut

HUBCONF = '''
dependencies = ["torch"]
import math
import torch
from torch import nn
from torch.nn import functional as F

MEAN, STD = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

class Network(nn.Module):
    """Depth from the picture, border included, and from its camera, which it predicts where none is given."""
    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Conv2d(3, 4, 14, stride=14), nn.Conv2d(4, 2, 1)
    def run(self, picture, K):
        n, _, h, w = picture.shape
        features = self.encoder(picture)
        features = features + features.mean((2, 3), keepdim=True)
        predicted = torch.eye(3).repeat(n, 1, 1)
        predicted[:, 0, 0] = w * (1 + features.mean((1, 2, 3)).sigmoid())
        predicted[:, 1, 1] = predicted[:, 0, 0] + 30
        predicted[:, 0, 2], predicted[:, 1, 2] = w / 2, h / 2
        camera = predicted if K is None else K
        maps = F.interpolate(self.head(features.relu()), (h, w), mode="bilinear", antialias=True).exp()
        scale = (camera[:, 0, 0] + camera[:, 0, 2] + 2 * camera[:, 1, 2]) / w
        return maps[:, :1] * scale.view(-1, 1, 1, 1), maps[:, 1:], predicted

class V1(Network):
    image_shape = [462, 616]
    @torch.no_grad()
    def infer(self, rgbs, intrinsics=None, skip_camera=False):
        rgbs = rgbs[None] if rgbs.ndim == 3 else rgbs
        (H, W), (h, w) = rgbs.shape[-2:], self.image_shape
        if rgbs.max() > 5 or rgbs.dtype == torch.uint8:
            rgbs = rgbs.float() / 255
        if rgbs.min() >= 0 and rgbs.max() <= 1:
            rgbs = (rgbs - MEAN) / STD
        ratio = h / H if w / h > W / H else w / W
        inner = math.ceil(H * ratio - 0.5), math.ceil(W * ratio - 0.5)
        top, left = (h - inner[0]) // 2, (w - inner[1]) // 2
        rgbs = F.interpolate(rgbs, inner, mode="bilinear", antialias=True)
        picture = F.pad(rgbs, (left, w - inner[1] - left, top, h - inner[0] - top))
        if intrinsics is not None:
            intrinsics = intrinsics.reshape(-1, 3, 3).clone()
            intrinsics[:, :2] *= ratio
            intrinsics[:, 0, 2] += left
            intrinsics[:, 1, 2] += top
        depth, _, K = self.run(picture, intrinsics)
        depth = depth[..., top:top + inner[0], left:left + inner[1]]
        K[:, 0, 2] -= left
        K[:, 1, 2] -= top
        K[:, :2] /= ratio
        return {"depth": F.interpolate(depth, (H, W), mode="bilinear", antialias=True), "intrinsics": K}

class V2(Network):
    def __init__(self, ratio_bounds):
        super().__init__()
        self.shape_constraints = {"ratio_bounds": ratio_bounds, "pixels_max": 600000, "pixels_min": 200000, "shape_mult": 14}
    @torch.no_grad()
    @torch.autocast(device_type="cuda", enabled=True, dtype=torch.float16)
    def infer(self, rgb, camera=None, normalize=True):
        rgb = rgb[None] if rgb.ndim == 3 else rgb
        H, W = rgb.shape[-2:]
        least, most = self.shape_constraints["ratio_bounds"]
        ratio = min(most, max(least, W / H))
        padded = (int(W / ratio), W) if W / H > ratio else (H, int(H * ratio))
        top, left = (padded[0] - H) // 2, (padded[1] - W) // 2
        bottom, right = padded[0] - H - top, padded[1] - W - left
        pixels, bounds = padded[0] * padded[1], self.shape_constraints
        factor = (min(bounds["pixels_max"], max(bounds["pixels_min"], pixels)) / pixels) ** 0.5
        size = [math.ceil(int(side * factor) / 14) * 14 for side in padded]
        picture = F.pad((rgb.float() / 255 - MEAN) / STD, (left, right, top, bottom))
        picture = F.interpolate(picture, size, mode="bilinear")
        if camera is not None:
            camera = camera.reshape(-1, 3, 3).clone()
            camera[:, 0, 2] += left
            camera[:, 1, 2] += top
            camera[:, :2] *= factor
        depth, confidence, K = self.run(picture, camera)
        rows, columns = slice(top, padded[0] - bottom), slice(left, padded[1] - right)
        depth, confidence = (F.interpolate(x, padded, mode="bilinear")[..., rows, columns] for x in (depth, confidence))
        K[:, :2] /= factor
        K[:, 0, 2] -= left
        K[:, 1, 2] -= top
        return {"depth": depth, "confidence": confidence, "intrinsics": K}

def UniDepth(version="v2", backbone="vitl14", pretrained=True):
    assert not pretrained, "weights are da2ray's to load"
    return V1() if version == "v1" else V2([0.5, 3.0] if backbone == "vitl14" else [0.5, 2.5])
'''

VERSIONS = ("v1", "v2")
VARIANTS = {"v1": "v1-cnvnxtl", "v2": "v2-vits14"}
SHAPES: Sequence[tuple[int, int]] = [(240, 320), (150, 200), (330, 440)]
SIZES = {"v1": (462, 616), "v2": (392, 518)}
FOCALS = [None, 210.0, None]


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unidepth")
    (folder / "hubconf.py").write_text(HUBCONF)
    generator = torch.Generator().manual_seed(0)
    state = {
        "encoder.weight": 0.03 * torch.randn(4, 3, 14, 14, generator=generator),
        "encoder.bias": torch.full((4,), 0.3),
        "head.weight": 0.4 * torch.randn(2, 4, 1, 1, generator=generator),
        "head.bias": torch.full((2,), 1.0),
    }
    torch.save(state, folder / "weights.pth")
    return folder


@pytest.fixture(scope="module")
def teachers(repo: Path) -> Mapping[str, UniDepth]:
    options = LoadOptions(weights=str(repo / "weights.pth"), trust_remote_code=True)
    specs = {version: unidepth.spec(VARIANTS[version], {"repo": str(repo)}) for version in VERSIONS}
    return {version: spec.load(options) for version, spec in specs.items()}  # type: ignore[misc]


def batch_of(
    shapes: Sequence[tuple[int, int]], size: tuple[int, int], focals: Sequence[float | None] | None = None
) -> PixelBatch:
    """Images of coarse and fine noise. The last one is so dark that its largest value is 4."""
    generator = torch.Generator().manual_seed(1)
    images = []
    for shape in shapes:
        coarse = F.interpolate(torch.rand(1, 3, 6, 8, generator=generator), shape, mode="bicubic")[0].permute(1, 2, 0)
        images.append((200 * coarse + 50 * torch.rand(*shape, 3, generator=generator)).clamp(0, 255).byte().flatten())
    images[-1] //= 60
    return PixelBatch(torch.cat(images), shapes, size, focals=focals)


def infer(teacher: UniDepth, image: torch.Tensor, focal: float | None) -> dict[str, Any]:
    """The published usage: `infer` on the whole image, with its intrinsics if they are known."""
    if teacher.maps != ("depth",):
        teacher.network.shape_constraints.update(ratio_bounds=[0.5, 2.5], pixels_min=200_000, pixels_max=600_000)
    height, width = image.shape[:2]
    intrinsics = None if focal is None else torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    return teacher.network.infer(image.permute(2, 0, 1), intrinsics)


@pytest.mark.parametrize("version", VERSIONS)
def test_labels_resized_to_the_image_equal_infer(version: str, teachers: Mapping[str, UniDepth]) -> None:
    """The teacher gets images of several sizes, with and without a camera, in one micro-batch; `infer` gets them one by one."""
    teacher, batch = teachers[version], batch_of(SHAPES, SIZES[version], FOCALS)
    prediction = teacher.predict(batch)
    assert prediction.focals is not None
    assert prediction.depth.shape == (3, *SIZES[version])
    assert prediction.depth.dtype == prediction.focals.dtype == torch.float32
    for number, (image, focal) in enumerate(zip(batch.images(), FOCALS, strict=True)):
        expected = infer(teacher, image, focal)
        assert expected["depth"].std() > 0.001
        resized = F.interpolate(
            prediction.depth[number][None, None], image.shape[:2], mode="bilinear", antialias=version == "v1"
        )
        torch.testing.assert_close(resized, expected["depth"], atol=1e-4, rtol=0)
        used = expected["intrinsics"][0].diagonal()[:2].mean() if focal is None else torch.tensor(focal)
        torch.testing.assert_close(prediction.focals[number], used)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("shape", [(392, 518), (98, 700), (700, 98)])
def test_a_picture_with_a_border_gives_the_image_without_it(
    version: str, shape: tuple[int, int], teachers: Mapping[str, UniDepth]
) -> None:
    teacher = teachers[version]
    size = teacher.geometry(*shape)
    batch = batch_of([shape, shape], size)
    depth = teacher.predict(batch).depth
    expected = infer(teacher, batch.images()[0], None)["depth"]
    resized = F.interpolate(depth[:1, None], shape, mode="bilinear", antialias=version == "v1")
    # If the border ends between two pixels of the picture, a label's pixels lie between the picture's.
    torch.testing.assert_close(resized, expected, atol=0.02 * float(expected.max()), rtol=0)
    assert (resized - expected).abs().mean() < 1e-3 * expected.mean()


def test_v2_cuts_the_border_off_without_loss_if_pixels_coincide(teachers: Mapping[str, UniDepth]) -> None:
    """210 x 1050 is padded to 420 x 1050, which is within the bounds and a multiple of 14, so nothing is resized."""
    batch = batch_of([(210, 1050), (210, 1050)], (210, 1050), [900.0, None])
    assert teachers["v2"].geometry(210, 1050) == (210, 1050)
    prediction = teachers["v2"].predict(batch)
    for number, focal in enumerate([900.0, None]):
        expected = infer(teachers["v2"], batch.images()[number], focal)
        torch.testing.assert_close(prediction.depth[number], expected["depth"][0, 0], atol=1e-4, rtol=0)


def test_cut_reads_a_map_at_the_centres_of_the_labels_pixels() -> None:
    place = Placement((40, 60), corner=(7.25, -0.5), extent=(20.5, 61.0), scale=1.0, centre=(0, 0))
    rows, columns = torch.arange(40) + 0.5, torch.arange(60) + 0.5
    maps = torch.stack([rows[:, None].expand(40, 60), columns.expand(40, 60)])
    y, x = cut(maps, place, (41, 122))
    torch.testing.assert_close(y[:, 0], 7.25 + 0.25 + 0.5 * torch.arange(41))
    torch.testing.assert_close(x[0], (-0.5 + 0.25 + 0.5 * torch.arange(122)).clamp(0.5, 59.5))


def test_v2_pads_and_scales_as_its_code_does() -> None:
    for shape, picture in [
        ((480, 640), (490, 644)),
        ((3000, 4000), (672, 896)),
        ((100, 600), (294, 714)),
        ((240, 320), (392, 518)),
    ]:
        assert UniDepthV2Size().place(*shape).picture == picture
    assert UniDepthV2Size()(100, 600) == (123, 714)  # the border makes 240 rows of the 100


def test_v2_labels_the_whole_image_when_infer_returns_one_column(teachers: Mapping[str, UniDepth]) -> None:
    """int(46 * (52 / 46)) is 51, so the published code would pad by -1."""
    batch = batch_of([(46, 52), (46, 52)], teachers["v2"].geometry(46, 52))
    assert infer(teachers["v2"], batch.images()[0], None)["depth"].shape == (1, 1, 46, 1)
    depth = teachers["v2"].predict(batch).depth[:1, None]
    without_first = infer(teachers["v2"], batch.images()[0][:, 1:], None)["depth"]
    resized = F.interpolate(depth, (46, 52), mode="bilinear")[..., 1:]
    assert (resized - without_first).abs().mean() < 0.03 * without_first.mean()


def test_confidence_is_certainty_relative_to_the_image(teachers: Mapping[str, UniDepth]) -> None:
    """v2 predicts an uncertainty. Confidence reverses its order, and the median pixel gets 1/2. v1 has no confidence."""
    batch = batch_of(SHAPES, SIZES["v2"])
    confidence = teachers["v2"].predict(batch).confidence
    assert confidence is not None
    assert confidence.dtype == torch.float32
    assert ((confidence > 0) & (confidence < 1)).all()
    torch.testing.assert_close(confidence.flatten(1).median(dim=1).values, torch.full((3,), 0.5))
    uncertain = infer(teachers["v2"], batch.images()[0], None)["confidence"][0, 0]
    sure = F.interpolate(confidence[:1, None], uncertain.shape, mode="bilinear")[0, 0]
    assert torch.corrcoef(torch.stack([uncertain.flatten(), sure.flatten()]))[0, 1] < -0.8
    torch.testing.assert_close(certainty(1000 * torch.tensor([[[1.0, 3.0, 9.0]]])), torch.tensor([[[0.75, 0.5, 0.25]]]))
    assert teachers["v1"].predict(batch_of(SHAPES, SIZES["v1"])).confidence is None


@pytest.mark.parametrize("version", VERSIONS)
def test_batch_of_one_and_of_many_agree(version: str, teachers: Mapping[str, UniDepth]) -> None:
    """Invariant 6, also for an image whose values are all below 5, for which v1's `infer` guesses another unit."""
    teacher, size = teachers[version], SIZES[version]
    batch = batch_of(SHAPES, size, FOCALS)
    together = teacher.predict(batch)
    assert together.focals is not None
    for number, image in enumerate(batch.images()):
        alone = teacher.predict(PixelBatch(image.flatten(), [SHAPES[number]], size, focals=[FOCALS[number]]))
        assert alone.focals is not None
        torch.testing.assert_close(alone.depth[0], together.depth[number], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone.focals[0], together.focals[number])


def test_a_precision_that_the_code_cannot_run_is_refused_when_loading(repo: Path) -> None:
    """PyTorch's antialiased resize does not support bf16 on CPU. v2's decorators, which force fp16 on CUDA, are off."""
    options = LoadOptions(weights=str(repo / "weights.pth"), trust_remote_code=True, precision="bf16")
    with pytest.raises(
        UserError, match=r"unidepth:v1-vitl14: the code of .* fails here, with --device cpu --precision bf16"
    ):
        unidepth.spec("v1-vitl14", {"repo": str(repo)}).load(options)


def test_a_network_with_other_sizes_is_refused(repo: Path) -> None:
    options = LoadOptions(weights=str(repo / "weights.pth"), trust_remote_code=True)
    with pytest.raises(
        UserError, match=r"shape_constraints \(0.5, 3.0, 200000, 600000\) instead of \(0.5, 2.5, 200000, 600000\)"
    ):
        unidepth.spec("v2-vitl14", {"repo": str(repo)}).load(options)


def test_the_spec_describes_the_teacher_and_travels_to_workers() -> None:
    spec = unidepth.spec("v2-vitb14", {})
    assert (spec.name, spec.kind, spec.unit, spec.camera) == ("unidepth:v2-vitb14", Kind.METRIC, "m", Camera.PREDICTED)
    assert spec.licence == "CC-BY-NC-4.0"
    assert not spec.concurrent
    assert pickle.loads(pickle.dumps(spec)).size_rule(240, 320) == SIZES["v2"]  # noqa: S301


def test_the_error_for_an_unknown_variant_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"no variant v3: .* unidepth:v1-vitl14, .*, unidepth:v2-vitl14$"):
        unidepth.spec("v3", {})
