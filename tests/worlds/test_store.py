"""Rendered worlds on disk match their seeds, and a new run renders only missing ones."""

from pathlib import Path

import numpy as np

from da2ray.worlds import make_scene, render
from da2ray.worlds.store import WorldStore

SIZE = (28, 42)


def test_a_store_holds_the_worlds_of_its_seeds_and_renders_missing_ones(tmp_path: Path) -> None:
    store = WorldStore(tmp_path, 3, SIZE)
    assert list(store.make(1)) == [0, 3]
    [(images, disparity)] = store.arrays()
    for seed in range(3):
        world = render(make_scene(seed), *SIZE)
        # Fixed: torch, the instruction set, and `render`'s one thread in the store's process and in this one.
        assert np.array_equal(images[seed], world.image.numpy())
        assert np.allclose(disparity[seed], (1 / world.depth).numpy(), rtol=1e-3)
    assert list(WorldStore(tmp_path, 3, SIZE).make(1)) == [3]
    [written] = tmp_path.glob("*-disparity.npy")
    written.rename(written.with_suffix(".part"))  # a killed run leaves such a file
    assert list(WorldStore(tmp_path, 3, SIZE).make(1)) == [0, 3]
    assert written.exists()
