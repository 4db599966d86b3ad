"""Rendered worlds on disk: chunks of scenes as plain arrays, made by several processes, resumed by what is there."""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from da2ray.worlds.render import render
from da2ray.worlds.scene import make_scene

CHUNK = 256
"""Scenes in a file: 65 MB of images and 43 MB of disparity at 252 x 336."""


class WorldStore:
    """Scenes of the seeds 0 to `scenes` - 1, each at `size` (height, width), under a folder.

    Disparity (1 / metres, 0 for the sky) is kept in half precision: its steps of 0.05 % are below what a network learns.
    """

    def __init__(self, folder: Path, scenes: int, size: tuple[int, int], first_seed: int = 0) -> None:
        self._folder = folder
        self._size = size
        self._seeds = [
            range(first_seed + start, first_seed + min(start + CHUNK, scenes)) for start in range(0, scenes, CHUNK)
        ]

    def make(self, processes: int) -> Iterator[int]:
        """Render what is missing; after each chunk, the number of scenes that are there."""
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
        """Of each chunk, mapped from the disk: uint8 (N, H, W, 3) sRGB, float16 (N, H, W) disparity."""
        return [
            (np.load(self._path(seeds, "image"), mmap_mode="r"), np.load(self._path(seeds, "disparity"), mmap_mode="r"))
            for seeds in self._seeds
        ]

    def _make_chunk(self, seeds: range) -> int:
        torch.set_num_threads(1)
        worlds = [render(make_scene(seed), *self._size) for seed in seeds]
        # The disparity last: it is there when the chunk is whole.
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
