"""Inference turns a confidence into a mask. A second teacher adds scores, a mask and metres. Images do not affect each other."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from da2ray.labels.schema import DEPTH_SCORES, IMAGE_SCORES, NUMBERS
from da2ray.pipeline.stages.batches import HostBatch, LabelledBatch
from da2ray.pipeline.stages.device import Device
from da2ray.pipeline.stages.opinions import Checker, Opinions
from da2ray.quality.consistency import compare, confidence, local_mean, quantise_confidence
from da2ray.teachers.base import Kind, PixelBatch, Prediction

SIZE = (28, 42)


class Stripes:
    """A teacher whose depth is the resized pixels; 254 in the first pixel gives NaN. `seen` holds its inputs."""

    device = torch.device("cpu")

    def __init__(
        self, *, scale: float = 1, shift: float = 0, power: float = 1, sure: bool = False, focal: float | None = None
    ) -> None:
        self.scale, self.shift, self.power, self.sure, self.focal = scale, shift, power, sure, focal
        self.seen: list[PixelBatch] = []

    def predict(self, batch: PixelBatch) -> Prediction:
        self.seen.append(batch)
        images = [image[..., 0].float()[None, None] for image in batch.images()]
        resized = [torch.nn.functional.interpolate(image, batch.size, mode="bilinear")[0, 0] for image in images]
        depth = self.scale * (1 + torch.stack(resized)) ** self.power + self.shift
        for place, image in enumerate(images):
            if image[0, 0, 0, 0] == 254:
                depth[place, 3, 4] = torch.nan
        sureness = torch.linspace(0, 1, batch.size[1]).expand_as(depth) if self.sure else None
        focals = None if self.focal is None else torch.full((len(batch),), self.focal)
        return Prediction(depth, sureness, focals)


def pixels(number: int, height: int = 30, width: int = 40) -> np.ndarray:
    """uint8 (height, width, 3): a ramp with a step, no two numbers alike."""
    y, x = np.mgrid[:height, :width]
    values = 20 + 2 * y + 40 * (x > 5 + number) + number
    return np.repeat(values[..., None], 3, axis=2).astype(np.uint8)


def host_batch(images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]] | None = None) -> HostBatch:
    flat = np.concatenate([image.reshape(-1) for image in images])
    return HostBatch(flat, [image.shape[:2] for image in images], SIZE, checker_sizes=sizes)


def label(
    images: Sequence[np.ndarray],
    teacher: Stripes,
    checker: Checker | None = None,
    sizes: Sequence[tuple[int, int]] | None = None,
    mask_bits: int = 2,
    kind: Kind = Kind.DISPARITY,
) -> LabelledBatch:
    opinions = Opinions(checker=checker)
    device = Device(teacher, bits=16, kind=kind, scaled=False, mask_bits=mask_bits, opinions=opinions)
    labelled = device.submit(host_batch(images, sizes)).result(30)
    device.close()
    return labelled


def number(labelled: LabelledBatch, name: str) -> np.ndarray:
    return labelled.numbers[:, NUMBERS.get_field_index(name)]


IMAGES = [pixels(0), pixels(4), pixels(9)]


@pytest.mark.parametrize("bits", [1, 2, 8])
def test_a_teachers_confidence_is_kept_as_levels(bits: int) -> None:
    labelled = label(IMAGES, Stripes(sure=True), mask_bits=bits)
    expected = np.rint(np.linspace(0, 1, SIZE[1]) * (2**bits - 1))
    assert labelled.masks.dtype == np.uint8
    np.testing.assert_array_equal(labelled.masks, np.broadcast_to(expected, (3, *SIZE)))
    assert labelled.mask_sources == ["teacher"] * 3
    assert np.isnan(number(labelled, "checker_mean")).all()


def test_no_confidence_no_mask_and_nothing_measured_that_was_not_asked_for() -> None:
    labelled = label(IMAGES, Stripes())
    assert (labelled.masks, labelled.mask_sources) == (None, None)
    measured = {name for name in NUMBERS.names if not np.isnan(number(labelled, name)).all()}
    assert measured == {*IMAGE_SCORES.names, *DEPTH_SCORES.names}


def checker(teacher: Stripes, kind: Kind = Kind.DISPARITY) -> Checker:
    return Checker(teacher, kind)


def test_scores_and_mask_are_those_of_the_two_teachers_maps() -> None:
    teacher, other = Stripes(), Stripes(power=1.5)
    labelled = label(IMAGES, teacher, checker(other))
    batch = PixelBatch(torch.from_numpy(host_batch(IMAGES).pixels), [image.shape[:2] for image in IMAGES], SIZE)
    expected = compare(teacher.predict(batch).depth, other.predict(batch).depth)
    assert expected.mean.min() > 0.01
    np.testing.assert_allclose(number(labelled, "checker_mean"), expected.mean, rtol=1e-5)
    np.testing.assert_allclose(number(labelled, "checker_p90"), expected.p90, rtol=1e-5)
    # Fixed: this process and the batch.
    np.testing.assert_array_equal(labelled.masks, quantise_confidence(confidence(local_mean(expected.error)), 2))
    assert len(np.unique(labelled.masks)) > 1
    assert labelled.mask_sources == ["checker"] * 3
    without = label(IMAGES, Stripes())
    np.testing.assert_array_equal(labelled.depths, without.depths)


def test_the_teachers_own_confidence_comes_before_the_checkers() -> None:
    labelled = label(IMAGES, Stripes(sure=True), checker(Stripes(power=1.5, sure=True)))
    assert labelled.mask_sources == ["teacher"] * 3
    np.testing.assert_array_equal(labelled.masks, label(IMAGES, Stripes(sure=True)).masks)
    assert (number(labelled, "checker_mean") > 0.01).all()


@pytest.mark.parametrize("kind", [Kind.DEPTH, Kind.METRIC])
def test_depth_and_metres_are_compared_as_disparity(kind: Kind) -> None:
    labelled = label(IMAGES, Stripes(), checker(Stripes(scale=50, power=-1), kind))
    assert (number(labelled, "checker_mean") < 0.01).all()
    assert (labelled.masks == 3).mean() > 0.99


def test_each_image_goes_through_the_checkers_network_at_its_own_size() -> None:
    other = Stripes(power=1.5)
    sizes = [(56, 84), SIZE, (56, 84)]
    together = label(IMAGES, Stripes(), checker(other), sizes)
    assert [(len(batch), batch.size) for batch in other.seen] == [(2, (56, 84)), (1, SIZE)]
    for place, image in enumerate(IMAGES):
        alone = label([image], Stripes(), checker(Stripes(power=1.5)), [sizes[place]])
        np.testing.assert_allclose(together.numbers[place], alone.numbers[0], rtol=1e-5)
        # Other batch sizes may round differently, which may move a pixel at the border of two levels.
        assert (together.masks[place] != alone.masks[0]).mean() < 1e-3
    other_size = number(label(IMAGES, Stripes(), checker(Stripes(power=1.5))), "checker_mean")
    assert number(together, "checker_mean")[1] == pytest.approx(other_size[1])
    assert number(together, "checker_mean")[0] != pytest.approx(other_size[0], rel=1e-4)


class Blind(Stripes):
    """A checker that fails at the image whose first pixel is 24."""

    def predict(self, batch: PixelBatch) -> Prediction:
        prediction = super().predict(batch)
        for place, image in enumerate(batch.images()):
            if image[0, 0, 0] == 24:
                prediction.depth[place, 0, 0] = torch.inf
        return prediction


def test_a_checker_that_knows_nothing_of_an_image_costs_its_scores_not_its_label() -> None:
    labelled = label(IMAGES, Stripes(), checker(Blind(power=1.5)))
    assert labelled.errors == [None] * 3
    assert labelled.mask_sources == ["checker", None, "checker"]
    assert np.isnan(number(labelled, "checker_mean")).tolist() == [False, True, False]
    assert np.isnan(number(labelled, "checker_p90")).tolist() == [False, True, False]
    np.testing.assert_array_equal(labelled.depths, label(IMAGES, Stripes()).depths)


def test_an_image_that_failed_has_no_mask() -> None:
    bad = pixels(2)
    bad[0, 0] = 254
    labelled = label([IMAGES[0], bad], Stripes(sure=True))
    assert [error and error[0] for error in labelled.errors] == [None, "non_finite"]
    assert labelled.mask_sources == ["teacher", None]


@pytest.mark.parametrize("kind", [Kind.DISPARITY, Kind.DEPTH])
def test_a_metric_checker_makes_metres_of_relative_labels(kind: Kind) -> None:
    power = -1 if kind is Kind.DISPARITY else 1
    metric = checker(Stripes(scale=7, power=power), Kind.METRIC)
    labelled = label(IMAGES, Stripes(scale=3, shift=0.5), metric, kind=kind)
    scale, shift = number(labelled, "metric_scale"), number(labelled, "metric_shift")
    line = scale[:, None, None] * depth_of(labelled) + shift[:, None, None]
    metres = 1 / line if kind is Kind.DISPARITY else line
    expected = depth_of(label(IMAGES, Stripes(scale=7, power=power)))
    np.testing.assert_allclose(metres, expected, rtol=0.02)
    assert (number(labelled, "metric_residual") < 0.02).all()


def depth_of(labelled: LabelledBatch) -> np.ndarray:
    return labelled.offsets[:, None, None] + labelled.scales[:, None, None] * labelled.depths.astype(np.float32)


@pytest.mark.parametrize(("kind", "of"), [(Kind.DISPARITY, Kind.DISPARITY), (Kind.METRIC, Kind.METRIC)])
def test_there_is_no_fit_where_it_would_mean_nothing(kind: Kind, of: Kind) -> None:
    labelled = label(IMAGES, Stripes(), checker(Stripes(power=1.5), kind), kind=of)
    for name in ("metric_scale", "metric_shift", "metric_residual"):
        assert np.isnan(number(labelled, name)).all()


def test_focal_lengths_are_passed_on_and_the_teachers_own_come_first() -> None:
    teacher, other = Stripes(focal=100), Stripes(power=1.5, focal=200)
    batch = replace(host_batch(IMAGES, [(56, 84), SIZE, (56, 84)]), focals=[1.0, None, 3.0])
    device = Device(teacher, bits=12, kind=Kind.DISPARITY, scaled=False, opinions=Opinions(checker=checker(other)))
    assert number(device.submit(batch).result(30), "focal").tolist() == [100] * 3
    device.close()
    assert teacher.seen[0].focals == [1.0, None, 3.0]
    assert [seen.focals for seen in other.seen] == [[1.0, 3.0], [None]]
    assert number(label(IMAGES, Stripes(), checker(Stripes(focal=200))), "focal").tolist() == [200] * 3


def test_images_that_a_checker_cannot_stand_fail_alone() -> None:
    class Picky(Stripes):
        def predict(self, batch: PixelBatch) -> Prediction:
            if any(image[0, 0, 0] == 24 for image in batch.images()):
                raise ValueError("not this one")
            return super().predict(batch)

    labelled = label(IMAGES, Stripes(), checker(Picky(power=1.5)))
    assert [error and error[0] for error in labelled.errors] == [None, "teacher_error", None]
    assert labelled.mask_sources == ["checker", None, "checker"]
    assert labelled.masks.shape == (3, *SIZE)
