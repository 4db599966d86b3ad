"""Judging scores and masks by true errors: the numbers of a calibration, its proposals and its verdicts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from da2ray.labels.schema import SCORES
from da2ray.labels.scores import SCORES as MEANINGS
from da2ray.labels.scores import Bad
from da2ray.quality.depth_metrics import auroc, spearman
from da2ray.quality.opinions import PASSES

WORST = 0.1
"""Share of the images, those of the largest true error, that a score should find."""
LEAST_AUROC = 0.65
"""Of a score that is worth it: between nothing (0.5) and what is called acceptable (0.7, Hosmer and Lemeshow)."""
STANDARD_ERRORS = 2.0
"""By which its AUROC must be above 0.5."""
LEAST_WORST = 10
"""Images in that tenth, below which no score is worth it: of two, any score may find both."""
LEAST_GAIN = 0.03
"""Of AUROC, by which a score that costs forward passes must beat the best of those that cost none."""
LEAST_AURG = 0.1
"""Of a mask that is worth it: a tenth of the mean error, on average over the shares that are removed."""
RULE = (
    f"worth it: AUROC at least {LEAST_AUROC}, and {STANDARD_ERRORS:g} standard errors above 0.5 on {LEAST_WORST} bad images "
    f"or more, by the end that the score's meaning says; one that costs passes also {LEAST_GAIN} above the best that costs none. "
    f"A mask: AURG at least {LEAST_AURG}."
)
"""In words."""

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ScoreCalibration:
    """Of one score.

    Attributes:
        name: of the column.
        images: on which it was measured.
        spearman: rank correlation with the true error; negative where low is bad.
        auroc: chance that one of the worst tenth has a worse score than another image, by the end that is bad.
        standard_error: of `auroc`.
        bad: the end at which the worst tenth is, as found here.
        threshold: where sensitivity - false alarms (Youden's J) is largest; `removes` is the share of images beyond it.
        passes: forward passes beside the label's own that it costs.
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
        """The proposal as `--where` takes it."""
        return f"{self.name} {'<' if self.bad is Bad.HIGH else '>'} {self.threshold:.4g}"


@dataclass(frozen=True, slots=True)
class MaskCalibration:
    """Of the masks.

    Attributes:
        source: whose confidence they hold.
        images: that have one.
        ause, aurg: means over the images (`sparsification`).
        levels: from the least sure to the surest.
        shares: of the pixels with a true depth, at each of them.
        errors: mean true error at each, over all images; NaN where no pixel is.
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
        """Mean true error of the lowest level over that of the highest."""
        return self.errors[0] / self.errors[-1] if self.errors[-1] else math.inf


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one image: what its label says and how wrong it is; `levels`: pixels and sum of errors (2, 2^bits) by level."""

    key: str
    error: float
    scores: dict[str, float]
    levels: Values | None
    areas: tuple[float, float] | None


def judge_scores(
    measured: Sequence[Measured], errors: Values, worst: NDArray[np.bool_], mask_source: str
) -> tuple[list[ScoreCalibration], list[str]]:
    """Those that say something, by falling AUROC, and the names of those that are constant."""
    found, constant = [], []
    for name in SCORES.names:
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
    """Of values where high is bad, the cut between two of them at which Youden's J is largest, and the share above it."""
    levels, group = np.unique(values, return_inverse=True)
    bad = np.bincount(group, weights=worst)
    good = np.bincount(group, weights=~worst)
    # Above the cut between level i and i + 1: all that are higher.
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
    """Forward passes that a score costs; those of a mask are those of the opinions in it."""
    opinion = "checker" if name == "metric_residual" else name.partition("_")[0]
    opinions = mask_source.split("+") if opinion == "confidence" else [opinion]
    return sum(PASSES.get(part, 0.0) for part in opinions)


def judge_masks(measured: Sequence[Measured], source: str) -> MaskCalibration | None:
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
