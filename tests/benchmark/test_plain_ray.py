"""The variants of the plain Ray Data script differ in the size of the depth and in where images are preprocessed."""

import numpy as np
import pytest

from da2ray.benchmark.plain_ray import PlainLabeler
from da2ray.teachers.base import LoadOptions


@pytest.mark.parametrize(
    ("way", "size"), [("infer-image", (60, 80)), ("network-size", (518, 686)), ("shared", (518, 686))]
)
def test_each_image_of_a_batch_gets_depth_of_the_size_of_its_way(way: str, size: tuple[int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 60, 80, 3), dtype=np.uint8)
    labels = PlainLabeler("luminance", LoadOptions(None, "cpu", "fp32"), way)({"path": ["a", "b"], "image": images})
    assert labels["path"] == ["a", "b"]
    assert [depth.shape for depth in labels["depth"]] == [size, size]
    assert all(np.isfinite(depth).all() for depth in labels["depth"])
