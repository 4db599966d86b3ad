"""Show labels as small WebP pictures (image, depth in colours, confidence in grey) that fit a budget together."""

import base64
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import cv2
import numpy as np
from PIL import Image

from da2ray.labels.reader import Label, Labels
from da2ray.report.contact_sheet import colour
from da2ray.report.originals import MissingError, Originals
from da2ray.storage import printable
from da2ray.teachers.base import Kind

BUDGET_BYTES: Final = 3_300_000
"""The most bytes of all pictures together. In base64 they take 4.4 MB, and the page must stay below 5 MB."""
STEPS: Final = ((384, 72), (320, 66), (272, 60), (224, 55), (176, 50), (128, 45), (96, 40))
"""Long side in pixels and WebP quality. The first step with which all pictures fit is used, or the last."""
FAR_COLOUR: Final = (0, 229, 255)
"""Colour of the outline of the far class on depth: a cyan that the colour map does not contain."""
THREADS: Final = 8


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture. It is `lossless` if its levels mean something."""

    data: bytes
    width: int
    height: int
    lossless: bool

    @property
    def uri(self) -> str:
        return f"data:image/webp;base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True, slots=True)
class Shown:
    """The pictures of a label. `problems` says why one is missing. A label without a mask has no confidence."""

    pictures: Mapping[str, Picture]
    problems: Mapping[str, str]


def pictures_of(
    labels: Labels, rows: Sequence[Mapping[str, Any]], originals: Originals, budget: int = BUDGET_BYTES
) -> list[Shown]:
    """Make the pictures of labelled index rows, at most `budget` bytes together if any of STEPS allows it."""
    with ThreadPoolExecutor(THREADS, thread_name_prefix="pictures") as pool:
        shown = list(pool.map(partial(_show, labels, originals), rows))
        for step in STEPS[1:]:
            total = sum(len(picture.data) for one in shown for picture in one.pictures.values())
            if total <= budget:
                break
            shown = list(pool.map(partial(_shrink, step=step), shown))
    return shown


def _show(labels: Labels, originals: Originals, row: Mapping[str, Any]) -> Shown:
    side, quality = STEPS[0]
    pictures: dict[str, Picture] = {}
    problems: dict[str, str] = {}
    size = _within(row["height"], row["width"], side)
    try:
        pictures["image"] = _encode(_resized(originals.read(row, size), size), quality)
    except MissingError as error:
        problems["image"] = printable(error)
    try:
        label = labels.label_of(dict(row))
    except (OSError, ValueError) as error:
        problems["depth"] = printable(error)
        return Shown(pictures, problems)
    if label.depth is not None:
        size = _within(label.depth.shape[0], label.depth.shape[1], side)
        pictures["depth"] = _encode(_depth(label, size), quality)
    if label.confidence is not None:
        levels = (label.confidence * 255).round().astype(np.uint8)
        pictures["confidence"] = _encode(cv2.resize(levels, size[::-1], interpolation=cv2.INTER_NEAREST), None)
    return Shown(pictures, problems)


def _depth(label: Label, size: tuple[int, int]) -> np.ndarray:
    """Depth as RGB. The far class has an outline one pixel wide, on its inside."""
    assert label.depth is not None  # noqa: S101 - the caller checked
    assert label.kind is not None  # noqa: S101 - a label with depth has a kind
    coloured = np.ascontiguousarray(_resized(colour(label.depth, Kind(label.kind)), size))
    if label.far is not None and label.far.any():
        far = cv2.resize(label.far.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)
        coloured[(far - cv2.erode(far, np.ones((3, 3), np.uint8))).astype(np.bool_)] = FAR_COLOUR
    return coloured


def _shrink(shown: Shown, step: tuple[int, int]) -> Shown:
    side, quality = step
    smaller: dict[str, Picture] = {}
    for name, picture in shown.pictures.items():
        with Image.open(io.BytesIO(picture.data)) as image:
            size = _within(image.height, image.width, side)
            resample = Image.Resampling.NEAREST if picture.lossless else Image.Resampling.LANCZOS
            pixels = np.asarray(image.convert("L" if picture.lossless else "RGB").resize(size[::-1], resample))
        smaller[name] = _encode(pixels, None if picture.lossless else quality)
    return Shown(smaller, shown.problems)


def _encode(pixels: np.ndarray, quality: int | None) -> Picture:
    """Encode pixels as WebP; lossless if `quality` is None."""
    sink = io.BytesIO()
    options = {"lossless": True} if quality is None else {"quality": quality, "method": 4}
    Image.fromarray(pixels).save(sink, "WEBP", **options)
    return Picture(sink.getvalue(), pixels.shape[1], pixels.shape[0], quality is None)


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    smaller = size[0] * size[1] <= pixels.shape[0] * pixels.shape[1]
    return cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def _within(height: int, width: int, side: int) -> tuple[int, int]:
    """Shrink (height, width) in proportion so that the long side is at most `side` pixels."""
    scale = min(1.0, side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))
