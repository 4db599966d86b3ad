"""How many samples may fail before a run is judged to be going wrong (`--max-failed`)."""

from dataclasses import dataclass

JUDGED_FROM = 1000
"""A share is judged once so many samples are done, or all of a smaller plan: a few bad files at the start end no run."""


@dataclass(frozen=True, slots=True)
class FailureBudget:
    """A count of samples, or a share of those that are done, in [0, 1]; the other one is None."""

    count: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> "FailureBudget":
        """`"100"` or `"2%"`."""
        return cls(share=float(text[:-1]) / 100) if text.endswith("%") else cls(count=int(text))

    def exceeded(self, failed: int, done: int, planned: int) -> bool:
        """Whether `failed` of `done` samples are too many, in a plan of `planned`."""
        if self.count is not None:
            return failed > self.count
        assert self.share is not None  # noqa: S101 - one of the two
        return done >= min(JUDGED_FROM, planned) and failed > self.share * done
