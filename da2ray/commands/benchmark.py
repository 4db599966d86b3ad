"""`jobs/benchmark.py`: measure da2ray on this machine, beside the plain Ray Data way."""

from typing import Literal

from pydantic import field_validator
from rich.console import Console

from da2ray.commands.options import Command, CommandConfig, option, split_list
from da2ray.labels.shards.base import ShardFormat

WHAT, HOW, ELSE = "what to measure on", "how", "measure something else instead"


class BenchmarkConfig(CommandConfig):
    """Measure each stage by itself, the whole job, and the plain Ray Data way, on the same images in one run."""

    images: str | None = option(None, "images to measure on: a folder or prefix", metavar="URL", group=WHAT)
    make_images: int | None = option(
        None, "first write a mixed set of N JPEGs to --work, and measure on it", group=WHAT, ge=2
    )
    limit: int | None = option(None, "measure on the first N images only", group=WHAT, ge=8)
    work: str = option("scratch/benchmark", "folder for what is written; emptied before", metavar="PATH", group=WHAT)

    teacher: str = option("luminance", "the depth model, by name", metavar="NAME", group=HOW)
    weights: str | None = option(None, "the teacher's weights", metavar="PATH|URL|ID", group=HOW)
    seeded_weights: bool = option(
        False, "make random weights of the teacher's size, which are as fast as real ones", group=HOW
    )
    decode: list[Literal["exact", "scaled"]] = option(
        ["exact", "scaled"], "decoding modes to measure", metavar="MODE", group=HOW
    )
    format: ShardFormat = option(ShardFormat.PARQUET, "how shards are stored", group=HOW)
    precision: Literal["fp32", "bf16", "fp16"] | None = option(
        None, "precision of the network [bf16 on cuda, fp32 on cpu]", group=HOW
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto: cuda if there is a GPU, else cpu", group=HOW)
    shard_size: int = option(128, "images in a shard", group=HOW, ge=1)
    batch_size: int = option(16, "most images in a micro-batch", group=HOW, ge=1)
    plain: list[Literal["infer-image", "network-size", "shared"]] = option(
        ["infer-image", "network-size"],
        "plain Ray Data ways to measure beside it: the official infer_image; network-size, the same without its last step, "
        "which brings depth to the image's size; shared, which also has da2ray's preprocessing; none",
        metavar="WAY",
        group=HOW,
    )

    sources: list[Literal["tar", "parquet"]] = option(
        [], "kinds of sources to measure on the same images besides loose files", metavar="KIND", group=HOW
    )

    resume_shards: int | None = option(
        None, "how fast a resume finds the shards without a commit among N", group=ELSE, ge=1
    )
    plan: bool = option(False, "how fast a long listing is planned, and how much memory the driver takes", group=ELSE)
    plan_keys: int = option(2_000_000, "with --plan: how many made-up keys", group=ELSE, ge=1)
    refresh_rows: int | None = option(
        None,
        "what a refresh of a dataset of N rows reads and writes, and how much memory it takes, if a thousandth of the images "
        "changed. Store and source are simulated",
        group=ELSE,
        ge=1000,
    )
    quality: int | None = option(
        None,
        "how well scores, masks and presets find true errors, on N rendered worlds (such as 300), 30% of them degraded. "
        "The embedded teacher labels them unless --teacher is given",
        group=ELSE,
        ge=24,
    )
    dedupe_hashes: int | None = option(
        None, "how fast near-duplicates are found among N perceptual hashes", group=ELSE, ge=1
    )

    @field_validator("decode", "plain", "sources", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [] if value in ("none", ["none"]) else split_list(value)


def benchmark(config: BenchmarkConfig, console: Console) -> int:
    """Measure and print a table."""
    from da2ray.benchmark import run  # noqa: PLC0415 - Ray and torch: `--help` does without them

    return run.benchmark(config, console)


COMMAND = Command(BenchmarkConfig, benchmark)
