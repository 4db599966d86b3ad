"""Judge scores and masks by true errors: the numbers of a calibration, its proposals and its verdicts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from da2ray.labels.schema import SCORE_COLUMNS
from da2ray.labels.scores import SCORES as MEANINGS
from da2ray.labels.scores import Bad
from da2ray.quality.depth_metrics import auroc, spearman
from da2ray.quality.opinions import PASSES

WORST = 0.1
"""Share of the images that a score should find: those with the largest true error."""
LEAST_AUROC = 0.65
"""The least AUROC of a score that is worth it: between chance (0.5) and acceptable (0.7, Hosmer and Lemeshow)."""
STANDARD_ERRORS = 2.0
"""Standard errors by which the AUROC must lie above 0.5."""
LEAST_WORST = 10
"""The fewest images in the worst tenth for any score to be worth it: a score may find two by chance."""
LEAST_GAIN = 0.03
"""AUROC by which a score that costs forward passes must beat the best score that costs none."""
LEAST_AURG = 0.1
"""The least AURG of a mask that is worth it: a tenth of the mean error, on average over the shares removed."""
RULE = (
    f"A score is worth it if its AUROC is at least {LEAST_AUROC} and {STANDARD_ERRORS:g} standard errors above 0.5, on "
    f"{LEAST_WORST} bad images or more, at the end that its meaning calls bad; if it costs passes, its AUROC must also be "
    f"{LEAST_GAIN} above the best that costs none. A mask is worth it if its AURG is at least {LEAST_AURG}."
)
"""The rule in words."""

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ScoreCalibration:
    """How well a score predicts the true error.

    Attributes:
        name: name of the column.
        images: number of images that have the score.
        spearman: rank correlation with the true error; negative if low is bad.
        auroc: chance that an image of the worst tenth has a worse score than another image, by the end that is bad.
        standard_error: standard error of `auroc`.
        bad: the end at which the worst tenth lies, as found here.
        threshold: the cut with the largest sensitivity - false alarms (Youden's J).
        removes: share of images beyond the threshold.
        passes: forward passes that the score costs on top of the label's own.
        verdict: "yes", or "no" and why.
    """

    name: str
    images: int
    spearman: float
    auroc: float
    standard_error: float
    bad: Bad
    threshold: float
    removes: float
    passes: float
    verdict: str

    @property
    def rule(self) -> str:
        """The threshold as a rule for `--where`."""
        return f"{self.name} {'<' if self.bad is Bad.HIGH else '>'} {self.threshold:.4g}"


@dataclass(frozen=True, slots=True)
class MaskCalibration:
    """How well the masks predict the true error of pixels.

    Attributes:
        source: the opinions that made the confidence.
        images: number of images that have a mask.
        ause, aurg: means over the images (`sparsification`).
        levels: from the least sure to the surest.
        shares: share of the pixels with a true depth at each level.
        errors: mean true error at each level, over all images; NaN if no pixel is at a level.
    """

    source: str
    images: int
    ause: float
    aurg: float
    levels: tuple[int, ...]
    shares: tuple[float, ...]
    errors: tuple[float, ...]
    passes: float
    verdict: str

    @property
    def ratio(self) -> float:
        """Mean true error at the lowest level, divided by that at the highest."""
        return self.errors[0] / self.errors[-1] if self.errors[-1] else math.inf


@dataclass(frozen=True, slots=True)
class Measured:
    """An image with ground truth: the scores of its label, and how wrong the label is.

    Attributes:
        error: mean true error of its pixels.
        levels: number of pixels and sum of their errors at each level of its mask, (2, 2^bits); None without a mask.
        areas: AUSE and AURG of its mask; None without a mask or without any error.
    """

    key: str
    error: float
    scores: dict[str, float]
    levels: Values | None
    areas: tuple[float, float] | None


def judge_scores(
    measured: Sequence[Measured], errors: Values, worst: NDArray[np.bool_], mask_source: str
) -> tuple[list[ScoreCalibration], list[str]]:
    """Judge the scores: those that vary, the highest AUROC first, and the names of those that are constant."""
    found, constant = [], []
    for name in SCORE_COLUMNS.names:
        values = np.array([one.scores.get(name, np.nan) for one in measured])
        there = np.isfinite(values)
        if not there.any():
            continue
        if np.ptp(values[there]) == 0:
            constant.append(name)
        elif worst[there].any() and not worst[there].all():
            found.append(_judge(name, values[there], errors[there], worst[there], _passes(name, mask_source)))
    best_free = max((score.auroc for score in found if not score.passes), default=0.5)
    judged = [_with_verdict(score, best_free, enough=int(worst.sum()) >= LEAST_WORST) for score in found]
    return sorted(judged, key=lambda score: -score.auroc), constant


def _judge(name: str, values: Values, errors: Values, worst: NDArray[np.bool_], passes: float) -> ScoreCalibration:
    area = auroc(values, worst)
    bad = Bad.HIGH if area >= 0.5 else Bad.LOW
    threshold, removes = _best_cut(values if bad is Bad.HIGH else -values, worst)
    area = max(area, 1 - area)
    error = auroc_error(area, int(worst.sum()), int((~worst).sum()))
    threshold = threshold if bad is Bad.HIGH else -threshold
    return ScoreCalibration(
        name, len(values), spearman(values, errors), area, error, bad, threshold, removes, passes, ""
    )


def _best_cut(values: Values, worst: NDArray[np.bool_]) -> tuple[float, float]:
    """Find the cut between two values (high is bad) with the largest Youden's J, and the share of values above it."""
    levels, group = np.unique(values, return_inverse=True)
    bad = np.bincount(group, weights=worst)
    good = np.bincount(group, weights=~worst)
    # All higher values lie above the cut between level i and i + 1.
    sensitivity = 1 - np.cumsum(bad)[:-1] / bad.sum()
    alarms = 1 - np.cumsum(good)[:-1] / good.sum()
    best = int(np.argmax(sensitivity - alarms))
    return float((levels[best] + levels[best + 1]) / 2), float((values > levels[best]).mean())


def auroc_error(area: float, positives: int, negatives: int) -> float:
    """Standard error of an AUROC (Hanley and McNeil, Radiology 143, 1982)."""
    two_bad, two_good = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (positives - 1) * (two_bad - area**2) + (negatives - 1) * (two_good - area**2)
    return math.sqrt(max(variance, 0) / (positives * negatives))


def _with_verdict(score: ScoreCalibration, best_free: float, *, enough: bool) -> ScoreCalibration:
    stated = MEANINGS[score.name].bad
    if score.auroc < LEAST_AUROC:
        verdict = "no: says little"
    elif not enough or score.auroc - STANDARD_ERRORS * score.standard_error <= 0.5:
        verdict = "no: may be chance"
    elif stated not in (None, score.bad):
        verdict = "no: the wrong way round"
    elif score.passes and score.auroc < best_free + LEAST_GAIN:
        verdict = "no: a free one does"
    else:
        verdict = "yes"
    return replace(score, verdict=verdict)


def _passes(name: str, mask_source: str) -> float:
    """Forward passes that a score costs. A mask costs the passes of all its opinions."""
    opinion = "checker" if name == "metric_residual" else name.partition("_")[0]
    opinions = mask_source.split("+") if opinion == "confidence" else [opinion]
    return sum(PASSES.get(part, 0.0) for part in opinions)


def judge_masks(measured: Sequence[Measured], source: str) -> MaskCalibration | None:
    """Judge the masks of all images together; None if no image has a mask."""
    parts = [one.levels for one in measured if one.levels is not None]
    areas = np.array([one.areas for one in measured if one.areas is not None]).reshape(-1, 2)
    if not parts or not len(areas):
        return None
    count = max(part.shape[1] for part in parts)
    pixels, sums = np.sum([np.pad(part, ((0, 0), (0, count - part.shape[1]))) for part in parts], axis=0)
    with np.errstate(invalid="ignore"):
        errors = sums / pixels
    ause, aurg = areas.mean(0)
    return MaskCalibration(
        source=source,
        images=len(parts),
        ause=float(ause),
        aurg=float(aurg),
        levels=tuple(range(count)),
        shares=tuple((pixels / pixels.sum()).tolist()),
        errors=tuple(errors.tolist()),
        passes=_passes("confidence", source),
        verdict="yes" if aurg >= LEAST_AURG else "no: removes little error",
    )
