"""Network sizes of transformers' image processors.

They have their own module because read tasks need them, and need neither torch nor transformers. Each rule returns the size to
which the processor of that name resizes an image (transformers 5.23, `models/*/image_processing_*.py`), but never zero: the
library refuses an image if its processor rounds a side down to zero.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ScaledSize:
    """The rule of `DPTImageProcessor` and `ZoeDepthImageProcessor`: scale towards (height, width), and round to multiples.

    Attributes:
        height, width: the requested size, in pixels.
        multiple: each side becomes the nearest multiple of it; halves go to the even multiple.
        keep_aspect: whether both sides are scaled by the same factor: by the one of the two that is nearer to 1.
        padded: whether `reflected` pixels are added at both ends of each side before the image is scaled.
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
    """The rule of `DepthProImageProcessor`: stretch every image to one size, in pixels."""

    height: int
    width: int

    def __call__(self, height: int, width: int) -> tuple[int, int]:  # noqa: ARG002 - a size rule's arguments
        return self.height, self.width


@dataclass(frozen=True, slots=True)
class FlooredSize:
    """The rule of `GLPNImageProcessor`: the image's own size, with each side rounded down to a multiple of `divisor`."""

    divisor: int

    def __call__(self, height: int, width: int) -> tuple[int, int]:
        return max(height // self.divisor, 1) * self.divisor, max(width // self.divisor, 1) * self.divisor


def reflected(length: int) -> int:
    """Pixels by which ZoeDepth extends a side of this length at each of its two ends, by reflection."""
    return int(math.sqrt(length / 2) * 3)
