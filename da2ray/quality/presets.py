"""Presets: named lists of rules for `jobs/curate.py --preset`.

They use the scores by which `jobs/benchmark.py --quality` finds true errors: on worlds of known depth, 30 % of them degraded,
labelled by the embedded teacher (da2ray/quality/README.md). Scores of the depth and of the flip are cut at percentiles of the
dataset, because their scale depends on the teacher. JPEG quality (images of quality 10 are labelled as well as others), noise,
colour and edge alignment are not used, since errors do not follow them there; `scale` is in `strict` alone. A rule whose score a
dataset does not have is skipped, with a message.
"""

from typing import Final, Literal

from da2ray.quality.filters import Rule

Preset = Literal["lenient", "default", "strict"]

BLANK: Final = (
    Rule("blank", "blur > 0.3"),
    Rule("dark", "dark_share < 0.95"),
    Rule("overexposed", "bright_share < 0.95"),
)
"""Images of nothing. Plain walls have a `blur` of 0.06 to 0.18, pictures blurred by 2 to 5 % of their short side 0.35 to 1.02,
others 17 to 1,300 (1st to 99th percentile). The limits for dark and overexposed follow from the words, not from measurement: no
world was clipped from end to end."""

LENIENT: Final = (
    *BLANK,
    Rule("flat depth", "depth_range above p1"),
    Rule("stepped depth", "gradient_continuity above p1"),
    Rule("flip", "flip_p90 below p99"),
    Rule("checker", "checker_p90 below p99"),
)
"""Removes images of nothing, and the worst hundredth by each score that finds errors."""

DEFAULT: Final = (
    *BLANK,
    Rule("flat depth", "depth_range above p2"),
    Rule("stepped depth", "gradient_continuity above p2"),
    Rule("flip", "flip_p90 below p98"),
    Rule("checker", "checker_p90 below p98"),
)
"""The longest tails with which removed images have twice the error of kept ones. On two sets of 300 worlds the ratio was 2.01
and 2.04 with an earlier state of the teacher (on a third set 2.05; with today's teacher 2.10). With tails of 5 % and 3 % it was
2.02 and 1.88. The two scores of the depth mostly find the same images."""

STRICT: Final = (
    Rule("blurred", "blur > 2"),
    Rule("dark", "dark_share < 0.5"),
    Rule("overexposed", "bright_share < 0.5"),
    Rule("underexposed", "brightness > 0.15"),
    Rule("flat depth", "depth_range above p10"),
    Rule("stepped depth", "gradient_continuity above p10"),
    Rule("flip", "flip_p90 below p90"),
    Rule("scale", "scale_p90 below p95"),
    Rule("checker", "checker_p90 below p90"),
)
"""Also removes blurred and dark images, on which the embedded teacher's error is 1.4 to 1.5 times that on others. Its tails are
two to three times as long."""

PRESETS: Final[dict[Preset, tuple[Rule, ...]]] = {"lenient": LENIENT, "default": DEFAULT, "strict": STRICT}
