"""A contact sheet: one picture that shows each image beside its depth in colours."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from da2ray.images.decode import DecodeMode, decode_pixels, read_header
from da2ray.labels.reader import Label, Labels
from da2ray.storage import open_store, printable, split_uri
from da2ray.teachers.base import Kind

TILE_HEIGHT = 150
CAPTION_HEIGHT = 16
GAP = 8
SHEET_WIDTH = 1600


Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels."""


def contact_sheet(labels: Labels, path: Path, *, most: int = 24) -> dict[str, Box]:
    """Write a PNG of the first `most` labelled images, each beside its depth, in lines of up to 1600 pixels.

    Returns:
        The box of each pair, without its caption, by key.
    """
    shown = list(islice((label for label in labels if label.depth is not None), most))
    tiles = [_tile(label) for label in shown]
    boxes: list[Box] = []
    left, top = 0, CAPTION_HEIGHT
    for tile in tiles:
        if left and left + tile.width > SHEET_WIDTH:
            left, top = 0, top + TILE_HEIGHT + CAPTION_HEIGHT
        boxes.append((left, top, left + tile.width, top + TILE_HEIGHT))
        left += tile.width + GAP
    sheet = Image.new("RGB", (max((box[2] for box in boxes), default=1), top + TILE_HEIGHT), "white")
    for tile, box in zip(tiles, boxes, strict=True):
        sheet.paste(tile, (box[0], box[1] - CAPTION_HEIGHT))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return {label.key: box for label, box in zip(shown, boxes, strict=True)}


def colour(depth: np.ndarray, kind: Kind) -> np.ndarray:
    """Colour a depth map: float (H, W) -> uint8 RGB (H, W, 3), near bright, far dark, from the 1st to the 99th percentile."""
    low, high = np.percentile(depth, [1, 99])
    share = np.clip((depth - low) / max(high - low, np.finfo(np.float32).tiny), 0, 1)
    nearness = share if kind is Kind.DISPARITY else 1 - share
    return cv2.cvtColor(cv2.applyColorMap((nearness * 255).astype(np.uint8), cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)


def _tile(label: Label) -> Image.Image:
    root, key = split_uri(label.uri)
    data = open_store(root).get(key)
    header = read_header(data)
    assert label.depth is not None  # noqa: S101 - contact_sheet passes labels with depth only
    assert label.kind is not None  # noqa: S101
    size = (label.depth.shape[0], label.depth.shape[1])
    pair = [
        _scaled(decode_pixels(data, header, size, DecodeMode.SCALED)),
        _scaled(colour(label.depth, Kind(label.kind))),
    ]
    return _captioned(pair, printable(label.key, 60))


def _scaled(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels)
    return image.resize(
        (max(1, round(image.width * TILE_HEIGHT / image.height)), TILE_HEIGHT), Image.Resampling.BILINEAR
    )


def _captioned(pair: Sequence[Image.Image], caption: str) -> Image.Image:
    tile = Image.new("RGB", (sum(part.width for part in pair), TILE_HEIGHT + CAPTION_HEIGHT), "white")
    left = 0
    for part in pair:
        tile.paste(part, (left, CAPTION_HEIGHT))
        left += part.width
    ImageDraw.Draw(tile).text((2, 2), caption, fill="black")
    return tile
