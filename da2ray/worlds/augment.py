"""Augmentation that makes rendered pictures look more like photographs: framing, colours, blur, noise, compression."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]


def framed(
    image: Image, disparity: NDArray[np.float16], size: tuple[int, int], rng: np.random.Generator
) -> tuple[Image, NDArray[np.float32]]:
    """Cut a random window out of a picture and its disparity, mirror it half the time, and resize it to `size` (height, width).

    The window has the aspect of `size`, and its side is at least 60 % of the largest such window's.
    """
    height, width = image.shape[:2]
    largest = min(height / size[0], width / size[1])
    zoom = largest * rng.uniform(0.6, 1.0)
    tall, wide = round(size[0] * zoom), round(size[1] * zoom)
    top, left = rng.integers(height - tall + 1), rng.integers(width - wide + 1)
    window = slice(top, top + tall), slice(left, left + wide)
    picture = cv2.resize(image[window], size[::-1], interpolation=cv2.INTER_AREA)
    # Nearest, because interpolation would make up depths between a thing and the background behind it.
    depth = cv2.resize(disparity[window].astype(np.float32), size[::-1], interpolation=cv2.INTER_NEAREST)
    if rng.random() < 0.5:
        picture, depth = picture[:, ::-1], depth[:, ::-1]
    return np.ascontiguousarray(picture), np.ascontiguousarray(depth)


def photographed(image: Image, rng: np.random.Generator) -> Image:
    """Give a uint8 (H, W, 3) picture the faults of a camera."""
    picture: Any = image.astype(np.float32) / 255
    if rng.random() < 0.8:
        grey = picture.mean(axis=2, keepdims=True)
        picture = grey + (picture - grey) * rng.uniform(0.3, 1.6)
        picture = picture * rng.uniform(0.85, 1.15, 3).astype(np.float32)
        picture = (picture - 0.5) * rng.uniform(0.6, 1.4) + 0.5 + rng.uniform(-0.15, 0.15)
        picture = np.clip(picture, 0, 1) ** rng.uniform(0.6, 1.6)
    if rng.random() < 0.12:
        picture = np.repeat(picture.mean(axis=2, keepdims=True), 3, axis=2)
    if rng.random() < 0.35:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 1.8))
    if rng.random() < 0.5:
        picture = picture + rng.normal(0, rng.uniform(0.005, 0.06), picture.shape).astype(np.float32)
    result = (np.clip(picture, 0, 1) * 255).astype(np.uint8)
    if rng.random() < 0.3:
        quality = int(rng.integers(15, 90))
        _, packed = cv2.imencode(".jpg", result, [cv2.IMWRITE_JPEG_QUALITY, quality])
        result = cv2.imdecode(packed, cv2.IMREAD_COLOR)
    return result
