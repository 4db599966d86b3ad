"""Sizes of the teachers from torch.hub. A file of its own: read tasks need it, and neither torch nor a hub's code.

Each rule repeats what the published code computes, rounding included, and says which part of the network's picture the
image takes up: labels are stored without the padding.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric3DSize:
    """The image scaled into 616 x 1064, aspect kept, sides rounded down (`hubconf.py` of YvanYin/Metric3D, for its ViTs)."""

    picture: tuple[int, int] = (616, 1064)

    def __call__(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of an image as displayed, in pixels -> (height, width) that it has in the network's picture."""
        scale = self.scale(height, width)
        return int(height * scale), int(width * scale)

    def scale(self, height: int, width: int) -> float:
        """Pixels of the picture for a pixel of the image, before rounding: focal lengths are scaled by it."""
        return min(self.picture[0] / height, self.picture[1] / width)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an image lies in the picture that the network sees; all in the picture's pixels, (y, x).

    Attributes:
        picture: (height, width) of the picture.
        corner: of the image, upper left; between pixels where the image was padded before it was scaled.
        extent: (height, width) of the image.
        scale: focal lengths in the picture are those in the image times this.
        centre: the image's principal point, its middle, as the published code scales and shifts it.
    """

    picture: tuple[int, int]
    corner: tuple[float, float]
    extent: tuple[float, float]
    scale: float
    centre: tuple[float, float]


@dataclass(frozen=True, slots=True)
class UniDepthV1Size:
    """The image scaled into 462 x 616, aspect kept (`unidepth/models/unidepthv1/unidepthv1.py`, both configurations)."""

    picture: tuple[int, int] = (462, 616)

    def __call__(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of an image as displayed, in pixels -> (height, width) that it has in the network's picture."""
        scale = self._scale(height, width)
        return math.ceil(height * scale - 0.5), math.ceil(width * scale - 0.5)

    def place(self, height: int, width: int) -> Placement:
        scale, extent = self._scale(height, width), self(height, width)
        top, left = ((side - inner) // 2 for side, inner in zip(self.picture, extent, strict=True))
        return Placement(self.picture, (top, left), extent, scale, (height / 2 * scale + top, width / 2 * scale + left))

    def _scale(self, height: int, width: int) -> float:
        rows, columns = self.picture
        return rows / height if columns / rows > width / height else columns / width


@dataclass(frozen=True, slots=True)
class UniDepthV2Size:
    """The image padded to an aspect in bounds, then scaled to an area in bounds, each side up to a multiple of 14.

    Source: `get_paddings` and `get_resize_factor` in `unidepth/models/unidepthv2/unidepthv2.py`; the bounds are those of the
    three configurations (`configs/config_v2_*.json`), with no `resolution_level` set.

    Attributes:
        aspects: least and most width over height.
        areas: least and most pixels.
        multiple: side of a patch.
    """

    aspects: tuple[float, float] = (0.5, 2.5)
    areas: tuple[int, int] = (200_000, 600_000)
    multiple: int = 14

    def __call__(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of an image as displayed, in pixels -> (height, width) that it has in the network's picture."""
        place = self.place(height, width)
        rows, columns = (round(side) for side in place.extent)
        return rows, columns

    def place(self, height: int, width: int) -> Placement:
        padded_height, padded_width = self.padded(height, width)
        top, left = (padded_height - height) // 2, (padded_width - width) // 2
        pixels = padded_height * padded_width
        scale = (min(self.areas[1], max(self.areas[0], pixels)) / pixels) ** 0.5
        rows, columns = self._side(padded_height * scale), self._side(padded_width * scale)
        down, across = rows / padded_height, columns / padded_width
        return Placement(
            picture=(rows, columns),
            corner=(top * down, left * across),
            extent=(height * down, width * across),
            scale=scale,
            centre=((height / 2 + top) * scale, (width / 2 + left) * scale),
        )

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the image with its padding, in the image's pixels.

        Within bounds there is none. The published code computes `int(height * (width / height))` there, which is one below
        `width` for 4 % of all sizes (such as 500 wide, 333 high); it then returns one column of depth.
        """
        aspect = width / height
        if aspect > self.aspects[1]:
            return int(width / self.aspects[1]), width
        return height, max(width, int(height * self.aspects[0]))

    def _side(self, length: float) -> int:
        return math.ceil(int(length) / self.multiple) * self.multiple
