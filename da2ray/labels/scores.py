"""What each score means, which end of it is bad, and what measures it: the one place for it, whoever shows, filters or judges.

The scores themselves are columns of the index (`da2ray.labels.schema.SCORES`); a test holds the two together.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Bad(StrEnum):
    """The end of a score at which labels are worse."""

    LOW = "low"
    HIGH = "high"


@dataclass(frozen=True, slots=True)
class Score:
    """A score column.

    Attributes:
        name: of the column.
        meaning: one sentence for people, without a full stop.
        unit: `share` is 0 to 1; "" where it has none, and "dataset" where it is that of the depth.
        bad: None where neither end is worse than the other.
        option: of jobs/pseudolabel.py, that measures it; None where every run does.
    """

    name: str
    meaning: str
    unit: str
    bad: Bad | None
    option: str | None = None


_FLIP = "--consistency flip"
_SCALE = "--consistency scale"
_CHECKER = "--checker NAME"

_ALL = (
    Score("aspect", "long side / short side of the image as displayed", "", Bad.HIGH),
    Score("jpeg_quality", "quality of a JPEG by its quantisation tables, on the scale of libjpeg", "1 to 100", Bad.LOW),
    Score("blur", "variance of the Laplacian of grey levels: low where the image is blurred", "grey levels²", Bad.LOW),
    Score("brightness", "mean grey of the image: both ends are badly exposed", "share", None),
    Score("dark_share", "share of pixels clipped at black", "share", Bad.HIGH),
    Score("bright_share", "share of pixels clipped at white", "share", Bad.HIGH),
    Score("image_entropy", "entropy of the image's grey levels: low where it shows next to nothing", "bits", Bad.LOW),
    Score("colourfulness", "colourfulness by Hasler and Süsstrunk: 0 is grey", "", None),
    Score("depth_min", "smallest value of the depth", "dataset", None),
    Score("depth_max", "largest value of the depth", "dataset", None),
    Score("depth_mean", "mean of the depth", "dataset", None),
    Score("depth_range", "(P95 - P5) / mean of the depth: low where the label is flat", "", Bad.LOW),
    Score("depth_occupancy", "share of the bins of the depth's histogram that are in use", "share", Bad.LOW),
    Score("depth_entropy", "entropy of the depth's histogram", "bits", Bad.LOW),
    Score("zero_share", "share of pixels that are exactly 0: of disparity, infinitely far", "share", None),
    Score("far_share", "share of pixels of the far class, such as sky", "share", None),
    Score("saturated_share", "share of pixels exactly at the map's largest value", "share", Bad.HIGH),
    Score("nonfinite_share", "share of pixels that are NaN or infinite", "share", Bad.HIGH),
    Score("edge_alignment", "share of depth edges that lie near an edge of the image", "share", Bad.LOW),
    Score("gradient_continuity", "autocorrelation of neighbouring depth gradients: 1 is smooth, 0 noise", "", Bad.LOW),
    Score("flip_mean", "mean disagreement with the label of the mirrored image", "", Bad.HIGH, _FLIP),
    Score("flip_p90", "disagreement with the mirrored image that 90 % of pixels do not exceed", "", Bad.HIGH, _FLIP),
    Score("scale_mean", "mean disagreement with the label at another size", "", Bad.HIGH, _SCALE),
    Score("scale_p90", "disagreement with another size that 90 % of pixels do not exceed", "", Bad.HIGH, _SCALE),
    Score("checker_mean", "mean disagreement with the checker", "", Bad.HIGH, _CHECKER),
    Score("checker_p90", "disagreement with the checker that 90 % of pixels do not exceed", "", Bad.HIGH, _CHECKER),
    Score(
        "metric_residual",
        "median relative difference between the fitted metres and those of a metric checker",
        "",
        Bad.HIGH,
        "--checker NAME (a metric teacher)",
    ),
    Score("confidence_mean", "mean confidence of the mask", "share", Bad.LOW, _FLIP),
)

SCORES: Final = {score.name: score for score in _ALL}
"""By name, in the order of the index."""
