"""The preprocessing equals the official recipe: cv2.resize on float64, then ImageNet's mean and deviation."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage import data

from da2ray.teachers.base import PixelBatch
from da2ray.teachers.depth_anything import preprocess as module
from da2ray.teachers.depth_anything.preprocess import (
    MEAN,
    STD,
    gather_resize,
    preprocess,
    sampling_tables,
)
from da2ray.teachers.depth_anything.size import OfficialSize

SIZE = OfficialSize()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Black and white noise, the image on which two resizes differ most."""
    return (np.random.default_rng(seed).random((height, width, 3)) > 0.5).astype(np.uint8) * 255


def make_batch(images: list[np.ndarray], size: tuple[int, int], *, scaled: bool = False) -> PixelBatch:
    flat = np.concatenate([image.reshape(-1) for image in images])
    return PixelBatch(torch.from_numpy(flat), [image.shape[:2] for image in images], size, scaled)


def official(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    resized = cv2.resize(image / 255.0, size[::-1], interpolation=cv2.INTER_CUBIC)
    return ((resized - MEAN) / STD).transpose(2, 0, 1).astype(np.float32)


def official_size(height: int, width: int) -> tuple[int, int]:
    """The official `Resize.get_size` and `constrain_to_multiple_of` for lower_bound, with NumPy's rounding."""

    def constrain(x: float) -> int:
        y = (np.round(x / 14) * 14).astype(int)
        return int(y if y >= 518 else (np.ceil(x / 14) * 14).astype(int))

    scale_height, scale_width = 518 / height, 518 / width
    if scale_width > scale_height:
        scale_height = scale_width
    else:
        scale_width = scale_height
    return constrain(scale_height * height), constrain(scale_width * width)


@pytest.mark.parametrize(
    ("width", "height", "network"),
    [
        (640, 480, (686, 518)),
        (500, 375, (686, 518)),
        (300, 200, (784, 518)),
        (600, 300, (1036, 518)),
        (2000, 300, (3458, 518)),
        (480, 640, (518, 686)),
        (518, 518, (518, 518)),
    ],
)
def test_sizes_match_the_published_examples(width: int, height: int, network: tuple[int, int]) -> None:
    assert SIZE(height, width) == network[::-1]


def test_the_size_equals_that_of_the_official_transform_for_any_image() -> None:
    sides = np.random.default_rng(0).integers(1, 6000, (20_000, 2)).tolist()
    assert [SIZE(h, w) for h, w in sides] == [official_size(h, w) for h, w in sides]


def test_other_short_sides_stay_a_lower_bound_and_a_multiple() -> None:
    for short_side in (252, 500, 1036):
        for height, width in ((375, 500), (1080, 1920), (77, 31)):
            size = OfficialSize(short_side)(height, width)
            assert min(size) == math.ceil(short_side / 14) * 14
            assert all(side % 14 == 0 for side in size)


@pytest.mark.parametrize(
    ("height", "width"),
    [(33, 47), (375, 500), (518, 686), (1024, 1366), (1536, 2048), (1944, 2592), (3000, 4000), (2500, 700)],
)
def test_exact_preprocessing_is_within_1e_3_of_the_official_rule(height: int, width: int) -> None:
    image, size = noise(height, width), SIZE(height, width)
    result = preprocess(make_batch([image], size))
    assert result.dtype == torch.float32
    assert result.shape == (1, 3, *size)
    assert result.is_contiguous()
    assert np.abs(result[0].numpy() - official(image, size)).max() < 1e-3


def test_strips_agree_with_the_official_rule_to_rounding_at_any_ratio() -> None:
    for height, width in ((33, 47), (518, 686), (700, 2100), (2400, 3100)):
        image, size = noise(height, width), SIZE(height, width)
        planes = torch.empty((3, *size))
        module._resize_strips(torch.from_numpy(image), planes)
        assert np.abs(planes.numpy() - official(image, size)).max() < 1e-5


def test_one_gather_resizes_each_image_of_a_mixed_batch_by_the_official_rule() -> None:
    shapes = [(375, 500), (60, 80), (518, 686), (1500, 2000)]
    images = [noise(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    size = (518, 686)
    batch = make_batch(images, size)
    result = gather_resize(batch.pixels, sampling_tables(batch.shapes, size, "cpu"))
    assert result.shape == (4, 3, *size)
    assert result.is_contiguous()
    for planes, image in zip(result.numpy(), images, strict=True):
        assert np.abs(planes - official(image, size)).max() < 1e-5


def test_gather_agrees_with_torch_bicubic_on_photographs() -> None:
    image = data.coffee()
    size = SIZE(*image.shape[:2])
    batch = make_batch([image], size)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    resized = F.interpolate(planes, size, mode="bicubic", align_corners=False, antialias=False)
    expected = (resized - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    result = gather_resize(batch.pixels, sampling_tables(batch.shapes, size, "cpu"))
    assert (result - expected).abs().max() < 1e-3


def test_torch_compile_makes_one_graph_of_gather() -> None:
    batch = make_batch([noise(40, 50), noise(60, 75, seed=1)], (28, 42))
    tables = sampling_tables(batch.shapes, batch.size, "cpu")
    # Fixed: the kernels; the backend "eager" only traces.
    compiled = torch.compile(gather_resize, fullgraph=True, backend="eager")
    assert torch.equal(compiled(batch.pixels, tables), gather_resize(batch.pixels, tables))


def test_an_image_is_the_same_alone_and_in_a_batch() -> None:
    images = [noise(375, 500), noise(480, 640, seed=1), noise(2250, 3000, seed=2)]
    together = preprocess(make_batch(images, (518, 686)))
    # Fixed: OpenCV and this process. Each image is resized by itself.
    for image, planes in zip(images, together, strict=True):
        assert torch.equal(preprocess(make_batch([image], (518, 686)))[0], planes)


def test_scaled_preprocessing_is_the_official_rule_on_bytes() -> None:
    image = data.astronaut()
    result = preprocess(make_batch([image], (518, 518), scaled=True))[0].numpy()
    resized = cv2.resize(image, (518, 518), interpolation=cv2.INTER_CUBIC)
    expected = ((resized / 255.0 - MEAN) / STD).transpose(2, 0, 1)
    assert np.abs(result - expected).max() < 1e-5
    assert np.abs(result - official(image, (518, 518))).mean() < 0.01


def test_importing_sets_no_global_of_opencv() -> None:
    source = Path(module.__file__).read_text().split('"""', 2)[2]
    assert "setNumThreads" not in source
    assert "set_num_threads" not in source


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_official_rule() -> None:
    images = [noise(375, 500), noise(3000, 4000, seed=1)]
    batch = make_batch(images, (518, 686))
    result = preprocess(PixelBatch(batch.pixels.cuda(), batch.shapes, batch.size))
    assert result.is_cuda
    for planes, image in zip(result.cpu().numpy(), images, strict=True):
        assert np.abs(planes - official(image, batch.size)).max() < 1e-3
