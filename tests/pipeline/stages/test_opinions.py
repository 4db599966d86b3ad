"""Second opinions become scores and, if the teacher has no confidence of its own, the mask."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from da2ray.labels.schema import IMAGE_SCORES, NUMBERS
from da2ray.pipeline.stages.batches import HostBatch, LabelledBatch
from da2ray.pipeline.stages.device import Device
from da2ray.pipeline.stages.opinions import Checker, Opinions, smaller
from da2ray.quality.consistency import confidence, quantise_confidence
from da2ray.teachers.base import Kind, LoadOptions, PixelBatch, Prediction
from da2ray.teachers.depth_anything.preprocess import preprocess
from da2ray.teachers.registry import resolve

SIZE = (56, 84)
SMALL = (42, 56)


class Plain:
    """A teacher whose depth is the resized red channel; a mirrored image gives mirrored depth. `seen` holds its inputs."""

    device = torch.device("cpu")

    def __init__(self, *, sure: bool = False, focal: float | None = None) -> None:
        self.sure, self.focal = sure, focal
        self.seen: list[PixelBatch] = []

    def predict(self, batch: PixelBatch) -> Prediction:
        self.seen.append(batch)
        images = [image[..., 0].float()[None, None] for image in batch.images()]
        resize = torch.nn.functional.interpolate
        depth = 1 + torch.cat([resize(image, batch.size, mode="bilinear", antialias=True)[0] for image in images])
        sureness = torch.full_like(depth, 0.5) if self.sure else None
        focals = None if self.focal is None else torch.full((len(batch),), self.focal)
        return Prediction(self.say(depth, batch), sureness, focals)

    def say(self, depth: torch.Tensor, batch: PixelBatch) -> torch.Tensor:  # noqa: ARG002 - what other teachers look at
        return depth


class Leaning(Plain):
    """A teacher that makes the right side nearer, whatever the image."""

    def say(self, depth: torch.Tensor, batch: PixelBatch) -> torch.Tensor:
        return depth + 100 * torch.linspace(0, 1, batch.size[1])


class Shortsighted(Plain):
    """A teacher that gives other depth for small images."""

    def say(self, depth: torch.Tensor, batch: PixelBatch) -> torch.Tensor:
        return depth.transpose(1, 2).reshape(depth.shape) if batch.size == SMALL else depth


class Lost(Plain):
    """A teacher that gives NaN at the first pixel of a mirrored `picture`, which it knows by that pixel."""

    def say(self, depth: torch.Tensor, batch: PixelBatch) -> torch.Tensor:
        for place, image in enumerate(batch.images()):
            if image[0, 0, 2] == 77 and image[0, 0, 0] == 200:
                depth[place, 0, 0] = torch.nan
        return depth


def picture(number: int, height: int = 60, width: int = 90) -> np.ndarray:
    """uint8 (height, width, 3): a ramp and a step that differ for each `number`; red is 200 and blue 77 at the upper right."""
    y, x = np.mgrid[:height, :width]
    red = 20 + y + 60 * (x > 10 + 8 * number) + number
    red[0, -1] = 200 if number == 1 else 100
    return np.stack([red, np.full_like(red, 30), np.full_like(red, 77)], 2).astype(np.uint8)


PICTURES = [picture(0), picture(1, 70, 100), picture(4)]


def host_batch(images: Sequence[np.ndarray]) -> HostBatch:
    flat = np.concatenate([image.reshape(-1) for image in images])
    return HostBatch(flat, [image.shape[:2] for image in images], SIZE)


def label(images: Sequence[np.ndarray], teacher: Plain, kind: Kind = Kind.DISPARITY, **asked: object) -> LabelledBatch:
    device = Device(teacher, bits=16, kind=kind, scaled=False, opinions=Opinions(**asked))
    labelled = device.submit(host_batch(images)).result(30)
    device.close()
    return labelled


def number(labelled: LabelledBatch, name: str) -> np.ndarray:
    return labelled.numbers[:, NUMBERS.get_field_index(name)]


def test_a_teacher_that_treats_left_and_right_alike_agrees_with_itself() -> None:
    labelled = label(PICTURES, Plain(), flip=True)
    np.testing.assert_allclose(number(labelled, "flip_mean"), 0, atol=1e-5)
    np.testing.assert_allclose(number(labelled, "flip_p90"), 0, atol=1e-5)
    assert labelled.mask_sources == ["flip"] * 3
    assert (labelled.masks == 3).all()
    assert number(labelled, "confidence_mean").tolist() == [1, 1, 1]
    assert np.isnan(number(labelled, "scale_mean")).all()


def test_one_that_does_not_is_found_out() -> None:
    labelled = label(PICTURES, Leaning(), flip=True)
    assert (number(labelled, "flip_mean") > 0.2).all()
    assert (number(labelled, "flip_p90") > number(labelled, "flip_mean")).all()
    assert (labelled.masks < 3).mean() > 0.5


def test_the_mirrored_images_are_the_images_mirrored() -> None:
    teacher = Plain()
    label(PICTURES, teacher, flip=True)
    first, second = teacher.seen
    assert (first.size, first.shapes) == (second.size, second.shapes)
    for image, mirrored in zip(first.images(), second.images(), strict=True):
        np.testing.assert_array_equal(mirrored, image.numpy()[:, ::-1])


def test_at_a_smaller_size_a_steady_teacher_agrees_and_another_does_not() -> None:
    teacher = Plain()
    steady = label(PICTURES, teacher, scale_step=14)
    assert [seen.size for seen in teacher.seen] == [SIZE, SMALL]
    assert (number(steady, "scale_mean") < 0.1).all()
    assert steady.masks.shape == (3, *SIZE)
    # The sizes differ at the step, and within a window of the confidence around it.
    assert (steady.masks[:, 20:30, :4] >= 2).all()
    other = label(PICTURES, Shortsighted(), scale_step=14)
    assert (number(other, "scale_mean") > 0.3).all()
    assert (number(other, "scale_p90") > number(other, "scale_mean")).all()
    assert other.mask_sources == ["scale"] * 3


@pytest.mark.parametrize(
    ("size", "step", "expected"),
    [((518, 686), 14, (350, 462)), ((14, 28), 14, (14, 14)), ((616, 1064), 28, (420, 700)), ((100, 100), 1, (67, 67))],
)
def test_the_smaller_size_is_two_thirds_in_whole_steps(
    size: tuple[int, int], step: int, expected: tuple[int, int]
) -> None:
    assert smaller(size, step) == expected


def test_the_mask_is_of_the_largest_error_of_all_opinions() -> None:
    parts = {
        "flip": {"flip": True},
        "scale": {"scale_step": 14},
        "checker": {"checker": Checker(Plain(), Kind.DISPARITY)},
    }

    class Both(Leaning, Shortsighted):
        def say(self, depth: torch.Tensor, batch: PixelBatch) -> torch.Tensor:
            return Leaning.say(self, Shortsighted.say(self, depth, batch), batch)

    single = {name: label(PICTURES, Both(), **asked) for name, asked in parts.items()}
    both = label(PICTURES, Both(), **{key: value for asked in parts.values() for key, value in asked.items()})
    assert both.mask_sources == ["flip+scale+checker"] * 3
    # Confidence falls with the error and levels with the confidence.
    least = np.minimum.reduce([each.masks for each in single.values()])
    # Fixed: this process and the batch, so each opinion's error is equal bit for bit.
    np.testing.assert_array_equal(both.masks, least)
    assert all((each.masks != least).any() for each in single.values())
    for name, each in single.items():
        np.testing.assert_allclose(number(both, f"{name}_mean"), number(each, f"{name}_mean"), rtol=1e-5)
    np.testing.assert_allclose(number(both, "confidence_mean"), both.masks.mean((1, 2)) / 3, rtol=1e-5)


def test_an_opinion_that_is_none_of_an_image_is_left_out_there() -> None:
    teacher, checker = Lost(), Checker(Leaning(), Kind.DISPARITY)
    labelled = label(PICTURES, teacher, flip=True, checker=checker)
    assert labelled.errors == [None] * 3
    assert labelled.mask_sources == ["flip+checker", "checker", "flip+checker"]
    assert np.isnan(number(labelled, "flip_mean")).tolist() == [False, True, False]
    np.testing.assert_array_equal(labelled.masks[1], label(PICTURES, Plain(), checker=checker).masks[1])
    alone = label(PICTURES, Lost(), flip=True)
    assert alone.mask_sources == ["flip", None, "flip"]
    assert np.isnan(number(alone, "confidence_mean")).tolist() == [False, True, False]


def test_the_teachers_own_confidence_is_the_mask_and_opinions_are_scores() -> None:
    labelled = label(PICTURES, Leaning(sure=True), flip=True)
    assert labelled.mask_sources == ["teacher"] * 3
    np.testing.assert_array_equal(labelled.masks, 2)
    assert (number(labelled, "flip_mean") > 0.2).all()
    np.testing.assert_allclose(number(labelled, "confidence_mean"), 2 / 3, rtol=1e-6)


def test_metres_are_compared_as_disparity() -> None:
    class Metres(Plain):
        def say(self, depth: torch.Tensor, batch: PixelBatch) -> torch.Tensor:
            return 1000 / Leaning.say(self, depth, batch)

    found = label(PICTURES, Metres(), Kind.METRIC, flip=True)
    np.testing.assert_allclose(
        number(found, "flip_mean"), number(label(PICTURES, Leaning(), flip=True), "flip_mean"), rtol=1e-3
    )


def test_focal_lengths_go_with_every_opinion_and_the_labels_own_is_kept() -> None:
    teacher = Plain(focal=100)
    device = Device(teacher, bits=12, kind=Kind.DISPARITY, scaled=False, opinions=Opinions(flip=True, scale_step=14))
    labelled = device.submit(replace(host_batch(PICTURES), focals=[1.0, None, 3.0])).result(30)
    device.close()
    assert [seen.focals for seen in teacher.seen] == [[1.0, None, 3.0]] * 3
    assert number(labelled, "focal").tolist() == [100] * 3


@pytest.mark.parametrize("name", ["luminance", "random-tiny"])
def test_neighbours_change_no_score_no_mask_and_no_hash(name: str) -> None:
    spec = resolve(name)
    teacher = spec.load(LoadOptions())
    asked = {"flip": True, "scale_step": spec.size_step, "checker": Checker(Leaning(), Kind.DISPARITY)}
    together = label(PICTURES, teacher, **asked)
    assert not np.isnan(number(together, "scale_p90")).any()
    for place, image in enumerate(PICTURES):
        alone = label([image], teacher, **asked)
        np.testing.assert_allclose(together.numbers[place], alone.numbers[0], rtol=1e-3, atol=1e-4)
        assert (together.masks[place] == alone.masks[0]).mean() > 0.999
        assert together.phashes[place] == alone.phashes[0]
        assert together.mask_sources[place] == alone.mask_sources[0] == "flip+scale+checker"


def test_where_memory_runs_out_halves_say_the_same() -> None:
    class Small(Leaning):
        def predict(self, batch: PixelBatch) -> Prediction:
            prediction = super().predict(batch)
            if len(batch) > 1 and len(self.seen) > 1:  # not at first, but at the first opinion
                raise torch.OutOfMemoryError("out of memory")
            return prediction

    teacher = Small()
    halved, whole = (label(PICTURES, each, flip=True, scale_step=14) for each in (teacher, Leaning()))
    assert max(len(seen) for seen in teacher.seen[2:]) <= 2
    assert halved.errors == [None] * 3
    assert halved.mask_sources == whole.mask_sources
    # Other batch sizes may round differently, which may move a pixel at the border of two levels, or a bit at the median.
    assert (halved.masks != whole.masks).mean() < 1e-3
    assert np.bitwise_count(halved.phashes ^ whole.phashes).max() <= 2
    np.testing.assert_allclose(halved.numbers, whole.numbers, rtol=1e-4, atol=1e-5)


def test_images_are_scored_alike_whether_or_not_the_teacher_hands_them_over() -> None:
    class Generous(Plain):
        def predict(self, batch: PixelBatch) -> Prediction:
            return replace(super().predict(batch), images=preprocess(batch))

    given, made = label(PICTURES, Generous()), label(PICTURES, Plain())
    for name in IMAGE_SCORES.names:
        np.testing.assert_array_equal(number(given, name), number(made, name))
    np.testing.assert_array_equal(given.phashes, made.phashes)
    assert len(set(given.phashes.tolist())) == 3


def test_far_pixels_come_back_where_they_were() -> None:
    class Sky(Plain):
        def say(self, depth: torch.Tensor, batch: PixelBatch) -> torch.Tensor:
            depth[0, :5, 3:] = 0
            if len(batch) > 1:
                depth[1, :, 0] = torch.nan
                depth[1, 10] = 0
            return depth

    labelled = label(PICTURES, Sky())
    far = np.unpackbits(labelled.fars, axis=1, bitorder="little").reshape(3, *SIZE)
    assert far[0, :5, 3:].all()
    assert far.sum() == 5 * (SIZE[1] - 3)
    np.testing.assert_allclose(number(labelled, "far_share")[[0, 2]], [5 * (SIZE[1] - 3) / (SIZE[0] * SIZE[1]), 0])
    assert number(labelled, "nonfinite_share")[1] == pytest.approx((SIZE[0] - 1) / (SIZE[0] * SIZE[1]))
    assert labelled.errors[1][0] == "non_finite"
    assert label(PICTURES, Plain()).fars is None
    assert label(PICTURES, Sky(), Kind.DEPTH).fars is None


def test_levels_of_the_largest_error_are_those_of_its_confidence() -> None:
    errors = torch.tensor([[0.01, 0.5], [0.2, 0.03]])
    levels = quantise_confidence(confidence(errors), 2)
    torch.testing.assert_close(quantise_confidence(confidence(errors.amax(0)), 2), levels.amin(0))
