"""Each image score is right on a picture whose score is known, and does not depend on other images."""

import numpy as np
import pytest
import torch

from da2ray.labels.schema import IMAGE_SCORES
from da2ray.quality.image_scores import grey, image_scores, scored_size
from da2ray.teachers.depth_anything.preprocess import MEAN, STD

ROWS, COLUMNS = 256, 320
"""Images are scored at this short side, so that no resize changes the known scores."""


def picture(values: np.ndarray) -> torch.Tensor:
    """Convert levels 0..255, (rows, columns) or (rows, columns, 3), to float32 (1, 3, rows, columns) as the network sees it."""
    rgb = np.repeat(values[..., None], 3, axis=2) if values.ndim == 2 else values
    return torch.from_numpy((rgb / 255 - MEAN) / STD).float().permute(2, 0, 1)[None]


def scores(images: torch.Tensor) -> dict[str, list[float]]:
    return {name: value.tolist() for name, value in image_scores(images, grey(images)).items()}


def score(values: np.ndarray, name: str) -> float:
    return scores(picture(values))[name][0]


def plain(level: float) -> np.ndarray:
    return np.full((ROWS, COLUMNS), level)


def test_the_scores_are_those_of_the_schema_and_finite() -> None:
    found = scores(torch.randn(2, 3, 28, 42))
    assert set(found) == set(IMAGE_SCORES.names)
    assert np.isfinite(list(found.values())).all()


def test_brightness_is_the_mean_grey_level_with_the_weights_of_the_eye() -> None:
    assert score(plain(51), "brightness") == pytest.approx(0.2, abs=1e-5)
    for channel, weight in enumerate((0.299, 0.587, 0.114)):
        colour = np.zeros((ROWS, COLUMNS, 3))
        colour[..., channel] = 255
        assert score(colour, "brightness") == pytest.approx(weight, abs=1e-5)


def test_clipped_pixels_are_counted_at_their_own_end() -> None:
    values = plain(128)
    values[:64] = 0
    values[64:96] = 5
    values[96:112] = 6
    values[-32:] = 252
    found = scores(picture(values))
    assert found["dark_share"][0] == pytest.approx(96 / 256)
    assert found["bright_share"][0] == pytest.approx(32 / 256)


def test_overshoot_of_the_resize_is_clipped() -> None:
    found = scores(picture(np.where(np.arange(COLUMNS) < 160, -40.0, 300.0)[None].repeat(ROWS, 0)))
    assert found["brightness"][0] == pytest.approx(0.5)


def test_blur_is_the_variance_of_the_laplacian() -> None:
    values = plain(0)
    values[100, 200] = 100
    laplacian = np.zeros((ROWS - 2, COLUMNS - 2))
    laplacian[99, 199] = -400
    for row, column in ((98, 199), (100, 199), (99, 198), (99, 200)):
        laplacian[row, column] = 100
    assert score(values, "blur") == pytest.approx(laplacian.var(), rel=1e-4)


def test_a_picture_out_of_focus_is_more_blurred() -> None:
    noise = np.random.default_rng(0).uniform(0, 255, (ROWS, COLUMNS))
    soft = sum(np.roll(noise, (y, x), (0, 1)) for y in range(3) for x in range(3)) / 9
    assert score(soft, "blur") < score(noise, "blur") / 10


def test_entropy_is_in_bits_of_grey_levels() -> None:
    assert score(plain(77), "image_entropy") == pytest.approx(0, abs=1e-6)
    halves = plain(10)
    halves[:128] = 200
    assert score(halves, "image_entropy") == pytest.approx(1, abs=1e-5)
    assert score(np.arange(256.0)[:, None].repeat(COLUMNS, 1), "image_entropy") == pytest.approx(8, abs=1e-5)


def test_colourfulness_is_that_of_hasler_and_suesstrunk() -> None:
    assert score(plain(200), "colourfulness") == pytest.approx(0, abs=1e-3)
    halves = np.zeros((ROWS, COLUMNS, 3))
    halves[:128, :, 0] = halves[128:, :, 1] = 255  # red over green: rg is 255 and -255, yb 127.5
    assert score(halves, "colourfulness") == pytest.approx(255 + 0.3 * 127.5, rel=1e-3)
    blue = np.zeros((ROWS, COLUMNS, 3))
    blue[..., 2] = 255
    assert score(blue, "colourfulness") == pytest.approx(0.3 * 255, rel=1e-3)


def test_scores_do_not_depend_on_the_rest_of_the_batch() -> None:
    random = torch.Generator().manual_seed(0)
    images = torch.randn(5, 3, 70, 98, generator=random) * torch.linspace(0.1, 1, 5)[:, None, None, None]
    images[3] = torch.nan
    together = scores(images)
    for name, values in together.items():
        alone = [scores(images[place : place + 1])[name][0] for place in range(5)]
        np.testing.assert_allclose(values, alone, rtol=1e-5, err_msg=name)
        assert np.isfinite(np.delete(values, 3)).all()


def test_the_size_of_the_network_hardly_matters() -> None:
    rows, columns = np.mgrid[:1036, :1372] / 1036
    scene = 128 + 60 * np.sin(20 * rows) + 50 * np.sign(np.sin(9 * columns + 4 * rows))
    large = picture(scene)
    small = torch.nn.functional.interpolate(large, (518, 686), mode="bilinear", antialias=True)
    found = [scores(images) for images in (large, small)]
    for name in set(IMAGE_SCORES.names) - {"blur"}:
        assert found[0][name][0] == pytest.approx(found[1][name][0], rel=0.03, abs=0.01), name
    assert found[0]["blur"][0] == pytest.approx(found[1]["blur"][0], rel=0.3)


@pytest.mark.parametrize(
    ("size", "expected"), [((518, 686), (256, 339)), ((686, 518), (339, 256)), ((252, 252), (256, 256))]
)
def test_the_aspect_is_kept(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert scored_size(size) == expected
    assert grey(torch.zeros(1, 3, *size)).shape == (1, *expected)
