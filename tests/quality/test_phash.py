"""Perceptual hashes of look-alikes are near each other; those of different images are about 32 bits apart."""

import io
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from da2ray.benchmark.photos import packaged_photos
from da2ray.quality.image_scores import grey
from da2ray.quality.phash import perceptual_hash
from da2ray.teachers.base import PixelBatch
from da2ray.teachers.depth_anything.preprocess import preprocess
from da2ray.teachers.depth_anything.size import OfficialSize
from tests.photos import jpeg

PHOTOS = {
    name: Image.open(io.BytesIO(data)).convert("RGB")
    for name, data in packaged_photos().items()
    if name.startswith(("astronaut", "chelsea", "coffee", "rocket", "camera", "china", "flower", "motorcycle_left"))
}


def hash_of(image: Image.Image) -> int:
    """The hash of an image, made as the job makes it."""
    pixels = np.asarray(image)
    batch = PixelBatch(torch.from_numpy(pixels.copy()).flatten(), [pixels.shape[:2]], OfficialSize()(*pixels.shape[:2]))
    return perceptual_hash(grey(preprocess(batch))).numpy().view(np.uint64)[0].item()


def apart(one: int, other: int) -> int:
    return (one ^ other).bit_count()


CHANGES = {
    "JPEG 50": lambda image: Image.open(io.BytesIO(jpeg(image, quality=50))).convert("RGB"),
    "half size": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "all three": lambda image: CHANGES["JPEG 50"](CHANGES["half size"](CHANGES["brighter"](image))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_same_photograph_stays_within_a_few_bits(change: str) -> None:
    assert len(PHOTOS) >= 6
    bits = [apart(hash_of(image), hash_of(CHANGES[change](image))) for image in PHOTOS.values()]
    assert max(bits) <= 6, bits


def test_different_photographs_differ_in_half_of_the_bits() -> None:
    hashes = [hash_of(image) for image in PHOTOS.values()]
    bits = [apart(*pair) for pair in combinations(hashes, 2)]
    assert min(bits) > 16, bits
    assert np.mean(bits) == pytest.approx(32, abs=3)
    # A mirrored image is a different image.
    assert all(
        apart(hash_of(image), hash_of(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))) > 16
        for image in PHOTOS.values()
    )


def test_bits_are_the_coefficients_of_the_definition() -> None:
    random = np.random.default_rng(0)
    levels = random.uniform(0, 255, (64, 96)).astype(np.float32)
    small = levels.reshape(32, 2, 32, 3).mean((1, 3)).astype(np.float64)
    at = np.arange(32)
    cosines = np.cos(np.pi / 32 * (at[None] + 0.5) * at[:, None]) * np.sqrt(2 / 32)
    cosines[0] /= np.sqrt(2)
    low = cosines @ small @ cosines.T
    chosen = low[:8, :8].flatten()
    chosen[0] = low[0, 8]
    expected = sum(1 << bit for bit in range(64) if chosen[bit] > np.sort(chosen)[31])
    found = perceptual_hash(torch.from_numpy(levels)[None]).numpy().view(np.uint64)[0]
    assert found == expected
    assert int(found).bit_count() == 32


def test_an_image_of_one_colour_has_the_hash_0() -> None:
    assert perceptual_hash(torch.full((2, 256, 300), 93.7)).tolist() == [0, 0]


def test_the_hash_does_not_depend_on_the_rest_of_the_batch() -> None:
    levels = 255 * torch.rand(6, 256, 339, generator=torch.Generator().manual_seed(0))
    together = perceptual_hash(levels)
    assert [perceptual_hash(each[None]).item() for each in levels] == together.tolist()
    assert len(set(together.tolist())) == 6
