"""Training on worlds: a killed run continues without a difference, and the result is a teacher."""

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from da2ray.commands.options import load
from da2ray.commands.train_teacher import TrainTeacherConfig
from da2ray.teachers.base import LoadOptions, PixelBatch
from da2ray.teachers.registry import resolve
from da2ray.worlds.augment import framed, photographed
from da2ray.worlds.job import train_teacher
from da2ray.worlds.training import SIZE, Plan, Training, new_network

CPU = torch.device("cpu")


def arrays() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 256, (4, *SIZE, 3), np.uint8), rng.random((4, *SIZE)).astype(np.float16))]


def weights_after(folder: Path, *stops: int) -> dict[str, torch.Tensor]:
    """Train to each stop in a new `Training`, like runs that are killed after saving, and return the weights."""
    folder.mkdir()
    for stop in stops:
        training = Training(folder, arrays(), Plan(steps=4, batch_size=2), CPU)
        for _ in training.run():
            if training.step == stop:
                training.save()
                break
    return training.network.state_dict()


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_weights_of_one_that_was_not_stopped(tmp_path: Path) -> None:
    # Fixed: this process, so its threads, libraries and instruction set.
    whole = weights_after(tmp_path / "whole", 4)
    resumed = weights_after(tmp_path / "resumed", 2, 4)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    untrained = new_network(0).state_dict()
    # The position embedding is fixed. The mask token and one unit of the head are in all checkpoints and never used.
    still = {key for key in whole if torch.equal(whole[key], untrained[key])}
    assert {key.partition("resConfUnit1")[0] for key in still} == {
        "pretrained.pos_embed",
        "pretrained.mask_token",
        "depth_head.scratch.refinenet4.",
    }


def test_a_run_starts_from_given_weights_and_a_resumed_run_keeps_its_own(tmp_path: Path) -> None:
    given = new_network(7).state_dict()
    save_file({key: value.half().contiguous() for key, value in given.items()}, tmp_path / "given.safetensors")
    plan = Plan(steps=2, batch_size=2)
    training = Training(tmp_path, arrays(), plan, CPU, tmp_path / "given.safetensors")
    assert all(torch.equal(value, given[key].half().float()) for key, value in training.network.state_dict().items())
    next(training.run())
    training.save()
    resumed = Training(tmp_path, arrays(), plan, CPU, tmp_path / "given.safetensors")
    learnt = training.network.state_dict()
    assert all(torch.equal(value, learnt[key]) for key, value in resumed.network.state_dict().items())


def test_a_window_keeps_picture_and_depth_together() -> None:
    columns = np.broadcast_to(np.arange(SIZE[1]), SIZE)
    image = np.stack([columns * 255 / SIZE[1]] * 3, axis=-1).astype(np.uint8)
    depth = (columns / SIZE[1]).astype(np.float16)
    for seed in range(8):
        picture, label = framed(image, depth, (168, 224), np.random.default_rng(seed))
        assert picture.shape == (168, 224, 3)
        assert np.abs(picture[..., 0] / 255 - label).max() < 0.02
        assert photographed(picture, np.random.default_rng(seed)).shape == picture.shape


@pytest.mark.slow
def test_the_job_writes_weights_that_the_teacher_loads(tmp_path: Path) -> None:
    weights = tmp_path / "tiny.safetensors"
    job = {"work": tmp_path / "work", "scenes": 2, "batch_size": 2, "held_out": 2, "weights": weights, "steps": 2}
    argv = [str(part) for name, value in job.items() for part in (f"--{name.replace('_', '-')}", value)]
    console = Console(record=True, width=200)
    assert train_teacher(load(TrainTeacherConfig, argv), console) == 0
    assert "| 2 worlds, delta1, all | 0." in weights.with_suffix(".md").read_text()
    assert weights.stat().st_size < 12e6
    teacher = resolve("depth-anything-v2-tiny").load(LoadOptions(weights=str(weights)))
    pixels = torch.zeros(252 * 336 * 3, dtype=torch.uint8)
    assert teacher.predict(PixelBatch(pixels, [SIZE], SIZE)).depth.shape == (1, *SIZE)


@pytest.mark.parametrize(("step", "share"), [(0, 0.01), (49, 0.5), (500, 1.0), (999, 0.0025)])
def test_the_learning_rate_rises_stays_and_falls_to_zero(step: int, share: float) -> None:
    assert Plan(steps=1000, learning_rate=2.0).rate(step) == pytest.approx(2 * share)
