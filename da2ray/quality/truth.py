"""Ground truth beside a dataset, and how far a label is from it."""

import io
import posixpath
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from da2ray.errors import UserError
from da2ray.labels.reader import Label
from da2ray.quality.depth_metrics import FARTHEST, LEAST_SHARE, Values, affine_fit, aligned_depth
from da2ray.storage import Client, open_store
from da2ray.teachers.base import Kind

NEAREST = 1e-3
"""Metres to which affine-invariant and metric labels are clipped."""
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
        except (ValueError, OSError, EOFError, UnidentifiedImageError) as error:  # EOFError: of an empty .npy
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


class ErrorKind(StrEnum):
    """What is counted as the error of a pixel; an image's is the mean.

    `abs_rel` is what benchmarks report: it lies in what is far, and a flat wall has next to none whatever the label says.
    `disparity` is what students see, whose loss has no regard for scale and shift: 1 is a label that says nothing.
    """

    ABS_REL = "abs_rel"  # |depth - truth| / truth
    DISPARITY = "disparity"  # |1 / depth - 1 / truth| / mean|1 / truth - its median|


def pixel_errors(label: Label, truth: Map, kind: ErrorKind, farthest: float = FARTHEST) -> Map | None:
    """How wrong each pixel of a label is.

    Disparity is aligned by the scale and shift that fit it best (`metrics.aligned_depth`), affine-invariant depth likewise in
    metres; metric labels are judged as they are.

    Args:
        label: with a depth.
        truth: (H, W) metres of any size, NaN where unknown; sampled at the centres of the label's pixels, so that no depth
            appears that is nowhere.
        farthest: metres; what lies beyond does not count, and labels are clipped to it.

    Returns:
        float32 (h, w) at the label's size, NaN where the truth is unknown; None where less than LEAST_SHARE is known, or
        where the truth is constant and the error in units of its deviation.
    """
    if label.depth is None:
        raise ValueError(f"{label.key} has no depth")
    height, width = label.depth.shape
    metres = truth[_centres(height, truth.shape[0])[:, None], _centres(width, truth.shape[1])[None]]
    known = metres <= farthest  # False for NaN
    if known.mean() < LEAST_SHARE:
        return None
    true = metres[known].astype(np.float64)
    depth = _as_metres(label, label.depth[known], true, farthest)
    errors = np.full((height, width), np.nan, dtype=np.float32)
    if kind is ErrorKind.ABS_REL:
        errors[known] = np.abs(depth - true) / true
        return errors
    deviation = np.abs(1 / true - np.median(1 / true)).mean()
    if deviation == 0:
        return None
    errors[known] = np.abs(1 / depth - 1 / true) / deviation
    return errors


def _as_metres(label: Label, said: Values, true: Values, farthest: float) -> Values:
    """(P,) values of a label, aligned to the truth where they are relative."""
    if label.kind is Kind.DISPARITY:
        return aligned_depth(said, true, farthest)
    if label.kind is Kind.DEPTH:
        scale, shift = affine_fit(said, true)
        said = scale * said + shift
    return np.clip(said, NEAREST, farthest)


def _centres(count: int, of: int) -> NDArray[np.int64]:
    """The places of `of` in which the middles of `count` lie."""
    return ((np.arange(count) + 0.5) * of / count).astype(np.int64)
