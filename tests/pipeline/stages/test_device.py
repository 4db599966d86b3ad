"""The device thread: labels do not depend on the rest of the batch, and an error of one image fails that image only."""

import threading
from concurrent.futures import Future

import numpy as np
import pytest
import torch

from da2ray.labels.schema import NUMBERS
from da2ray.pipeline.stages.batches import HostBatch
from da2ray.pipeline.stages.device import Device, _Work
from da2ray.teachers.base import Kind, PixelBatch, Prediction

SIZE = (14, 28)


class Ramp:
    """A teacher with depth = the image's first value + column; 255 raises, 254 gives NaN."""

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


@pytest.fixture(params=[1, 3])
def device(request: pytest.FixtureRequest):
    device = Device(Ramp(), bits=12, kind=Kind.DISPARITY, scaled=False, workers=request.param)
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
    names = ["depth_min", "depth_max", "depth_mean", "zero_share"]
    low, high, mean, zeros = (labelled.numbers[0, NUMBERS.get_field_index(name)] for name in names)
    assert labelled.masks is None
    assert (low, high) == (0, SIZE[1] - 1)
    assert mean == pytest.approx((SIZE[1] - 1) / 2)
    assert zeros == pytest.approx(1 / SIZE[1])


class Small(Ramp):
    """A device with memory for two images at a time, and for no image that begins with 253."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def predict(self, batch: PixelBatch) -> Prediction:
        self.calls.append(len(batch))
        if len(batch) > 2 or any(image[0, 0, 0] == 253 for image in batch.images()):
            raise torch.OutOfMemoryError("out of memory")
        return super().predict(batch)


def test_out_of_memory_halves_the_micro_batch_and_remembers_what_fits() -> None:
    teacher = Small()
    device = Device(teacher, bits=12, kind=Kind.DISPARITY, scaled=False)
    labelled = device.submit(host_batch(1, 2, 3, 4, 5, 6, 7, 8)).result(30)
    assert labelled.errors == [None] * 8
    assert [round(float(depth(labelled, index)[0, 0])) for index in range(8)] == list(range(1, 9))
    # Batches of eight and of four fail once each. All others fit.
    assert teacher.calls == [8, 4, 2, 2, 2, 2]
    device.submit(host_batch(1, 2, 3, 4)).result(30)
    assert teacher.calls[6:] == [2, 2]
    device.close()


def test_an_image_that_no_memory_suffices_for_fails_alone() -> None:
    device = Device(Small(), bits=12, kind=Kind.DISPARITY, scaled=False)
    labelled = device.submit(host_batch(1, 253, 3, 4)).result(30)
    assert [error and error[0] for error in labelled.errors] == [None, "out_of_memory", None, None]
    device.close()


def test_what_the_device_works_on_can_be_seen_while_it_does() -> None:
    going, seen = threading.Event(), threading.Event()

    class Slow(Ramp):
        def predict(self, batch: PixelBatch) -> Prediction:
            seen.set()
            going.wait(30)
            return super().predict(batch)

    device = Device(Slow(), bits=12, kind=Kind.DISPARITY, scaled=False)
    future = device.submit(host_batch(1, 2))
    seen.wait(30)
    assert [images for _, images in device.calls()] == [2]
    going.set()
    future.result(30)
    assert device.calls() == []
    device.close()


def lost_device() -> Device:
    """A device that breaks in its first call and stays broken."""

    class Lost(Ramp):
        def predict(self, batch: PixelBatch) -> Prediction:  # noqa: ARG002
            # A tensor without values: reading one raises, as after a CUDA fault.
            self.device = torch.device("meta")
            raise ValueError("an illegal memory access")

    return Device(Lost(), bits=12, kind=Kind.DISPARITY, scaled=False)


def test_a_device_that_fails_fails_no_image_and_says_so() -> None:
    device = lost_device()
    assert not device.broken
    for _ in range(2):
        with pytest.raises(RuntimeError, match="meta"):
            device.submit(host_batch(1, 2)).result(30)
        assert device.broken


def test_a_fault_that_shows_when_results_are_awaited_is_the_device_s() -> None:
    class Fault:
        def synchronize(self) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    device = Device(Ramp(), bits=12, kind=Kind.DISPARITY, scaled=False)
    device.submit(host_batch(1)).result(30)
    device._cuda = True
    with pytest.raises(RuntimeError, match="illegal"):
        device._finish(_Work(host_batch(1), Future(), ended=Fault()))
    assert device.broken
    device.close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a copy that fails")
def test_a_copy_that_fails_is_the_device_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    class Remote(Ramp):
        device = torch.device("cuda")

    monkeypatch.setattr(torch.cuda, "Stream", lambda _: None)
    device = Device(Remote(), bits=12, kind=Kind.DISPARITY, scaled=False)
    with pytest.raises(RuntimeError):
        device.submit(host_batch(1)).result(30)
    assert device.broken


def test_a_teacher_that_fails_on_every_image_is_not_taken_for_a_broken_device(device: Device) -> None:
    with pytest.raises(ValueError, match="cannot stand"):
        device.submit(host_batch(255, 255)).result(30)
    assert not device.broken


def test_a_device_thread_that_dies_tells_every_caller() -> None:
    class Dying(Ramp):
        def predict(self, batch: PixelBatch) -> Prediction:  # noqa: ARG002
            raise KeyboardInterrupt

    device = Device(Dying(), bits=12, kind=Kind.DISPARITY, scaled=False)
    futures = [device.submit(host_batch(1)) for _ in range(3)]
    for future in futures:
        with pytest.raises(KeyboardInterrupt):
            future.result(30)
    with pytest.raises(KeyboardInterrupt):
        device.submit(host_batch(1)).result(30)
