"""Ground truth for a dataset, and the error of a label against it."""

import io
import os
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
"""The least metres to which affine-invariant and metric labels are clipped."""
SUFFIXES = (".npy", ".png")
MILLIMETRE = np.float32(1e-3)

Map = NDArray[np.float32]


class Truth:
    """True depth below a URL: files named as a label's key with the suffix `.npy` or `.png`.

    `.npy` holds float (H, W) metres, `.png` 16-bit millimetres. Maps may have any size and have the aspect of the image. 0, NaN
    and infinity mean unknown.
    """

    def __init__(self, url: str | os.PathLike[str], client: Client = "auto") -> None:
        self._store = open_store(url, client)
        self.url = self._store.url
        # A listing takes a request for each thousand files; asking for each label would take one for each label.
        found = (key for batch in self._store.list() for key in batch["key"].to_pylist())
        self._keys = {stem(key): key for key in found if key.endswith(SUFFIXES)}

    def has(self, key: str) -> bool:
        return stem(key) in self._keys

    def of(self, key: str) -> Map:
        """Read the true depth of a label's key: float32 (H, W) metres, NaN where unknown.

        Raises:
            UserError: the file is not such a map.
            OSError: the store failed.
        """
        name = self._keys[stem(key)]
        data = self._store.get(name)
        try:
            metres = _read_png(data) if name.endswith(".png") else np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, OSError, EOFError, UnidentifiedImageError) as error:  # EOFError: an empty .npy
            raise UserError(f"{self.url}/{name} cannot be read as true depth: {error}") from None
        if metres.ndim != 2 or metres.dtype.kind != "f":
            raise UserError(
                f"{self.url}/{name} is {metres.dtype} {metres.shape}: it must be float32 (H, W) metres in .npy, or "
                "millimetres in a 16-bit grey .png"
            )
        return np.where(np.isfinite(metres) & (metres > 0), metres, np.nan).astype(np.float32)


def stem(key: str) -> str:
    return posixpath.splitext(key)[0]


def _read_png(data: bytes) -> NDArray:
    with Image.open(io.BytesIO(data)) as image:
        values = np.asarray(image)
        return values * MILLIMETRE if image.mode.startswith("I") else values


class ErrorKind(StrEnum):
    """How the error of a pixel is measured; an image's error is the mean.

    Benchmarks report `abs_rel`. It is dominated by far pixels, and a flat wall has next to none whatever the label says.
    Students see `disparity`, because their loss ignores scale and shift. A label that says nothing has a `disparity` error of 1.
    """

    ABS_REL = "abs_rel"  # |depth - truth| / truth
    DISPARITY = "disparity"  # |1 / depth - 1 / truth| / mean|1 / truth - its median|


def pixel_errors(label: Label, truth: Map, kind: ErrorKind, farthest: float = FARTHEST) -> Map | None:
    """Measure how wrong each pixel of a label is.

    Disparity is aligned by the scale and shift that fit best (`depth_metrics.aligned_depth`), affine-invariant depth likewise in
    metres. Metric labels are judged as they are.

    Args:
        label: a label that has a depth.
        truth: (H, W) metres of any size, NaN where unknown. It is sampled at the centres of the label's pixels, so that no depth
            appears that is not in it.
        farthest: metres beyond which pixels do not count, and to which labels are clipped.

    Returns:
        float32 (h, w) at the label's size, NaN where the truth is unknown. None if less than LEAST_SHARE of it is known, or if
        the truth is constant and errors are measured in units of its deviation.
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
    """Convert (P,) values of a label to metres; relative values are aligned to the truth."""
    if label.kind is Kind.DISPARITY:
        return aligned_depth(said, true, farthest)
    if label.kind is Kind.DEPTH:
        scale, shift = affine_fit(said, true)
        said = scale * said + shift
    return np.clip(said, NEAREST, farthest)


def _centres(count: int, of: int) -> NDArray[np.int64]:
    """For each of `count` pixels, the pixel of `of` that contains its centre."""
    return ((np.arange(count) + 0.5) * of / count).astype(np.int64)
