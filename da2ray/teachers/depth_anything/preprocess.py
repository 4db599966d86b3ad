"""The official preprocessing of Depth Anything V2: network size, bicubic resize, ImageNet normalisation.

The reference is `image2tensor` of the official repository (`depth_anything_v2/dpt.py`, `util/transform.py`): RGB / 255
in float64, `cv2.resize(INTER_CUBIC)` to the size of `OfficialSize`, then (x - mean) / std. The taps in this module reproduce
what OpenCV (checked: 5.0.0) computes there to 2e-6 in normalised units:

- There is no antialiasing: an output pixel has 4 x 4 taps at any ratio, with a = -0.75. Taps beyond the border repeat it.
- An output pixel d reads at (d + 0.5) * ratio - 0.5. OpenCV computes this in double and rounds it to float32 before it
  splits it into tap and fraction. At 4000 px the rounding moves the grid by up to 1.2e-4 px, which is 1.3e-3 normalised on
  hard edges. A resize that does not round its coordinates so (OpenCV 5's float32 path) is not within 1e-3 of the official one.

There are three implementations, because none is fast everywhere:

- Accelerators run `gather_resize`, one batched computation for any mix of source sizes.
- A CPU runs cv2.resize on float32 for sides up to `_CV2_SIDE`.
- For larger images a CPU runs two separable passes over strips. They touch only source rows that a tap reads, and stay in
  cache.

Nothing here sets a global. OpenCV and torch each run as many threads as the process allows them (`cv2.setNumThreads`,
`torch.set_num_threads`). A caller that runs several processes on a machine must set both.
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
# Up to this side, cv2.resize on float32 is within 7e-4 of the official float64 resize on the worst image, black and white
# noise (1.0e-3 at 2592, 1.3e-3 at 4000). It is up to four times as fast as the strips; at 4000 both are equally fast.

_STRIP = 16
# Output rows in a strip. From 0.2 to 12 MP, 8 to 32 rows are within 5 % of each other. With fewer rows the cost of each call
# shows; with more, a strip leaves the cache.


def preprocess(batch: PixelBatch) -> Tensor:
    """Compute the network's input for a micro-batch.

    Args:
        batch: images of any source sizes. If `batch.scaled` is False, the result is within 1e-3 (normalised units) of the
            official preprocessing. If it is True, a CPU uses cv2's resize on uint8, which rounds and saturates; other
            devices resize as for False, because it costs no more there.

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
    """The positions and weights of a batch's taps, for N images, an output of h x w and 4 taps a side.

    Attributes:
        rows: int64 (N, h, 4), the index of the first pixel in the tap's row, counted over the whole flat buffer.
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
    """Compute the tables for `gather_resize` on `device` from the images' (H, W) and the network's (h, w)."""
    areas = np.array([height * width for height, width in shapes], dtype=np.int64)
    host = np.column_stack([np.array(shapes, dtype=np.int64), np.cumsum(areas) - areas])
    sizes = torch.from_numpy(host)
    if torch.device(device).type == "cuda":  # a copy from pageable memory would wait for all queued work
        sizes = sizes.pin_memory()
    heights, widths, starts = sizes.to(device, non_blocking=True).unbind(1)  # one copy for the three
    rows, row_weights = _taps(heights, size[0])
    columns, column_weights = _taps(widths, size[1])
    rows = rows * widths[:, None, None] + starts[:, None, None]
    return SamplingTables(rows, columns, row_weights, column_weights)


def gather_resize(pixels: Tensor, tables: SamplingTables) -> Tensor:
    """Resize (bicubic) and normalise images of different sizes in one computation, on any device.

    This is a pure function of tensors without data-dependent control flow, so that torch.compile can turn it into one kernel
    that keeps the sums in registers. Eager mode passes over memory once for each tap.

    Args:
        pixels: uint8, 1-D: the images' H x W x 3 RGB values one after another.
        tables: the tables of the same images, on the same device.

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
    """Resize uint8 (H, W, 3) into `planes`, float32 (3, h, w), with cv2.resize on float32, and normalise."""
    height, width = planes.shape[1:]
    resized = cv2.resize(image.numpy().astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    _split(resized, planes)
    _normalise(planes)


def _resize_uint8(image: Tensor, planes: Tensor) -> None:
    """Resize uint8 (H, W, 3) into `planes` with cv2.resize on uint8, and normalise.

    It uses INTER_CUBIC instead of INTER_AREA. At ratios of 1 to 2, INTER_CUBIC is six times as fast and, after a JPEG decode
    at a reduced scale, nearer to the official result (mean difference 0.012 to 0.018 against 0.022 to 0.027, on three
    photographs).
    """
    height, width = planes.shape[1:]
    resized = cv2.resize(image.numpy(), (width, height), interpolation=cv2.INTER_CUBIC)
    split = torch.empty((3, height, width), dtype=torch.uint8)
    _split(resized, split)
    planes.copy_(split)
    _normalise(planes)


def _resize_strips(image: Tensor, planes: Tensor) -> None:
    """Resize uint8 (H, W, 3) into `planes` with two passes of `embedding_bag`, and normalise.

    `embedding_bag` computes a weighted sum of table rows for each bag of indices, vectorised. The image's rows are the table
    of the vertical pass; its transposed columns are the table of the horizontal pass. Beyond a ratio of 4 no tap reads some
    of the rows, and they are never converted.
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
    """Copy (h, w, 3) into the (3, h, w) tensor `planes` of the same type. OpenCV writes into the arrays that it is given."""
    cv2.split(image, list(planes.numpy()))


def _normalise(planes: Tensor) -> None:
    gain, bias = _normalisation(planes.device)
    planes.mul_(gain).add_(bias)


# ------------------------------------------------------------------------------------------------------------ both


def _taps(lengths: Tensor, out: int) -> tuple[Tensor, Tensor]:
    """The taps along one side: int64 (N,) source lengths -> (N, out, 4) int64 positions and float32 weights.

    The computation follows `cv::resize` (`resizeGeneric` with `interpolateCubic`) operation by operation; see the module's
    docstring.
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
    """The gain and bias of normalised = gain * (value in 0..255) + bias, float32 (3, 1, 1) each.

    The result is cached for each device: a copy to an accelerator in every call would wait for all work queued there.
    """
    with torch.inference_mode(False):
        mean, std = torch.tensor([MEAN, STD], dtype=torch.float64).view(2, 3, 1, 1)
        return (1 / (255 * std)).float().to(device), (-mean / std).float().to(device)
