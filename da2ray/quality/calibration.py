"""How well each score predicts the true error, on images with ground truth: what thresholds and presets rest on.

An image's true error is the mean of its pixels' (`ErrorKind`), after alignment. A score is judged by its rank correlation with
that and by how well it tells the worst tenth of the images from the rest; a mask by what the error of its pixels does as the
least sure ones go.
"""

import json
import math
from dataclasses import asdict, dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from da2ray.console import OnProgress, progress
from da2ray.errors import Exit, Status, UserError
from da2ray.labels.reader import THREADS, Label, Labels, open_labels
from da2ray.parallel import look_ahead
from da2ray.quality.judging import (
    LEAST_AUROC,
    RULE,
    WORST,
    MaskCalibration,
    Measured,
    ScoreCalibration,
    judge_masks,
    judge_scores,
)
from da2ray.quality.sparsification import sparsification
from da2ray.quality.truth import ErrorKind, Truth, pixel_errors, stem
from da2ray.storage import Client, canonical_url, open_store, split_uri

LEAST_IMAGES = 20
"""Below which a tenth is too few to say anything."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What ground truth says of a snapshot's scores.

    Attributes:
        truth: its URL.
        kind: what the errors are.
        errors: true error of each image that has one, by key.
        without_truth: labelled images that have none, or too little of it.
        mean_error: mean of `errors`. worst_error: the least error of the worst tenth.
        scores: by falling AUROC. constant: scores that are the same on all images, which say nothing.
        mask: None where no label has one.
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
        """All of it; null where a number has no value."""

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
    """Compare the labels that have ground truth with it, and judge every score by that.

    Args:
        labels: of any kind.
        truth_url: folder or prefix, see `Truth`.
        kind: of the true error.

    Raises:
        UserError: too few labels have ground truth, or it cannot be read.
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
        example = f": {first} should have {stem(first)}.npy there" if labelled else ""
        raise UserError(
            f"{len(measured)} of {labelled} labelled images have ground truth at {truth.url}, at least {LEAST_IMAGES} are "
            f"needed{example}"
        )
    errors = np.array([one.error for one in measured])
    # As many as a tenth is: which of two equal ones is in it goes by their order.
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


def calibrate_dataset(
    url: str,
    truth_url: str,
    console: Console,
    client: Client = "auto",
    snapshot: int | None = None,
    output: str | None = None,
    kind: ErrorKind = ErrorKind.ABS_REL,
) -> int:
    """Calibrate a snapshot's scores, print the table, and write it as JSON to `output`, a path or URL, where that is given.

    Raises:
        UserError, OSError: see `calibrate`; or `output` cannot be written.
    """
    target = split_uri(canonical_url(output)) if output else None  # what is no URL is found out before the work
    labels = open_labels(url, snapshot=snapshot, client=client)
    with progress("calibrate", "labels") as on_progress:
        found = calibrate(labels, truth_url, client, on_progress, kind)
    print_calibration(found, console)
    if target:
        root, key = target
        open_store(root, client).put(key, found.to_json().encode())
    return Exit.DONE


def print_calibration(found: Calibration, console: Console) -> None:
    """The scores by falling AUROC, and the mask by its levels."""
    worst = f"{WORST:.0%}"
    without = f"; {found.without_truth:,} labelled images have none" if found.without_truth else ""
    console.print(
        f"true error ({found.kind}) of {len(found.errors):,} images by {found.truth}: mean {found.mean_error:.4f}, the worst "
        f"{worst} from {found.worst_error:.4f}{without}"
    )
    console.print(f"scores against it, AUROC for the worst {worst}:")
    table = Table()
    for column in ("score", "images", "Spearman", "AUROC", "passes", "proposed", "removes", "worth it"):
        table.add_column(column, justify="left" if column in ("score", "proposed", "worth it") else "right")
    for score in found.scores:
        area = f"{score.auroc:.3f} ± {score.standard_error:.3f}"
        figures = (str(score.images), f"{score.spearman:+.3f}", area, _passes(score.passes))
        proposal = (score.rule, f"{score.removes:.1%}") if score.auroc >= LEAST_AUROC else ("", "")
        table.add_row(score.name, *figures, *proposal, score.verdict)
    console.print(table)
    if found.constant:
        console.print(f"the same on all images: {', '.join(found.constant)}")
    if found.mask:
        print_mask(found.mask, console)
    console.print(RULE)


def print_mask(mask: MaskCalibration, console: Console) -> None:
    """The true error at each level of the masks."""
    console.print(
        f"masks ({mask.source}, {mask.images:,} images): AUSE {mask.ause:.3f}, AURG {mask.aurg:.3f} of the mean error, "
        f"passes {_passes(mask.passes)}, worth it: {mask.verdict}"
    )
    table = Table()
    for column in ("level", "pixels", "mean true error"):
        table.add_column(column, justify="right")
    for level, share, error in zip(mask.levels, mask.shares, mask.errors, strict=True):
        table.add_row(str(level), f"{share:.1%}", f"{error:.4f}")
    console.print(table)
    console.print(f"true error of the lowest level / of the highest: {mask.ratio:.1f}")


def _passes(passes: float) -> str:
    return f"{passes:.2g}" if passes else "0"
