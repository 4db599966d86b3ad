"""The network size of an image for Marigold. A file of its own: read tasks need it, and nothing else of the teacher."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LongSide:
    """The longer side becomes `resolution`, whether the image is larger or smaller; the other follows, rounded down.

    Source: diffusers 0.42, `MarigoldImageProcessor.resize_to_max_edge`. What the pipeline pads for its VAE is cut off
    again and is no part of a label. Where the shorter side would come to nothing, which diffusers refuses, it is 1.
    """

    resolution: int

    def __call__(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of an image as displayed, in pixels -> (height, width) of its label, in pixels."""
        longer = max(height, width)
        return max(height * self.resolution // longer, 1), max(width * self.resolution // longer, 1)
