"""How many teacher actors a run may have (`--actors`)."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ActorRange:
    """The fewest and the most actors: 1 <= low <= high. Written as `2:8`, or as `4` for a fixed number."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> "ActorRange":
        """Read `"2:8"` or `"4"`.

        Raises:
            ValueError: the text is not a range of at least one actor.
        """
        found = re.fullmatch(r"([0-9]{1,9})(?::([0-9]{1,9}))?", text)
        low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= low <= high:
            raise ValueError("must be MIN:MAX with 1 <= MIN <= MAX, or one number above 0")
        return cls(low, high)

    def __str__(self) -> str:
        return f"{self.low}:{self.high}" if self.low < self.high else str(self.low)
