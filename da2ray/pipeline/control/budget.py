"""How many samples may fail before a run is judged to be going wrong (`--max-failed`)."""

import re
from dataclasses import dataclass

JUDGED_FROM = 1000
"""A share is judged once this many samples are done, or all samples of a smaller plan. So a few bad files at the start do not
end a run."""


@dataclass(frozen=True, slots=True)
class FailureBudget:
    """Either a count of samples, or a share (0 to 1) of the samples that are done; the other one is None.

    Written as `100` or as `2%`.
    """

    count: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> "FailureBudget":
        """Read `"100"` or `"2%"`.

        Raises:
            ValueError: the text is neither a count nor a share.
        """
        if re.fullmatch(r"[0-9]{1,18}", text):
            return cls(count=int(text))
        if re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,12})?%", text) and float(text[:-1]) <= 100:
            return cls(share=float(text[:-1]) / 100)
        raise ValueError("must be a count such as 100, or a share such as 2%")

    def __str__(self) -> str:
        return f"{self.share * 100:.12g}%" if self.share is not None else str(self.count)

    def exceeded(self, failed: int, done: int, planned: int) -> bool:
        """Whether `failed` of `done` samples are too many, in a plan of `planned` samples."""
        if self.count is not None:
            return failed > self.count
        assert self.share is not None  # noqa: S101 - one of the two
        return done >= min(JUDGED_FROM, planned) and failed > self.share * done
