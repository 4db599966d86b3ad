"""Network sizes of transformers' image processors. A file of its own: read tasks need it, and neither torch nor transformers.

Each rule gives what the processor of that name makes of an image (transformers 5.23, `models/*/image_processing_*.py`), but
never zero: where the processor rounds a side down to nothing, it refuses the image itself.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ScaledSize:
    """`DPTImageProcessor` and `ZoeDepthImageProcessor`: towards (height, width), to multiples.

    Attributes:
        height, width: the size asked for, in pixels.
        multiple: each side becomes the nearest multiple of it, halves to the even one.
        keep_aspect: both sides are scaled alike, by that of the two factors that is nearer to 1.
        padded: the image is padded as `reflected` says before it is scaled.
    """

    height: int
    width: int
    multiple: float = 1
    keep_aspect: bool = False
    padded: bool = False

    def __call__(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of an image as displayed, in pixels -> (height, width) of the network's input, in pixels."""
        if self.padded:
            height, width = height + 2 * reflected(height), width + 2 * reflected(width)
        down, across = self.height / height, self.width / width
        if self.keep_aspect:
            down = across = across if abs(1 - across) < abs(1 - down) else down
        return self._side(down * height), self._side(across * width)

    def _side(self, length: float) -> int:
        return int(round(length / self.multiple) * self.multiple) or math.ceil(self.multiple)


@dataclass(frozen=True, slots=True)
class FixedSize:
    """`DepthProImageProcessor`: every image is stretched to one size, in pixels."""

    height: int
    width: int

    def __call__(self, height: int, width: int) -> tuple[int, int]:  # noqa: ARG002 - a size rule's arguments
        return self.height, self.width


@dataclass(frozen=True, slots=True)
class FlooredSize:
    """`GLPNImageProcessor`: the image's own size, each side rounded down to a multiple of `divisor`."""

    divisor: int

    def __call__(self, height: int, width: int) -> tuple[int, int]:
        return max(height // self.divisor, 1) * self.divisor, max(width // self.divisor, 1) * self.divisor


def reflected(length: int) -> int:
    """Pixels by which ZoeDepth extends a side of that length at both of its ends, by reflection."""
    return int(math.sqrt(length / 2) * 3)
