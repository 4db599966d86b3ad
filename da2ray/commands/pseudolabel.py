"""The options of `jobs/pseudolabel.py`."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from da2ray.commands.options import AsText, JobConfig, parse_settings, split_list
from da2ray.errors import Reason, Status
from da2ray.images.decode import Limits
from da2ray.labels.shards.base import ShardFormat
from da2ray.pipeline.control.actors import ActorRange
from da2ray.pipeline.control.budget import FailureBudget

_LIMITS = Limits()


class PseudolabelConfig(JobConfig):
    """Label a source of images with a depth teacher; run the same command again to resume."""

    images: str = Field(
        description="what to label: a folder or prefix of images, or a manifest (.csv, .jsonl, .parquet) of URIs"
    )
    output: str = Field(description="URL or path of the dataset: made on the first run, resumed on the next")
    teacher: str = Field(
        "depth-anything-v2-small",
        description="the depth model: by name, by family as hf:ORG/NAME or hf:FOLDER, marigold:…, metric3d:…, unidepth:…, or "
        "your own as MODULE:CLASS",
    )
    teacher_option: dict[str, str] = Field(
        {}, description="KEY=VALUE settings of the teacher, if its family has some; they count for the fingerprint"
    )
    weights: str | None = Field(
        None, description="the teacher's weights: a path, URL or hub id [the teacher's published ones]"
    )
    trust_remote_code: bool = Field(
        False, description="let code run that comes with a teacher from a hub; without it such teachers are refused"
    )
    checker: str | None = Field(
        None,
        description="a second teacher, by name, that labels beside the first: how far they disagree becomes scores and a mask, "
        "and one that gives metres makes relative labels readable in metres",
    )
    checker_weights: str | None = Field(None, description="the checker's weights [its published ones]")
    consistency: list[Literal["flip", "scale", "checker"]] = Field(
        [],
        description="second opinions of each label, which become scores and a mask: flip (the teacher on the mirrored image, one "
        "pass more), scale (the teacher at two thirds of the size, 0.44 passes more), checker (of --checker, implied by it); "
        "comma-separated; none",
    )
    mask_bits: int = Field(
        2,
        ge=1,
        le=8,
        description="bits a pixel of the stored confidence, where the teacher or a second opinion gives one",
    )
    format: ShardFormat = Field(ShardFormat.PARQUET, description="how shards are stored")
    shard_size: int = Field(
        256, ge=1, le=1_000_000, description="images in a shard, at most: the unit of work, commit and resume"
    )
    shard_bytes: int = Field(
        64 << 20, ge=1, description="listed bytes in a shard, at most, so that a shard of large images fits in memory"
    )
    batch_size: int = Field(16, ge=1, description="images in a micro-batch, at most")
    precision: Literal["fp32", "bf16", "fp16"] | None = Field(
        None, description="of the network [bf16 on cuda, fp32 on cpu]"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: cuda where the cluster has GPUs, else cpu"
    )
    actors: Annotated[ActorRange, AsText(ActorRange.parse)] | None = Field(
        None, description="teacher actors, MIN:MAX or a fixed number [1:GPUs of the cluster; 1 on cpu]"
    )
    decode: Literal["exact", "scaled"] = Field(
        "exact", description="exact: the official preprocessing; scaled: JPEGs decoded at a reduced size, for speed"
    )
    compile: bool = Field(
        False, description="torch.compile the network: one compilation for each image size, faster from then on"
    )
    min_side: int = Field(_LIMITS.min_side, ge=1, description="reject images whose smaller side has fewer pixels")
    max_aspect: float = Field(_LIMITS.max_aspect, ge=1, description="reject images whose sides have a larger ratio")
    max_tokens: int = Field(
        _LIMITS.max_tokens, ge=1, description="reject images that make more patches than this in the network"
    )
    max_pixels: int = Field(
        _LIMITS.max_pixels, ge=1, description="reject images of more pixels, before they are decoded"
    )
    limit: int | None = Field(None, ge=1, description="label only the first N samples")
    max_failed: Annotated[FailureBudget, AsText(FailureBudget.parse)] = Field(
        FailureBudget(share=1.0),
        description="stop, and exit 1, where more failed: a count, or a share such as 2%% of what is done (of 1,000 at least)",
    )
    retry_failed: list[Reason] | None = Field(
        None,
        description="label only samples that failed in the newest snapshot again: all of them, or those of these classes "
        "(unreadable, timeout, …); what comes of it takes their place in the next snapshot",
    )
    sample_timeout: float = Field(
        60, gt=0, description="seconds that decoding an image, or labelling one, may take: then it is failed as timeout"
    )
    allow_scheme: list[str] = Field(
        [],
        description="schemes besides its own that a manifest's URIs may have: http, https, file, s3, … ; file and http(s) also "
        "as file:/folder and https:host to allow just those; hosts at private addresses only by name",
    )
    lease_seconds: float = Field(
        60,
        ge=1,
        description="how long other jobs on the same output leave this one's shards alone after it was last heard of",
    )
    dry_run: bool = Field(
        False, description="print the plan and stop: samples, shards, bytes out, what is already done"
    )
    wave_size: int | None = Field(
        None,
        ge=1,
        description="shards that one Ray Data execution handles; bounds the driver's memory, and between two the teachers start "
        "anew [5000, or where shards are small up to 20000]",
    )
    storage_client: Literal["auto", "obstore", "fsspec"] = Field(
        "auto", description="how object stores are reached [obstore where it knows the scheme]"
    )
    ray_address: str | None = Field(
        None, description="Ray cluster to join [RAY_ADDRESS where set, else an embedded Ray]"
    )
    progress: Literal["auto", "live", "plain"] = Field(
        "auto", description="live line on a terminal, plain log lines elsewhere"
    )

    @field_validator("allow_scheme", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return split_list(value)

    @field_validator("retry_failed", mode="before")
    @classmethod
    def _failure_classes(cls, value: object) -> object:
        words = split_list(value)
        known = [reason.value for reason in Reason if reason.status is Status.FAILED]
        if isinstance(words, list) and (unknown := sorted({str(word) for word in words} - set(known))):
            raise ValueError(f"{unknown[0]} is not a failure class: choose from {', '.join(known)}")
        return words

    @field_validator("retry_failed")
    @classmethod
    def _each_once(cls, value: list[Reason] | None) -> list[Reason] | None:
        return None if value is None else sorted(set(value))

    @field_validator("consistency", mode="before")
    @classmethod
    def _opinions(cls, value: object) -> object:
        words = split_list(value)
        return [] if words == ["none"] else words

    @field_validator("consistency")
    @classmethod
    def _in_order(cls, value: list[str]) -> list[str]:
        return [name for name in ("flip", "scale", "checker") if name in value]

    @field_validator("teacher_option", mode="before")
    @classmethod
    def _settings(cls, value: object) -> object:
        return parse_settings(value)
