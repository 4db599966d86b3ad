"""Depth of any shape and magnitude comes back within half a step, and values that are not finite never pass."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from da2ray.labels.codec import decode, dequantise, encode
from da2ray.labels.quantise import quantise

SETTINGS = settings(derandomize=True, max_examples=150)
FLOAT32 = np.finfo(np.float32)
LARGEST, SMALLEST = float(FLOAT32.max), float(FLOAT32.smallest_subnormal)
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
RANGES = {
    "zeros": st.sampled_from([0.0, -0.0]),
    "denormals": st.integers(-40, 40).map(lambda steps: steps * SMALLEST),
    "a denormal range on a large offset": st.sampled_from([1.0, 1.0 + float(FLOAT32.eps)]),
    "near the largest": st.sampled_from([LARGEST, -LARGEST, LARGEST / 2, float(np.nextafter(np.float32(LARGEST), 0))]),
    "of one sign, near the largest": st.floats(LARGEST / 2, LARGEST, width=32),
    "mixed magnitudes": st.sampled_from([0.0, SMALLEST, float(FLOAT32.tiny), 1e-20, 1.0, 1e20, -1e20, LARGEST]),
}


@st.composite
def maps(draw: st.DrawFn) -> np.ndarray:
    """float32 (h, w) of one of RANGES, or constant."""
    values = draw(st.sampled_from([*RANGES.values(), FINITE, st.just(draw(FINITE))]))
    return draw(hnp.arrays(np.float32, SHAPES, elements=values))


@given(maps(), st.integers(8, 16))
@SETTINGS
def test_depth_of_any_magnitude_survives_quantising_and_the_bytes(depth: np.ndarray, bits: int) -> None:
    made = quantise(torch.from_numpy(depth)[None], bits)
    q, scale, offset = made.q[0].numpy(), made.scale.item(), made.offset.item()
    back = dequantise(decode(encode(q), *depth.shape), scale, offset)
    assert np.isfinite(back).all()
    assert offset == depth.min()
    if depth.min() == depth.max():
        assert scale == 0
        np.testing.assert_array_equal(back, depth)
    exact = depth.astype(np.float64)
    rounding = 4 * FLOAT32.eps * max(np.abs(exact).max(), np.ptp(exact)) + SMALLEST
    assert (np.abs(back - exact) <= scale / 2 + rounding).all()
    # Quantising never reverses the order of two depths.
    order = np.argsort(exact, axis=None, kind="stable")
    assert (np.diff(q.reshape(-1)[order].astype(int)) >= 0).all()


@given(st.lists(maps(), min_size=2, max_size=4), st.integers(8, 16))
@SETTINGS
def test_a_map_is_quantised_alike_whatever_its_neighbours(depths: list[np.ndarray], bits: int) -> None:
    shape = depths[0].shape
    batch = torch.from_numpy(np.stack([np.resize(depth, shape) for depth in depths]))
    # Equal on every machine: minimum, maximum, and single operations that are correctly rounded.
    together = quantise(batch, bits)
    for number, depth in enumerate(batch):
        alone = quantise(depth[None], bits)
        assert torch.equal(together.q[number], alone.q[0])
        assert (together.scale[number], together.offset[number]) == (alone.scale[0], alone.offset[0])


@given(maps(), st.sampled_from([np.nan, np.inf, -np.inf]), st.data())
@SETTINGS
def test_one_value_that_is_not_finite_is_refused_wherever_it_lies(
    depth: np.ndarray, bad: float, data: st.DataObject
) -> None:
    depth = depth.copy()
    depth.reshape(-1)[data.draw(st.integers(0, depth.size - 1))] = bad
    batch = torch.from_numpy(np.stack([np.zeros_like(depth), depth]))
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantise(batch, 12)


@given(hnp.arrays(np.uint16, SHAPES), st.data())
@SETTINGS
def test_any_view_encodes_like_its_copy(q: np.ndarray, data: st.DataObject) -> None:
    rows, columns = (data.draw(st.slices(side)) for side in q.shape)
    for view in (q.T, q[::-1], q[:, ::-1], q[rows, columns]):
        if view.size:
            encoded = encode(view)
            assert encoded == encode(view.copy())
            np.testing.assert_array_equal(decode(encoded, *view.shape), view)
