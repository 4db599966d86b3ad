"""Integers come back bit for bit on every machine, depth within half a step, and broken bytes are refused."""

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from da2ray.labels.codec import decode, default_bits, dequantise, encode
from da2ray.labels.quantise import quantise
from da2ray.teachers.base import Kind

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=24)


@given(hnp.arrays(np.uint16, SHAPES))
def test_integers_come_back_bit_for_bit(q: np.ndarray) -> None:
    np.testing.assert_array_equal(decode(encode(q), *q.shape), q)


def test_a_view_of_a_micro_batch_encodes_like_its_copy() -> None:
    batch = np.random.default_rng(0).integers(0, 4096, (3, 11, 14), dtype=np.uint16)
    assert encode(batch[1]) == encode(batch[1].copy())
    assert encode(batch[1, ::2, 1:]) == encode(batch[1, ::2, 1:].copy())


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=3, max_dims=3, max_side=8),
        # All finite float32: denormals, zeros of both signs, and ranges beyond the largest float32.
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    st.integers(8, 16),
)
def test_depth_comes_back_within_half_a_step(depth: np.ndarray, bits: int) -> None:
    made = quantise(torch.from_numpy(depth), bits)
    q, scales, offsets = made.q.numpy(), made.scale.numpy(), made.offset.numpy()
    assert (q < 2**bits).all()
    assert np.isfinite(scales).all()
    for original, image, scale, offset in zip(depth, q, scales, offsets, strict=True):
        back = dequantise(image, scale, offset)
        assert back.dtype == np.float32
        assert np.isfinite(back).all()
        np.testing.assert_array_equal(back[original == original.min()], original.min())
        exact = original.astype(np.float64)
        # float32 rounds to a few units in the last place of the largest number in the computation.
        rounding = 4 * np.finfo(np.float32).eps * max(np.abs(exact).max(), np.ptp(exact))
        assert (np.abs(back - exact) <= float(scale) / 2 + rounding).all()


def test_a_constant_map_has_scale_zero_and_comes_back_exactly() -> None:
    made = quantise(torch.tensor([[[0.1]], [[0.0]], [[-3e38]]]), 12)
    assert made.scale.tolist() == [0, 0, 0]
    np.testing.assert_array_equal(made.offset.numpy(), np.float32([0.1, 0, -3e38]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    depth = torch.ones(2, 3, 3)
    depth[1, 2, 0] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantise(depth, 12)


def test_wrong_arguments_are_refused() -> None:
    for depth, bits in ((torch.ones(2, 2), 12), (torch.ones(1, 2, 2).double(), 12), (torch.ones(1, 2, 2), 17)):
        with pytest.raises(ValueError, match="must be"):
            quantise(depth, bits)
    for q in (np.ones((2, 2), np.int16), np.ones(4, np.uint16)):
        with pytest.raises(ValueError, match="must be uint16"):
            encode(q)


def test_quantising_leaves_its_input_alone() -> None:
    depth = torch.rand(2, 5, 7)
    before = depth.clone()
    quantise(depth, 12)
    assert torch.equal(depth, before)


@given(st.data())
def test_broken_bytes_raise_value_error_or_decode_to_the_right_shape(data: st.DataObject) -> None:
    good = encode(np.arange(600, dtype=np.uint16).reshape(20, 30) ** 2)
    cut = data.draw(st.integers(0, len(good) - 1))
    with pytest.raises(ValueError, match="label"):
        decode(good[:cut], 20, 30)
    with pytest.raises(ValueError, match="label"):
        decode(good + b"x", 20, 30)
    with pytest.raises(ValueError, match="label"):
        decode(good, 20, 31)
    flipped = bytearray(good)
    flipped[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ValueError):
        assert decode(bytes(flipped), 20, 30).shape == (20, 30)  # the bytes have no checksum; the index has it


def test_default_bits() -> None:
    assert {kind: default_bits(kind) for kind in Kind} == {Kind.DISPARITY: 12, Kind.DEPTH: 12, Kind.METRIC: 16}
