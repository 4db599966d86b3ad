"""Print a calibration: what each score and each level of the masks says about true errors."""

from rich.console import Console
from rich.table import Table

from da2ray.quality.calibration import Calibration
from da2ray.quality.judging import LEAST_AUROC, RULE, WORST, MaskCalibration


def print_calibration(found: Calibration, console: Console) -> None:
    """Print the scores, the highest AUROC first, and the levels of the mask."""
    worst = f"{WORST:.0%}"
    without = f"; {found.without_truth:,} labelled images have no ground truth" if found.without_truth else ""
    console.print(
        f"true error ({found.kind}) of {len(found.errors):,} images, with ground truth from {found.truth}: "
        f"mean {found.mean_error:.4f}; the worst {worst} begins at {found.worst_error:.4f}{without}"
    )
    console.print(f"how well each score predicts it; AUROC is for finding the worst {worst}:")
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
        console.print(f"scores with the same value on all images: {', '.join(found.constant)}")
    if found.mask:
        print_mask(found.mask, console)
    console.print(RULE)


def print_mask(mask: MaskCalibration, console: Console) -> None:
    """Print the true error at each level of the masks."""
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
    console.print(f"true error at the lowest level / at the highest: {mask.ratio:.1f}")


def _passes(passes: float) -> str:
    return f"{passes:.2g}" if passes else "0"
