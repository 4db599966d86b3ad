"""The network is Depth Anything V2: it has the published counts, and transformers' output for the same random weights."""

import pytest
import torch
from torch import Tensor, nn
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings

from da2ray.teachers.depth_anything.configs import TINY, VITB, VITG, VITL, VITS, Config, EncoderConfig
from da2ray.teachers.depth_anything.dpt import DepthAnythingV2
from da2ray.teachers.depth_anything.keymap import Layout, shapes_in
from da2ray.teachers.depth_anything.teacher import random_state
from tests.teachers.depth_anything import reference

TOLERANCE = 5e-5
"""Largest allowed difference, as a share of the output's standard deviation. Measured: at most 9e-6."""

TRUNCATED_SWIGLU = Config("giant", "vitg", EncoderConfig(192, 5, 3, (0, 2, 3, 4), swiglu=True), 48, (64, 64, 64, 64))


def network_of(config: Config, state: dict[str, Tensor], max_depth: float | None = None) -> DepthAnythingV2:
    with torch.device("meta"):
        network = DepthAnythingV2(config, max_depth)
    network.load_state_dict(state, assign=True)
    return network.eval()


def images_of(count: int, height: int, width: int) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over the reference's standard deviation, after a check that the reference is not trivial."""
    assert ours.shape == theirs.shape
    assert (theirs > 0).float().mean() > 0.5, "a map of zeros proves nothing"
    assert theirs.std() > 1e-3
    return ((ours - theirs).abs().max() / theirs.std()).item()


@pytest.mark.parametrize(
    ("config", "parameters", "official", "in_memory"),
    [
        (VITS, 24_785_089, 239, 287),
        (VITB, 97_470_785, 239, 287),
        (VITL, 335_315_649, 407, 503),
        (VITG, 1_258_132_225, 631, 871),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_sizes_have_the_published_numbers_of_parameters_and_keys(
    config: Config, parameters: int, official: int, in_memory: int
) -> None:
    with torch.device("meta"):
        network = DepthAnythingV2(config)
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert len(shapes) == official
    assert len(shapes_in(Layout.HF_MEMORY, shapes)) == in_memory


@pytest.mark.parametrize(
    ("config", "height", "width"),
    [
        (VITS, 518, 518),
        (VITS, 518, 686),
        (VITS, 336, 252),
        pytest.param(VITB, 518, 518, marks=pytest.mark.slow),
        (TRUNCATED_SWIGLU, 518, 518),
        (TRUNCATED_SWIGLU, 252, 336),
    ],
    ids=lambda value: getattr(value, "name", value),
)
@torch.inference_mode()
def test_the_output_equals_that_of_transformers_with_official_positions(
    config: Config, height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = random_state(config)
    images = images_of(1, height, width)
    if height != width:  # for a square, transformers runs unpatched
        monkeypatch.setattr(Dinov2Embeddings, "interpolate_pos_encoding", reference.official_positions)
    theirs = reference.build(config, state)(images).predicted_depth
    assert relative_difference(network_of(config, state)(images), theirs) < TOLERANCE


@torch.inference_mode()
def test_positions_differ_from_those_of_transformers_off_the_square() -> None:
    """The comparison above can fail: it sees the 0.1 in the official scale."""
    state = random_state(VITS)
    images = images_of(1, 336, 252)
    theirs = reference.build(VITS, state)(images).predicted_depth
    assert relative_difference(network_of(VITS, state)(images), theirs) > 100 * TOLERANCE


@torch.inference_mode()
def test_positions_are_raw_on_the_trained_square_and_keep_the_class_token() -> None:
    encoder = network_of(TINY, random_state(TINY)).pretrained
    assert torch.equal(encoder.positions(37, 37), encoder.pos_embed)
    positions = encoder.positions(20, 49)
    assert positions.shape == (1, 1 + 20 * 49, 64)
    assert positions.dtype == torch.float32
    assert torch.equal(positions[:, 0], encoder.pos_embed[:, 0])


@pytest.mark.parametrize("max_depth", [20.0, 80.0])
@torch.inference_mode()
def test_the_metric_head_equals_that_of_transformers_and_stays_within_its_range(max_depth: float) -> None:
    state = random_state(TINY)
    images = images_of(2, 518, 518)
    network = network_of(TINY, state, max_depth)
    metres = network(images)
    assert relative_difference(metres, reference.build(TINY, state, max_depth)(images).predicted_depth) < TOLERANCE
    assert metres.min() > 0
    assert metres.max() < max_depth
    last = network.depth_head.scratch.output_conv2[2]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    last.bias.fill_(100.0)
    assert (network(images) == max_depth).all()


@torch.inference_mode()
def test_every_parameter_but_the_unused_ones_decides_the_output() -> None:
    """The comparison with transformers would also pass for a parameter that both leave out."""
    unused = {"pretrained.mask_token"} | {
        f"depth_head.scratch.refinenet4.resConfUnit1.conv{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")
    }
    state = random_state(TINY)
    network = network_of(TINY, state)
    images = images_of(1, 112, 140)
    before = network(images)
    idle = set()
    for key, parameter in network.named_parameters():
        kept = parameter.clone()
        parameter.add_(torch.rand(parameter.shape, generator=torch.Generator().manual_seed(2)))
        if torch.equal(network(images), before):
            idle.add(key)
        parameter.copy_(kept)
    assert idle == unused


@torch.inference_mode()
def test_a_size_that_is_not_a_multiple_of_a_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="100 x 140 is not a multiple of 14"):
        network_of(TINY, random_state(TINY))(images_of(1, 100, 140))


@pytest.mark.parametrize(("heads", "taps"), [(5, (0, 1, 2, 3)), (2, (0, 1, 2, 4)), (2, (0, 2, 1, 3))])
def test_impossible_encoder_sizes_are_refused(heads: int, taps: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"multiple|ascending"):
        EncoderConfig(64, 4, heads, taps)
