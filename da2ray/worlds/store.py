"""Rendered worlds on disk: chunks of scenes as plain arrays. Several processes render them; a new run renders missing ones."""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from da2ray.worlds.render import render
from da2ray.worlds.scene import make_scene

CHUNK = 256
"""Scenes in a chunk: 65 MB of images and 43 MB of disparity at 252 x 336."""


class WorldStore:
    """A folder with `scenes` rendered scenes at `size` (height, width), with seeds from `first_seed`.

    Disparity (1 / metres, 0 for the sky) is stored in half precision. Its steps of 0.05 % are too small for a network to learn.
    """

    def __init__(self, folder: Path, scenes: int, size: tuple[int, int], first_seed: int = 0) -> None:
        self._folder = folder
        self._size = size
        self._seeds = [
            range(first_seed + start, first_seed + min(start + CHUNK, scenes)) for start in range(0, scenes, CHUNK)
        ]

    def make(self, processes: int) -> Iterator[int]:
        """Render the missing chunks, and yield the number of finished scenes at the start and after each chunk."""
        self._folder.mkdir(parents=True, exist_ok=True)
        missing = [seeds for seeds in self._seeds if not self._path(seeds, "disparity").exists()]
        done = sum(map(len, self._seeds)) - sum(map(len, missing))
        yield done
        if not missing:
            return
        with multiprocessing.get_context("spawn").Pool(min(processes, len(missing))) as pool:
            for count in pool.imap_unordered(self._make_chunk, missing):
                done += count
                yield done

    def arrays(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The chunks, memory-mapped: each is uint8 (N, H, W, 3) sRGB and float16 (N, H, W) disparity."""
        return [
            (np.load(self._path(seeds, "image"), mmap_mode="r"), np.load(self._path(seeds, "disparity"), mmap_mode="r"))
            for seeds in self._seeds
        ]

    def _make_chunk(self, seeds: range) -> int:
        torch.set_num_threads(1)
        worlds = [render(make_scene(seed), *self._size) for seed in seeds]
        # The disparity is written last: it exists only if the chunk is complete.
        self._write(seeds, "image", np.stack([world.image.numpy() for world in worlds]))
        self._write(seeds, "disparity", np.stack([(1 / world.depth).half().numpy() for world in worlds]))
        return len(seeds)

    def _write(self, seeds: range, what: str, values: np.ndarray) -> None:
        path = self._path(seeds, what)
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.save(file, values)
        part.replace(path)

    def _path(self, seeds: range, what: str) -> Path:
        height, width = self._size
        return self._folder / f"{seeds.start:07d}-{len(seeds)}-{height}x{width}-{what}.npy"
