"""Presets: named lists of rules for `jobs/curate.py --preset`.

Rules of scores that a dataset does not have are left out, and said so. `default` takes what is plainly bad and the
worst tail; `lenient` only what no training wants; `strict` is for more images than a training will see.
"""

from typing import Final, Literal

from da2ray.quality.filters import Rule

Preset = Literal["lenient", "default", "strict"]

LENIENT: Final = (
    Rule("blurred", "blur > 5"),
    Rule("dark", "dark_share < 0.95"),
    Rule("overexposed", "bright_share < 0.95"),
    Rule("blank", "image_entropy > 1"),
    Rule("flat depth", "depth_range > 0.02"),
    Rule("flip", "flip_p90 below p99"),
    Rule("scale", "scale_p90 below p99"),
    Rule("checker", "checker_p90 below p99"),
)
"""Images without content, and the worst hundredth by each second opinion."""

DEFAULT: Final = (
    Rule("blurred", "blur > 20"),
    Rule("dark", "dark_share < 0.8"),
    Rule("overexposed", "bright_share < 0.8"),
    Rule("blank", "image_entropy > 3"),
    Rule("jpeg", "jpeg_quality >= 20"),
    Rule("flat depth", "depth_range > 0.1"),
    Rule("saturated", "saturated_share < 0.5"),
    Rule("flip", "flip_p90 below p95"),
    Rule("scale", "scale_p90 below p95"),
    Rule("checker", "checker_p90 below p95"),
)
"""Images that the teacher cannot have seen well, and the worst twentieth by each second opinion."""

STRICT: Final = (
    Rule("blurred", "blur > 60"),
    Rule("dark", "dark_share < 0.5"),
    Rule("overexposed", "bright_share < 0.5"),
    Rule("blank", "image_entropy > 5"),
    Rule("jpeg", "jpeg_quality >= 50"),
    Rule("flat depth", "depth_range > 0.2"),
    Rule("saturated", "saturated_share < 0.2"),
    Rule("flip", "flip_p90 below p80"),
    Rule("scale", "scale_p90 below p80"),
    Rule("checker", "checker_p90 below p80"),
)
"""Also images of which a part is lost, and the worst fifth by each second opinion."""

PRESETS: Final[dict[Preset, tuple[Rule, ...]]] = {"lenient": LENIENT, "default": DEFAULT, "strict": STRICT}
