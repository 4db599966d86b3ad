"""The network size of an image. It has its own module because read tasks need nothing else of the teacher."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OfficialSize:
    """The official network size: the short side becomes `short_side`, and both sides become multiples of `multiple`.

    The aspect is kept up to rounding. Both sides are scaled by the same factor and rounded to the nearest multiple (halves
    to even multiples, like np.round). A side that would end below `short_side` is rounded up instead. Source:
    `Resize.get_size` with `resize_method="lower_bound"` in `util/transform.py`.
    """

    short_side: int = 518
    multiple: int = 14

    def __call__(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of an image as displayed, in pixels -> (height, width) of the network's input, in pixels."""
        scale = max(self.short_side / height, self.short_side / width)
        return self._side(scale * height), self._side(scale * width)

    def _side(self, length: float) -> int:
        nearest = round(length / self.multiple) * self.multiple
        return nearest if nearest >= self.short_side else math.ceil(length / self.multiple) * self.multiple
