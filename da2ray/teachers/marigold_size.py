"""The network size of an image for Marigold. It has its own module because read tasks need nothing else of the teacher."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LongSide:
    """Marigold's size: the longer side becomes `resolution`, for larger and smaller images; the other is rounded down.

    Source: diffusers 0.42, `MarigoldImageProcessor.resize_to_max_edge`. The pipeline pads for its VAE and cuts the padding off
    again, so it is not part of a label. A shorter side that would become 0, which diffusers refuses, becomes 1.
    """

    resolution: int

    def __call__(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of an image as displayed, in pixels -> (height, width) of its label, in pixels."""
        longer = max(height, width)
        return max(height * self.resolution // longer, 1), max(width * self.resolution // longer, 1)
