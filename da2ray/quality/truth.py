"""Ground truth beside a dataset, and how far a label is from it."""

import io
import posixpath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from da2ray.errors import UserError
from da2ray.labels.reader import Label
from da2ray.quality.metrics import SMALLEST_DISPARITY, aligned_depth
from da2ray.storage import Client, open_store
from da2ray.teachers.base import Kind

FARTHEST = 80.0
"""Metres beyond which nothing is judged, as on KITTI and Virtual KITTI."""
LEAST_SHARE = 0.01
"""Of an image that must have a true depth, nearer than that, for it to be judged."""
SUFFIXES = (".npy", ".png")
MILLIMETRE = np.float32(1e-3)

Map = NDArray[np.float32]


class Truth:
    """True depth below a URL: a label's key without its suffix, and `.npy` (float (H, W) metres) or `.png` (16-bit millimetres).

    Any size, the aspect of the image; 0, NaN and infinity are unknown.
    """

    def __init__(self, url: str, client: Client = "auto") -> None:
        self._store = open_store(url, client)
        self.url = self._store.url
        # A listing is a request for each thousand; asking for what is not there is one for each label.
        found = (key for batch in self._store.list() for key in batch["key"].to_pylist())
        self._keys = {stem(key): key for key in found if key.endswith(SUFFIXES)}

    def __len__(self) -> int:
        return len(self._keys)

    def has(self, key: str) -> bool:
        return stem(key) in self._keys

    def of(self, key: str) -> Map:
        """float32 (H, W) metres of a label's key, NaN where unknown.

        Raises:
            UserError: what is there is no such map.
            OSError: the store failed.
        """
        name = self._keys[stem(key)]
        data = self._store.get(name)
        try:
            metres = _read_png(data) if name.endswith(".png") else np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, OSError, UnidentifiedImageError) as error:
            raise UserError(f"{self.url}/{name} cannot be read as true depth: {error}") from None
        if metres.ndim != 2 or metres.dtype.kind != "f":
            raise UserError(
                f"{self.url}/{name} has {metres.dtype} {metres.shape}: expected float32 (H, W) metres in .npy, or a 16-bit "
                "grey .png of millimetres"
            )
        return np.where(np.isfinite(metres) & (metres > 0), metres, np.nan).astype(np.float32)


def stem(key: str) -> str:
    return posixpath.splitext(key)[0]


def _read_png(data: bytes) -> NDArray:
    with Image.open(io.BytesIO(data)) as image:
        values = np.asarray(image)
        return values * MILLIMETRE if image.mode.startswith("I") else values


def relative_error(label: Label, truth: Map, farthest: float = FARTHEST) -> Map | None:
    """|depth - truth| / truth of each pixel of a label; its mean over what is known is the label's AbsRel.

    Disparity is aligned by the scale and shift that fit it best (`metrics.aligned_depth`), affine-invariant depth likewise in
    metres; metric labels are judged as they are.

    Args:
        label: with a depth.
        truth: (H, W) metres of any size, NaN where unknown; sampled at the centres of the label's pixels, so that no depth
            appears that is nowhere.
        farthest: metres; what lies beyond does not count, and labels are clipped to it.

    Returns:
        float32 (h, w) at the label's size, NaN where the truth is unknown; None where less than LEAST_SHARE is known.
    """
    if label.depth is None:
        raise ValueError(f"{label.key} has no depth")
    height, width = label.depth.shape
    metres = truth[_centres(height, truth.shape[0])[:, None], _centres(width, truth.shape[1])[None]]
    known = metres <= farthest  # False for NaN
    if known.mean() < LEAST_SHARE:
        return None
    said, true = label.depth[known], metres[known].astype(np.float64)
    if label.kind is Kind.DISPARITY:
        depth = aligned_depth(said, true, farthest)
    else:
        if label.kind is Kind.DEPTH:
            sides = np.stack([said, np.ones_like(said)], axis=1).astype(np.float64)
            scale, shift = np.linalg.lstsq(sides, true, rcond=None)[0]
            said = scale * said + shift
        depth = np.clip(said, SMALLEST_DISPARITY, farthest)
    error = np.full((height, width), np.nan, dtype=np.float32)
    error[known] = np.abs(depth - true) / true
    return error


def _centres(count: int, of: int) -> NDArray[np.int64]:
    """The places of `of` in which the middles of `count` lie."""
    return ((np.arange(count) + 0.5) * of / count).astype(np.int64)
