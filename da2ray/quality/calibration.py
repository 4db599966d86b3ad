"""Measure how well each score predicts the true error, on images with ground truth. Thresholds and presets rest on this.

An image's true error is the mean error of its pixels (`ErrorKind`) after alignment. A score is judged by its rank correlation
with the true error, and by how well it tells the worst tenth of the images from the rest. A mask is judged by how the mean
error falls as its least sure pixels are removed.
"""

import json
import math
from dataclasses import asdict, dataclass

import numpy as np

from da2ray.console import OnProgress
from da2ray.errors import Status, UserError
from da2ray.labels.reader import THREADS, Label, Labels
from da2ray.parallel import look_ahead
from da2ray.quality.judging import (
    WORST,
    MaskCalibration,
    Measured,
    ScoreCalibration,
    judge_masks,
    judge_scores,
)
from da2ray.quality.sparsification import sparsification
from da2ray.quality.truth import ErrorKind, Truth, pixel_errors, stem
from da2ray.storage import Client

LEAST_IMAGES = 20
"""The fewest images with ground truth: a tenth of fewer says nothing."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What ground truth says of a snapshot's scores.

    Attributes:
        truth: URL of the ground truth.
        kind: how the errors are measured.
        errors: true error of each image that has one, by key.
        without_truth: number of labelled images without ground truth, or with too little of it.
        mean_error: mean of `errors`.
        worst_error: the least error among the worst tenth.
        scores: sorted by AUROC, the highest first.
        constant: scores with the same value on all images, which say nothing.
        mask: None if no label has a mask.
    """

    truth: str
    kind: ErrorKind
    errors: dict[str, float]
    without_truth: int
    mean_error: float
    worst_error: float
    scores: tuple[ScoreCalibration, ...]
    constant: tuple[str, ...]
    mask: MaskCalibration | None

    def to_json(self) -> str:
        """The calibration as JSON; a number that is not finite becomes null."""

        def plain(value: object) -> object:
            if isinstance(value, dict):
                return {name: plain(part) for name, part in value.items()}
            if isinstance(value, list | tuple):
                return [plain(part) for part in value]
            return None if isinstance(value, float) and not math.isfinite(value) else value

        return json.dumps(plain(asdict(self)), indent=1)


def calibrate(
    labels: Labels,
    truth_url: str,
    client: Client = "auto",
    on_progress: OnProgress | None = None,
    kind: ErrorKind = ErrorKind.ABS_REL,
) -> Calibration:
    """Compare labels with their ground truth, and judge every score by the errors.

    Args:
        labels: labels of any kind of depth.
        truth_url: folder or prefix of the ground truth, see `Truth`.
        kind: how true errors are measured.

    Raises:
        UserError: too few labels have ground truth, or the ground truth cannot be read.
        OSError: a store failed.
    """
    truth = Truth(truth_url, client)
    labelled, known, source, first = 0, [], "", ""
    start = 0
    for piece in labels.tables(["key", "status", "mask_source"]):
        for place, (key, status) in enumerate(
            zip(piece["key"].to_pylist(), piece["status"].to_pylist(), strict=True), start
        ):
            if status == Status.LABELLED:
                labelled += 1
                first = first or key
                if truth.has(key):
                    known.append(place)
        source = source or next(iter(piece["mask_source"].drop_null().unique().to_pylist()), "")
        start += len(piece)
    measured = []
    for done, one in enumerate(
        look_ahead(lambda row: _measure(labels.label_of(row), truth, kind), labels.rows(known), THREADS, "truth"), 1
    ):
        if one is not None:
            measured.append(one)
        if on_progress:
            on_progress(done, len(known))
    if len(measured) < LEAST_IMAGES:
        example = f": {first} needs {stem(first)}.npy or .png there" if labelled else ""
        raise UserError(
            f"{len(measured)} of {labelled} labelled images have ground truth at {truth.url}; at least {LEAST_IMAGES} are "
            f"needed{example}"
        )
    errors = np.array([one.error for one in measured])
    # Exactly a tenth of the images; the order of the index decides between equal errors.
    worst = np.zeros(len(errors), dtype=bool)
    worst[np.argsort(errors, kind="stable")[-max(1, round(WORST * len(errors))) :]] = True
    scores, constant = judge_scores(measured, errors, worst, source)
    return Calibration(
        truth=truth.url,
        kind=kind,
        errors={one.key: one.error for one in measured},
        without_truth=labelled - len(measured),
        mean_error=float(errors.mean()),
        worst_error=float(errors[worst].min()),
        scores=tuple(scores),
        constant=tuple(constant),
        mask=judge_masks(measured, source),
    )


def _measure(label: Label, truth: Truth, kind: ErrorKind) -> Measured | None:
    error = pixel_errors(label, truth.of(label.key), kind)
    if error is None:
        return None
    known = np.isfinite(error)
    mean = float(error[known].mean(dtype=np.float64))
    if label.mask is None or label.mask_bits is None:
        return Measured(label.key, mean, label.scores, None, None)
    level, off = label.mask[known].astype(np.int64), error[known]
    count = 2**label.mask_bits
    pixels, sums = np.bincount(level, minlength=count), np.bincount(level, weights=off, minlength=count)
    found = sparsification(off, -level.astype(np.float32))
    areas = (found.ause, found.aurg) if found else None
    return Measured(label.key, mean, label.scores, np.stack([pixels.astype(np.float64), sums]), areas)
