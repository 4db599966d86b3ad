"""Presets: named lists of rules for `jobs/curate.py --preset`.

What they take is what `jobs/benchmark.py --quality` found true errors by: worlds of known depth, 30 % of them degraded, labelled
by the embedded teacher (README, Quality). Scores of the depth and of the flip are cut at percentiles of the dataset, for their
scale is the teacher's own. Left out, since errors do not follow them there: JPEG quality (images of quality 10 are labelled as
well as others), noise, colour, edge alignment; the opinion on scale stands in `strict` alone. Rules of scores that a dataset does
not have are left out, and said so.
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
others 17 to 1,300 (1st to 99th percentile). Clipped from end to end: by what the words mean, none was among the worlds."""

LENIENT: Final = (
    *BLANK,
    Rule("flat depth", "depth_range above p1"),
    Rule("stepped depth", "gradient_continuity above p1"),
    Rule("flip", "flip_p90 below p99"),
    Rule("checker", "checker_p90 below p99"),
)
"""Images of nothing, and the worst hundredth by each score that finds errors."""

DEFAULT: Final = (
    *BLANK,
    Rule("flat depth", "depth_range above p2"),
    Rule("stepped depth", "gradient_continuity above p2"),
    Rule("flip", "flip_p90 below p98"),
    Rule("checker", "checker_p90 below p98"),
)
"""Tails as long as the error of what is removed stays at twice that of what is kept, on two sets of 300 worlds: 2.01 and 2.04
times, by an earlier state of the teacher (on a third set 2.05, by today's 2.10). With tails of 5 % and 3 % it was 2.02 and 1.88.
Both scores of the depth find the same images for the most part."""

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
"""Also what is blurred or dark, which the embedded teacher labels 1.4 to 1.5 times as badly as others, and tails two to three
times as long."""

PRESETS: Final[dict[Preset, tuple[Rule, ...]]] = {"lenient": LENIENT, "default": DEFAULT, "strict": STRICT}
