"""The device thread: labels do not depend on company, and one image's trouble stays its own."""

import numpy as np
import pytest
import torch

from da2ray.labels.schema import SCORES
from da2ray.pipeline.batches import HostBatch
from da2ray.pipeline.device import Device
from da2ray.teachers.base import PixelBatch, Prediction

SIZE = (14, 28)


class Ramp:
    """Depth = the image's first value + column; 255 raises, 254 gives NaN."""

    device = torch.device("cpu")

    def predict(self, batch: PixelBatch) -> Prediction:
        firsts = torch.stack([image[0, 0, 0] for image in batch.images()]).float()
        if (firsts == 255).any():
            raise ValueError("an image this teacher cannot stand")
        depth = firsts[:, None, None] + torch.arange(SIZE[1]).float().expand(len(batch), *SIZE)
        return Prediction(torch.where(firsts[:, None, None] == 254, torch.nan, depth))


def host_batch(*firsts: int) -> HostBatch:
    shapes = [(3 + index, 5) for index in range(len(firsts))]
    images = [
        np.full(height * width * 3, first, np.uint8) for first, (height, width) in zip(firsts, shapes, strict=True)
    ]
    return HostBatch(np.concatenate(images), shapes, SIZE)


@pytest.fixture
def device():
    device = Device(Ramp(), bits=12, scaled=False)
    yield device
    device.close()


def depth(labelled, index: int) -> np.ndarray:
    return labelled.offsets[index] + labelled.scales[index] * labelled.depths[index].astype(np.float32)


def test_labels_of_many_micro_batches_come_back_to_their_own_images(device: Device) -> None:
    futures = {first: device.submit(host_batch(first, first + 1)) for first in range(0, 200, 2)}
    for first, future in futures.items():
        labelled = future.result(30)
        assert labelled.errors == [None, None]
        for index in (0, 1):
            expected = np.broadcast_to(first + index + np.arange(SIZE[1], dtype=np.float32), SIZE)
            np.testing.assert_allclose(depth(labelled, index), expected, atol=labelled.scales[index] / 2 + 1e-4)
    assert device.images == 200
    assert device.busy_seconds > 0


def test_an_image_that_the_teacher_cannot_stand_fails_alone(device: Device) -> None:
    labelled = device.submit(host_batch(10, 255, 30)).result(30)
    assert [error and error[0] for error in labelled.errors] == [None, "teacher_error", None]
    assert "cannot stand" in labelled.errors[1][1]
    alone = device.submit(host_batch(10)).result(30)
    np.testing.assert_array_equal(labelled.depths[0], alone.depths[0])
    assert labelled.depths.shape == (3, *SIZE)


def test_a_map_that_is_not_finite_fails_alone(device: Device) -> None:
    labelled = device.submit(host_batch(254, 20)).result(30)
    assert [error and error[0] for error in labelled.errors] == ["non_finite", None]
    assert np.isfinite(labelled.scales).all()
    np.testing.assert_allclose(depth(labelled, 1)[0, 0], 20)


def test_scores_are_of_the_depth_before_it_was_quantised(device: Device) -> None:
    labelled = device.submit(host_batch(0)).result(30)
    low, high, mean, zeros = labelled.scores[0]
    assert SCORES.names == ["depth_min", "depth_max", "depth_mean", "zero_share"]
    assert (low, high) == (0, SIZE[1] - 1)
    assert mean == pytest.approx((SIZE[1] - 1) / 2)
    assert zeros == pytest.approx(1 / SIZE[1])


def test_a_device_thread_that_dies_tells_every_caller() -> None:
    class Dying(Ramp):
        def predict(self, batch: PixelBatch) -> Prediction:  # noqa: ARG002
            raise KeyboardInterrupt

    device = Device(Dying(), bits=12, scaled=False)
    futures = [device.submit(host_batch(1)) for _ in range(3)]
    for future in futures:
        with pytest.raises(KeyboardInterrupt):
            future.result(30)
    with pytest.raises(KeyboardInterrupt):
        device.submit(host_batch(1)).result(30)
