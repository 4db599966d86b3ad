"""Network sizes of the teachers from torch.hub.

They have their own module because read tasks need them, and need neither torch nor a repository's code. Each rule repeats the
published code's computation with its rounding, and says which part of the network's picture the image covers. Labels are
stored without the padding.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric3DSize:
    """Metric3D's size: the image scaled to fit 616 x 1064, aspect kept, sides rounded down.

    Source: `hubconf.py` of YvanYin/Metric3D, for its ViTs.
    """

    picture: tuple[int, int] = (616, 1064)

    def __call__(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of an image as displayed, in pixels -> its (height, width) in the network's picture."""
        scale = self.scale(height, width)
        return int(height * scale), int(width * scale)

    def scale(self, height: int, width: int) -> float:
        """The picture's pixels for each pixel of the image, before rounding. Focal lengths are scaled by it."""
        return min(self.picture[0] / height, self.picture[1] / width)


@dataclass(frozen=True, slots=True)
class Placement:
    """The place of an image in the picture that the network sees, in the picture's pixels, (y, x).

    Attributes:
        picture: (height, width) of the picture.
        corner: the image's upper left corner. It lies between pixels if the image was padded before it was scaled.
        extent: (height, width) of the image.
        scale: the factor from focal lengths in the image to focal lengths in the picture.
        centre: the image's principal point (its middle), scaled and shifted as the published code does it.
    """

    picture: tuple[int, int]
    corner: tuple[float, float]
    extent: tuple[float, float]
    scale: float
    centre: tuple[float, float]


@dataclass(frozen=True, slots=True)
class UniDepthV1Size:
    """UniDepth v1's size: the image scaled to fit 462 x 616, aspect kept.

    Source: `unidepth/models/unidepthv1/unidepthv1.py`, both configurations.
    """

    picture: tuple[int, int] = (462, 616)

    def __call__(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of an image as displayed, in pixels -> its (height, width) in the network's picture."""
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
    """UniDepth v2's size: the image is padded to an aspect within bounds and scaled to an area within bounds.

    Each side is rounded up to a multiple of 14. Source: `get_paddings` and `get_resize_factor` in
    `unidepth/models/unidepthv2/unidepthv2.py`. The bounds are those of the three configurations
    (`configs/config_v2_*.json`), without a `resolution_level`.

    Attributes:
        aspects: smallest and largest width over height.
        areas: smallest and largest number of pixels.
        multiple: side of a patch.
    """

    aspects: tuple[float, float] = (0.5, 2.5)
    areas: tuple[int, int] = (200_000, 600_000)
    multiple: int = 14

    def __call__(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of an image as displayed, in pixels -> its (height, width) in the network's picture."""
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
        """The (height, width) of the image with its padding, in the image's pixels.

        There is no padding if the aspect is within the bounds. The published code computes `int(height * (width / height))` in
        that case. For 4 % of all sizes (such as 500 wide, 333 high) the result is `width` - 1, and the published code returns
        one column of depth.
        """
        aspect = width / height
        if aspect > self.aspects[1]:
            return int(width / self.aspects[1]), width
        return height, max(width, int(height * self.aspects[0]))

    def _side(self, length: float) -> int:
        return math.ceil(int(length) / self.multiple) * self.multiple
