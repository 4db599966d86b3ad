"""Every score, declared once: its name, what it looks at, what it means, its unit, which end is bad and what measures it.

The index schema takes its score columns from here, and filters, calibration and the report take their words from here. To add
a score, declare it here, measure it where its group says, and describe it in FORMAT.md; tests compare all three.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Final


class Group(StrEnum):
    """What a score looks at, and so what measures it. Groups have this order in the index."""

    FILE = "file"  # the image's file, once its header was read: `da2ray.pipeline.stages.reading`
    IMAGE = "image"  # the image as the network saw it, on the teacher's device: `da2ray.quality.image_scores`
    DEPTH = "depth"  # the depth before it is made integer, on the teacher's device: `da2ray.quality.depth_scores`
    CONSISTENCY = "consistency"  # second opinions of the same image: `da2ray.quality.consistency` and `.alignment`


class Bad(StrEnum):
    """The end of a score at which labels are worse."""

    LOW = "low"
    HIGH = "high"


@dataclass(frozen=True, slots=True)
class Score:
    """A score column.

    Attributes:
        group: what the score looks at.
        name: of the column.
        meaning: one sentence for people, without a full stop.
        unit: `share` is 0 to 1; "" if the score has no unit; "dataset" if it has the unit of the depth.
        bad: None if neither end is worse than the other.
        option: the option of jobs/pseudolabel.py that measures it; None if every run does.
    """

    group: Group
    name: str
    meaning: str
    unit: str
    bad: Bad | None
    option: str | None = None


_file = partial(Score, Group.FILE)
_image = partial(Score, Group.IMAGE)
_depth = partial(Score, Group.DEPTH)
_opinion = partial(Score, Group.CONSISTENCY)
_FLIP = "--consistency flip"
_SCALE = "--consistency scale"
_CHECKER = "--checker NAME"

_ALL = (
    _file("aspect", "long side / short side of the image as displayed", "", Bad.HIGH),
    _file("jpeg_quality", "quality of a JPEG by its quantisation tables, on the scale of libjpeg", "1 to 100", Bad.LOW),
    _image("blur", "variance of the Laplacian of grey levels: low if the image is blurred", "grey levels²", Bad.LOW),
    _image("brightness", "mean grey of the image: both ends are badly exposed", "share", None),
    _image("dark_share", "share of pixels clipped at black", "share", Bad.HIGH),
    _image("bright_share", "share of pixels clipped at white", "share", Bad.HIGH),
    _image("image_entropy", "entropy of the image's grey levels: low if it shows next to nothing", "bits", Bad.LOW),
    _image("colourfulness", "colourfulness by Hasler and Süsstrunk: 0 is grey", "", None),
    _depth("depth_min", "smallest value of the depth", "dataset", None),
    _depth("depth_max", "largest value of the depth", "dataset", None),
    _depth("depth_mean", "mean of the depth", "dataset", None),
    _depth("depth_range", "(P95 - P5) / mean of the depth: low if the label is flat", "", Bad.LOW),
    _depth("depth_occupancy", "share of the bins of the depth's histogram that are in use", "share", Bad.LOW),
    _depth("depth_entropy", "entropy of the depth's histogram", "bits", Bad.LOW),
    _depth("zero_share", "share of pixels that are exactly 0: of disparity, infinitely far", "share", None),
    _depth("far_share", "share of pixels of the far class, such as sky", "share", None),
    _depth("saturated_share", "share of pixels exactly at the map's largest value", "share", Bad.HIGH),
    _depth("nonfinite_share", "share of pixels that are NaN or infinite", "share", Bad.HIGH),
    _depth("edge_alignment", "share of depth edges that lie near an edge of the image", "share", Bad.LOW),
    _depth("gradient_continuity", "autocorrelation of neighbouring depth gradients: 1 is smooth, 0 noise", "", Bad.LOW),
    _opinion("flip_mean", "mean disagreement with the label of the mirrored image", "", Bad.HIGH, _FLIP),
    _opinion("flip_p90", "disagreement with the mirrored image that 90 % of pixels do not exceed", "", Bad.HIGH, _FLIP),
    _opinion("scale_mean", "mean disagreement with the label at another size", "", Bad.HIGH, _SCALE),
    _opinion("scale_p90", "disagreement with another size that 90 % of pixels do not exceed", "", Bad.HIGH, _SCALE),
    _opinion("checker_mean", "mean disagreement with the checker", "", Bad.HIGH, _CHECKER),
    _opinion("checker_p90", "disagreement with the checker that 90 % of pixels do not exceed", "", Bad.HIGH, _CHECKER),
    _opinion(
        "metric_residual",
        "median relative difference between the fitted metres and those of a metric checker",
        "",
        Bad.HIGH,
        "--checker NAME (a metric teacher)",
    ),
    _opinion("confidence_mean", "mean confidence of the mask", "share", Bad.LOW, _FLIP),
)

SCORES: Final = {score.name: score for score in _ALL}
"""The scores by name, in the order of the index."""


def names_of(*groups: Group) -> list[str]:
    """The names of the scores of these groups, in the order of the index."""
    return [score.name for score in _ALL if score.group in groups]
