"""The options of `jobs/benchmark.py`."""

from typing import Literal

from pydantic import Field, field_validator

from da2ray.commands.options import JobConfig, split_list
from da2ray.labels.shards.base import ShardFormat


class BenchmarkConfig(JobConfig):
    """Measure each stage by itself, end to end, and the plain Ray Data way, on the same images in one run."""

    images: str | None = Field(None, description="images to measure on: a folder or prefix")
    make_images: int | None = Field(
        None, ge=2, description="write a mixed set of N JPEGs to --work first, and measure on it"
    )
    work: str = Field("scratch/benchmark", description="folder for what is written; emptied before")
    teacher: str = Field("luminance", description="the depth model, by name")
    weights: str | None = Field(None, description="the teacher's weights")
    seeded_weights: bool = Field(False, description="make random weights of the teacher's size: as fast as real ones")
    decode: list[Literal["exact", "scaled"]] = Field(
        ["exact", "scaled"], description="modes to measure, as a YAML list or comma-separated"
    )
    format: ShardFormat = Field(ShardFormat.PARQUET, description="how shards are stored")
    precision: Literal["fp32", "bf16", "fp16"] | None = Field(
        None, description="of the network [bf16 on cuda, fp32 on cpu]"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is a GPU, else cpu")
    shard_size: int = Field(128, ge=1, description="images in a shard")
    batch_size: int = Field(16, ge=1, description="images in a micro-batch, at most")
    limit: int | None = Field(None, ge=8, description="measure on the first N images only")
    plain: list[Literal["infer-image", "network-size", "shared"]] = Field(
        ["infer-image", "network-size"],
        description="plain Ray Data ways to measure beside it, comma-separated: the official infer_image; the same "
        "without its last step, which brings depth to the image's size; with da2ray's preprocessing, too; none",
    )
    resume_shards: int | None = Field(
        None, ge=1, description="measure only how fast a resume finds what is left of N shards"
    )
    quality: int | None = Field(
        None,
        ge=24,
        description="measure only how well scores, masks and presets find true errors, on N rendered worlds (300 say enough), 30 "
        "%% of them degraded; labelled by the embedded teacher unless --teacher is given",
    )
    dedupe_hashes: int | None = Field(
        None, ge=1, description="measure only how fast near-duplicates are found among N perceptual hashes"
    )

    @field_validator("decode", "plain", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [] if value in ("none", ["none"]) else split_list(value)
