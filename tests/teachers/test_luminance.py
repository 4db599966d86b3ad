"""`luminance` is the mean of the preprocessed channels and needs nothing else."""

import pytest
import torch

from da2ray.errors import UserError
from da2ray.teachers import luminance
from da2ray.teachers.base import LoadOptions, PixelBatch
from da2ray.teachers.depth_anything.preprocess import preprocess


def test_depth_is_the_mean_of_the_preprocessed_channels() -> None:
    pixels = torch.randint(0, 256, (2 * 30 * 40 * 3,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = PixelBatch(pixels, [(30, 40), (30, 40)], (28, 42))
    prediction = luminance.load(LoadOptions()).predict(batch)
    assert prediction.depth.dtype == torch.float32
    # Fixed: this process, so its threads, libraries and instruction set.
    assert torch.equal(prediction.depth, preprocess(batch).mean(1))


def test_identity_is_stable_and_weights_are_refused() -> None:
    assert luminance.identify(LoadOptions()) == "ad5d8980b0e12d244a816c39fb0ff1f0bca60999cfe8f11e5c3a360ba9ae7fb8"
    for call in (luminance.load, luminance.identify):
        with pytest.raises(UserError, match="luminance takes no weights"):
            call(LoadOptions(weights="some.pth"))


def test_missing_device_is_refused() -> None:
    with pytest.raises(UserError, match="--device cuda:7"):
        luminance.load(LoadOptions(device="cuda:7"))
