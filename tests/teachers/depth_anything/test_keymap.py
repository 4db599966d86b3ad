"""Renaming loses nothing and gives the names that transformers writes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from da2ray.teachers.depth_anything.configs import TINY, Config, EncoderConfig
from da2ray.teachers.depth_anything.keymap import Layout, from_layout, layout_of, shapes_in, to_hf
from da2ray.teachers.depth_anything.teacher import random_state
from tests.teachers.depth_anything import reference

SWIGLU = Config("giant", "vitg", EncoderConfig(96, 5, 3, (0, 1, 2, 4), swiglu=True), 32, (16, 24, 32, 48))


@pytest.mark.parametrize("config", [TINY, SWIGLU], ids=["gelu", "swiglu"])
def test_names_match_the_ones_that_transformers_saves_and_holds_in_memory(config: Config, tmp_path: Path) -> None:
    state = random_state(config)
    model = reference.build(config, state)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    for layout, theirs in ((Layout.HF, saved), (Layout.HF_MEMORY, model.state_dict())):
        ours = to_hf(state, layout)
        assert layout_of(theirs) is layout
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("config", [TINY, SWIGLU], ids=["gelu", "swiglu"])
@pytest.mark.parametrize("layout", list(Layout))
def test_a_round_trip_through_a_layout_keeps_every_bit(config: Config, layout: Layout) -> None:
    state = random_state(config)
    renamed = to_hf(state, layout)
    assert {key: tuple(tensor.shape) for key, tensor in renamed.items()} == shapes_in(
        layout, {key: tuple(tensor.shape) for key, tensor in state.items()}
    )
    back = from_layout(layout, renamed, state)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
