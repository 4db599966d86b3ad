"""The official preprocessing of Depth Anything V2: network size, bicubic resize, ImageNet normalisation.

The reference is `image2tensor` of the official repository (`depth_anything_v2/dpt.py`, `util/transform.py`): RGB / 255
in float64, `cv2.resize(INTER_CUBIC)` to the size of `OfficialSize`, then (x - mean) / std. What OpenCV (checked: 5.0.0)
computes there, and the taps here reproduce to 2e-6 in normalised units:

- no antialiasing: 4 x 4 taps an output pixel whatever the ratio, a = -0.75, taps beyond the border repeat the border;
- an output pixel d reads at (d + 0.5) * ratio - 0.5, computed in double and then rounded to float32 before it is split
  into tap and fraction. At 4000 px that moves the grid by up to 1.2e-4 px, on hard edges 1.3e-3 normalised: a
  resize whose coordinates are not so rounded (OpenCV 5's float32 path) is not within 1e-3 of the official one.

Three implementations, because no one is fast everywhere:

- accelerators: `gather_resize`, one batched computation for any mix of source sizes;
- CPU, sides up to `_CV2_SIDE`: cv2.resize on float32;
- CPU, larger: two separable passes over strips that touch only the source rows that some tap reads, and stay in cache.

Nothing here sets a global. OpenCV and torch each run as many threads as the process was told to (`cv2.setNumThreads`,
`torch.set_num_threads`): a caller that runs several processes a machine sets both.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from da2ray.teachers.base import PixelBatch

MEAN = (0.485, 0.456, 0.406)
"""ImageNet mean of R, G, B in [0, 1], from the official `dpt.py`."""

STD = (0.229, 0.224, 0.225)
"""ImageNet standard deviation of R, G, B in [0, 1], from the official `dpt.py`."""

_CV2_SIDE = 2048
# Up to this side cv2.resize on float32 is within 7e-4 of the official float64 one on the worst image there is,
# black and white noise (1.0e-3 at 2592, 1.3e-3 at 4000), and up to four times as fast as the strips; at 4000 they
# are even.

_STRIP = 16
# Output rows a strip: 8 to 32 are within 5 % of each other from 0.2 to 12 MP; fewer pay per call, more leave the cache.


def preprocess(batch: PixelBatch) -> Tensor:
    """The network's input for a micro-batch.

    Args:
        batch: images of any source sizes. Where `batch.scaled` is False the result is within 1e-3 (normalised units) of
            the official preprocessing. Where it is True, on CPU, the resize is cv2's on uint8, which rounds and
            saturates; on other devices it is the same as for False, for there it costs no more.

    Returns:
        float32 (N, 3, h, w) on the device of `batch.pixels`, contiguous, (h, w) = `batch.size`.
    """
    if batch.pixels.device.type != "cpu":
        return gather_resize(batch.pixels, sampling_tables(batch.shapes, batch.size, batch.pixels.device))
    out = torch.empty((len(batch), 3, *batch.size), dtype=torch.float32)
    for image, planes in zip(batch.images(), out, strict=True):
        if batch.scaled:
            _resize_uint8(image, planes)
        elif max(image.shape[:2]) <= _CV2_SIDE:
            _resize_float(image, planes)
        else:
            _resize_strips(image, planes)
    return out


# ---------------------------------------------------------------------------------------------------- accelerators


class SamplingTables(NamedTuple):
    """Where the taps of a batch lie and what they weigh; N images, output h x w, 4 taps a side.

    Attributes:
        rows: int64 (N, h, 4), number of the first pixel of the tap's row, counted over the whole flat buffer.
        columns: int64 (N, w, 4), pixels from there to the tap.
        row_weights, column_weights: float32 (N, h, 4) and (N, w, 4); each four add up to 1.
    """

    rows: Tensor
    columns: Tensor
    row_weights: Tensor
    column_weights: Tensor


def sampling_tables(
    shapes: Sequence[tuple[int, int]], size: tuple[int, int], device: torch.device | str
) -> SamplingTables:
    """Tables for `gather_resize`, computed on `device` from the images' (H, W) and the network's (h, w)."""
    areas = np.array([height * width for height, width in shapes], dtype=np.int64)
    host = np.column_stack([np.array(shapes, dtype=np.int64), np.cumsum(areas) - areas])
    sizes = torch.from_numpy(host)
    if torch.device(device).type == "cuda":  # from pageable memory the copy would wait for all that is queued
        sizes = sizes.pin_memory()
    heights, widths, starts = sizes.to(device, non_blocking=True).unbind(1)  # one copy for the three
    rows, row_weights = _taps(heights, size[0])
    columns, column_weights = _taps(widths, size[1])
    rows = rows * widths[:, None, None] + starts[:, None, None]
    return SamplingTables(rows, columns, row_weights, column_weights)


def gather_resize(pixels: Tensor, tables: SamplingTables) -> Tensor:
    """Bicubic resize and normalisation of images of different sizes in one computation, on any device.

    A pure function of tensors without data-dependent control flow, so that torch.compile can turn it into one kernel
    that keeps the sums in registers, where eager mode passes over memory once a tap.

    Args:
        pixels: uint8, 1-D: the images' H x W x 3 RGB values one after another.
        tables: of the same images, on the same device.

    Returns:
        float32 (N, 3, h, w), contiguous, normalised.
    """
    rgb = pixels.view(-1, 3)
    count, height, width = len(tables.rows), tables.rows.shape[1], tables.columns.shape[1]
    total = torch.zeros((count, height, width, 3), device=pixels.device)
    for rows, row_weights in zip(tables.rows.unbind(2), tables.row_weights.unbind(2), strict=True):
        line = torch.zeros_like(total)
        for columns, column_weights in zip(tables.columns.unbind(2), tables.column_weights.unbind(2), strict=True):
            tap = rgb[rows[:, :, None] + columns[:, None, :]]
            line.addcmul_(tap, column_weights[:, None, :, None])
        total.addcmul_(line, row_weights[:, :, None, None])
    planes = total.permute(0, 3, 1, 2).contiguous()
    gain, bias = _normalisation(pixels.device)
    return planes.mul_(gain).add_(bias)


# ------------------------------------------------------------------------------------------------------------- CPU


def _resize_float(image: Tensor, planes: Tensor) -> None:
    """uint8 (H, W, 3) -> `planes`, float32 (3, h, w), normalised: cv2.resize on float32."""
    height, width = planes.shape[1:]
    resized = cv2.resize(image.numpy().astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    _split(resized, planes)
    _normalise(planes)


def _resize_uint8(image: Tensor, planes: Tensor) -> None:
    """The same on uint8.

    INTER_CUBIC, not INTER_AREA: at ratios of 1 to 2 it is six times as fast and, after a JPEG decode at a reduced
    scale, nearer to the official result (mean difference 0.012 to 0.018 against 0.022 to 0.027, three photographs).
    """
    height, width = planes.shape[1:]
    resized = cv2.resize(image.numpy(), (width, height), interpolation=cv2.INTER_CUBIC)
    split = torch.empty((3, height, width), dtype=torch.uint8)
    _split(resized, split)
    planes.copy_(split)
    _normalise(planes)


def _resize_strips(image: Tensor, planes: Tensor) -> None:
    """The same as two passes of `embedding_bag`: a weighted sum of table rows, vectorised, for each bag of indices.

    Rows of the image are the table of the vertical pass; columns, once transposed, that of the horizontal one. Beyond a
    ratio of 4 no tap reads some rows: they are never converted.
    """
    source_height, source_width = image.shape[:2]
    height, width = planes.shape[1:]
    row_taps, row_weights = _taps(torch.tensor([source_height]), height)
    column_taps, column_weights = _taps(torch.tensor([source_width]), width)
    lines = image.view(source_height, source_width * 3)
    for top in range(0, height, _STRIP):
        bottom = min(top + _STRIP, height)
        needed, bags = torch.unique(row_taps[0, top:bottom], return_inverse=True)
        vertical = F.embedding_bag(
            bags, lines[needed].float(), mode="sum", per_sample_weights=row_weights[0, top:bottom]
        )
        table = vertical.view(bottom - top, source_width, 3).permute(1, 2, 0).reshape(source_width, -1)
        strip = F.embedding_bag(column_taps[0], table, mode="sum", per_sample_weights=column_weights[0])
        planes[:, top:bottom] = strip.view(width, 3, bottom - top).permute(1, 2, 0)
    _normalise(planes)


def _split(image: NDArray, planes: Tensor) -> None:
    """(h, w, 3) -> the (3, h, w) tensor `planes` of the same type, in place: OpenCV writes into what it is given."""
    cv2.split(image, list(planes.numpy()))


def _normalise(planes: Tensor) -> None:
    gain, bias = _normalisation(planes.device)
    planes.mul_(gain).add_(bias)


# ------------------------------------------------------------------------------------------------------------ both


def _taps(lengths: Tensor, out: int) -> tuple[Tensor, Tensor]:
    """Taps along one side: int64 (N,) source lengths -> (N, out, 4) int64 positions and float32 weights.

    Follows `cv::resize` (`resizeGeneric` with `interpolateCubic`) operation by operation: see the module's docstring.
    """
    ratio = 1.0 / (out / lengths.double())
    destination = torch.arange(out, dtype=torch.float64, device=lengths.device)
    centre = ((destination + 0.5) * ratio[:, None] - 0.5).float()
    left = centre.floor()
    x = centre - left
    a = -0.75
    before = ((a * (x + 1) - 5 * a) * (x + 1) + 8 * a) * (x + 1) - 4 * a
    at = ((a + 2) * x - (a + 3)) * x * x + 1
    after = ((a + 2) * (1 - x) - (a + 3)) * (1 - x) * (1 - x) + 1
    weights = torch.stack([before, at, after, 1 - before - at - after], dim=-1)
    taps = left.long()[..., None] + torch.arange(-1, 3, device=lengths.device)
    return taps.clamp_(min=0).minimum((lengths - 1)[:, None, None]), weights


@functools.cache
def _normalisation(device: torch.device) -> tuple[Tensor, Tensor]:
    """float32 (3, 1, 1) each: normalised = gain * (value in 0..255) + bias.

    Kept a device: a copy to an accelerator in every call would wait for all that is queued there.
    """
    with torch.inference_mode(False):
        mean, std = torch.tensor([MEAN, STD], dtype=torch.float64).view(2, 3, 1, 1)
        return (1 / (255 * std)).float().to(device), (-mean / std).float().to(device)
