"""Worlds written like a bucket of images: JPEGs, their exact depth in another folder, and a list that names degradations."""

import json
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from da2ray.worlds.degrade import JPEG_QUALITY, Degradation, world_of

QUALITIES = (75, 96)
"""Range of JPEG qualities, without its end: those of cameras and of the web, as in `da2ray.benchmark.photos`."""
IMAGES, TRUTH, LIST = "images", "truth", "worlds.jsonl"
"""Names in the folder: `images/<key>.jpg`, `truth/<key>.npy` (float32 (H, W) metres, infinite for the sky), and the list, with
a line for each world."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A world to write: its seed, and its degradation or None."""

    seed: int
    degradation: Degradation | None

    @property
    def key(self) -> str:
        """The key of the world's image. It does not reveal the degradation."""
        return f"{self.seed:07d}.jpg"


def plan_worlds(count: int, share: float, first_seed: int) -> list[Planned]:
    """Plan `count` worlds with seeds from `first_seed`. A random `share` of them is degraded, evenly over the six kinds."""
    rng = np.random.Generator(np.random.PCG64([first_seed, count]))
    kinds: list[Degradation | None] = [None] * count
    for place, index in enumerate(rng.permutation(count)[: round(share * count)]):
        kinds[index] = list(Degradation)[place % len(Degradation)]
    return [Planned(first_seed + index, kind) for index, kind in enumerate(kinds)]


def export_worlds(worlds: list[Planned], folder: Path, size: tuple[int, int], processes: int) -> Iterator[int]:
    """Write worlds at `size` (height, width) in several processes, and then the list. Yield the number of written worlds."""
    for part in (IMAGES, TRUTH):
        (folder / part).mkdir(parents=True, exist_ok=True)
    lines = []
    with multiprocessing.get_context("spawn").Pool(min(processes, len(worlds)), torch.set_num_threads, (1,)) as pool:
        for done, line in enumerate(pool.imap(partial(_write, folder=folder, size=size), worlds, chunksize=4), 1):
            lines.append(line)
            yield done
    (folder / LIST).write_text("".join(json.dumps(line) + "\n" for line in lines))


def _write(planned: Planned, folder: Path, size: tuple[int, int]) -> dict[str, object]:
    world, scene = world_of(planned.seed, planned.degradation, *size)
    rng = np.random.Generator(np.random.PCG64([planned.seed, 3]))
    # A compressed picture is written at the same quality again, which changes next to nothing.
    quality = JPEG_QUALITY if planned.degradation is Degradation.JPEG10 else int(rng.integers(*QUALITIES))
    Image.fromarray(world.image.numpy()).save(folder / IMAGES / planned.key, quality=quality)
    np.save((folder / TRUTH / planned.key).with_suffix(".npy"), world.depth.numpy())
    return {
        "key": planned.key,
        "seed": planned.seed,
        "degradation": planned.degradation,
        "jpeg_quality": quality,
        "outdoors": scene.room is None,
    }
