"""The embedded teacher predicts depth for worlds that its training did not see, and for a photograph."""

from pathlib import Path

import numpy as np
import pytest

from da2ray.teachers import depth_anything
from da2ray.teachers.base import LoadOptions, Teacher
from da2ray.teachers.registry import resolve
from da2ray.worlds.evaluation import HELD_OUT, Ramp, motorcycle_rank_correlation, score_worlds

SPEC = resolve("depth-anything-v2-tiny")
FOLDER = Path(depth_anything.__file__).parent
WORLDS = range(HELD_OUT, HELD_OUT + 16)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return SPEC.load(LoadOptions())


@pytest.mark.slow
def test_it_beats_the_ramp_on_worlds_that_it_was_not_trained_on(teacher: Teacher) -> None:
    seen, ramp = zip(*score_worlds((teacher, Ramp()), SPEC, WORLDS), strict=True)
    assert np.mean([score.delta1 for score in seen]) > np.mean([score.delta1 for score in ramp]) + 0.05
    assert np.mean([score.abs_rel for score in seen]) < 0.6 * np.mean([score.abs_rel for score in ramp])


def test_its_depth_of_a_photograph_ranks_as_the_measured_one(teacher: Teacher) -> None:
    assert motorcycle_rank_correlation(teacher, SPEC) > 0.5


def test_its_weights_are_small_and_the_ones_of_the_model_card() -> None:
    assert (FOLDER / "tiny.safetensors").stat().st_size < 12e6
    assert SPEC.identify(LoadOptions()) in (FOLDER / "tiny.md").read_text()


def test_it_runs_at_half_the_official_size() -> None:
    assert SPEC.size_rule(480, 640) == (252, 336)
    assert SPEC.preprocessing != resolve("depth-anything-v2-small").preprocessing
