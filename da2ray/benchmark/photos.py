"""Real photographs from installed packages, and image sets made of them."""

import io
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

SKIMAGE = [
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "microaneurysms.png",
    "moon.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "no_time_for_that_tiny.gif",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
    "text.png",
]
SKLEARN = ("china.jpg", "flower.jpg")
SCENES = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "china.jpg", "flower.jpg")
"""Colour photographs of ordinary subjects, from which a mixed set is made."""


def packaged_photos() -> dict[str, bytes]:
    """Two dozen photographs by name. The wheels of scikit-image and scikit-learn contain them (extra `demo`)."""
    found = {name: (files("skimage") / "data" / name).read_bytes() for name in SKIMAGE}
    return found | {name: (files("sklearn.datasets") / "images" / name).read_bytes() for name in SKLEARN}


def write_mixed_set(folder: Path, count: int, seed: int = 0) -> None:
    """Write `count` JPEGs of quality 75 to 95: every other one around 500 x 375, the rest 1 to 12 megapixels (log-uniform).

    Each is a random crop of a photograph, resized, with sensor-like noise. The noise gives it the entropy of a photograph of its
    size (about 1.5 to 3 bits a pixel) instead of that of an upscaled one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    photos = packaged_photos()
    scenes = [Image.open(io.BytesIO(photos[name])).convert("RGB") for name in SCENES]
    rng = np.random.default_rng(seed)
    for index in range(count):
        scene = scenes[rng.integers(len(scenes))]
        crop_width = int(scene.width * rng.uniform(0.6, 1))
        crop_height = min(scene.height, int(crop_width * 3 / 4))
        left, top = rng.integers(scene.width - crop_width + 1), rng.integers(scene.height - crop_height + 1)
        if index % 2 == 0:
            width, height = 500 + int(rng.integers(-12, 13)), 375 + int(rng.integers(-9, 10))
        else:
            megapixels = float(np.exp(rng.uniform(np.log(1), np.log(12))))
            width = round((megapixels * 1e6 * 4 / 3) ** 0.5)
            height = round(width * 3 / 4)
        box = (int(left), int(top), int(left) + crop_width, int(top) + crop_height)
        image = np.asarray(scene.resize((width, height), Image.Resampling.BICUBIC, box=box), dtype=np.int16)
        noise = rng.integers(-4, 5, size=(height, width, 1), dtype=np.int16)
        noisy = np.clip(image + noise, 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{index:06d}.jpg", quality=int(rng.integers(75, 96)))
