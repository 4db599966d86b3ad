"""`jobs/pseudolabel.py`: label images with a depth teacher."""

from typing import Annotated, Any, Literal

from pydantic import field_validator
from rich.console import Console

from da2ray.commands.options import AsText, Command, CommandConfig, option, parse_settings, split_list
from da2ray.commands.shared import StorageClient, storage_client_option
from da2ray.errors import Reason, Status
from da2ray.images.decode import Limits
from da2ray.labels.shards.base import ShardFormat
from da2ray.pipeline.control.actors import ActorRange
from da2ray.pipeline.control.budget import FailureBudget

_LIMITS = Limits()
_DAY = 86_400.0

MOST = 1 << 62
"""Bounds what is counted, so that it fits in an int64 wherever it goes."""

WHAT, TEACHER, QUALITY, IMAGES, RUN, CLUSTER = "what and where", "teacher", "quality", "images", "run", "cluster"


class PseudolabelConfig(CommandConfig):
    """Label images with a depth teacher. Run the same command again to resume."""

    images: str = option(
        ...,
        "a folder or prefix of images, Parquet with images in a column, or a manifest (.csv, .jsonl, .parquet) of URIs",
        metavar="URL",
        group=WHAT,
    )
    output: str = option(
        ..., "the dataset: URL or path. The first run makes it, the next ones resume it", metavar="URL", group=WHAT
    )
    format: ShardFormat = option(ShardFormat.PARQUET, "how shards are stored", group=WHAT)
    limit: int | None = option(None, "label only the first N samples", group=WHAT, ge=1, le=MOST)
    dry_run: bool = option(
        False,
        "print the plan and write nothing: samples, shards, what is already done, forward passes, bytes out",
        group=WHAT,
    )
    retry_failed: list[Reason] | None = option(
        None,
        "label again only the samples that failed in the newest snapshot: all of them, or those of these classes (timeout, "
        "unreadable, …). The next snapshot has the new rows",
        metavar="CLASS",
        group=WHAT,
    )
    allow_scheme: list[str] = option(
        [],
        "let the URIs of a manifest reach more than its own store: a scheme (https, s3, file), or one place of it as "
        "https:HOST or file:/FOLDER. Hosts at private addresses must be named",
        metavar="SCHEME",
        group=WHAT,
    )

    image_column: str | None = option(
        None,
        "the column with the images: their bytes in Parquet (dotted if nested), or the URIs of a manifest [by type and name]",
        metavar="NAME",
        group=WHAT,
    )
    key_column: str | None = option(
        None, "the column with the keys, which are unique; none: do without one [key]", metavar="NAME", group=WHAT
    )
    user_agent: str | None = option(
        None,
        "how requests for images on web servers name the program; some servers want an address in it [da2ray/VERSION]",
        group=WHAT,
        pattern=r"^[!-~]([ -~]*[!-~])?$",
    )

    teacher: str = option(
        "depth-anything-v2-small",
        "the depth model: a name, a family (hf:ORG/NAME, hf:FOLDER, marigold:…, metric3d:…, unidepth:…), or your own "
        "MODULE:CLASS",
        metavar="NAME",
        group=TEACHER,
    )
    weights: str | None = option(
        None,
        "the teacher's weights: a path, URL or hub id [the teacher's published ones]",
        metavar="PATH|URL|ID",
        group=TEACHER,
    )
    precision: Literal["fp32", "bf16", "fp16"] | None = option(
        None, "precision of the network [bf16 on cuda, fp32 on cpu]", group=TEACHER
    )
    batch_size: int = option(16, "most images in a micro-batch", group=TEACHER, ge=1, le=MOST)
    compile: bool = option(
        False,
        "torch.compile the network: compiles once for each image size, and runs faster from then on",
        group=TEACHER,
    )
    teacher_option: dict[str, str] = option(
        {}, "settings of a teacher whose family has some. They count for the fingerprint", group=TEACHER
    )
    trust_remote_code: bool = option(
        False,
        "run the code that a teacher from a hub brings along; without it such teachers are refused",
        group=TEACHER,
    )

    consistency: list[Literal["flip", "scale", "checker"]] = option(
        [],
        "second opinions on each label, which become scores and a confidence mask: flip (the mirrored image, 1 more pass), "
        "scale (two thirds of the size, 0.44 more passes), checker (implied by --checker), none",
        metavar="OPINION",
        group=QUALITY,
    )
    checker: str | None = option(
        None,
        "a second teacher that labels beside the first. Their disagreement becomes scores and a mask; a metric checker also "
        "makes relative labels readable in metres",
        metavar="NAME",
        group=QUALITY,
    )
    checker_weights: str | None = option(
        None, "the checker's weights [its published ones]", metavar="PATH|URL|ID", group=QUALITY
    )
    mask_bits: int = option(
        2,
        "bits a pixel of the stored confidence, if the teacher or a second opinion gives one",
        group=QUALITY,
        ge=1,
        le=8,
    )

    decode: Literal["exact", "scaled"] = option(
        "exact",
        "exact: the official preprocessing; scaled: decode JPEGs at a reduced size, for speed",
        group=IMAGES,
    )
    min_side: int = option(
        _LIMITS.min_side,
        "reject images whose shorter side has fewer pixels",
        metavar="PIXELS",
        group=IMAGES,
        ge=1,
        le=MOST,
    )
    max_aspect: float = option(
        _LIMITS.max_aspect, "reject images whose long side over short side is more", metavar="RATIO", group=IMAGES, ge=1
    )
    max_tokens: int = option(
        _LIMITS.max_tokens, "reject images that the network cuts into more patches", group=IMAGES, ge=1, le=MOST
    )
    max_pixels: int = option(
        _LIMITS.max_pixels, "reject images of more pixels, before they are decoded", group=IMAGES, ge=1, le=MOST
    )
    sample_timeout: float = option(
        60.0,
        "how long decoding an image, or labelling one, may take; after that it is failed as timeout",
        metavar="SECONDS",
        group=IMAGES,
        gt=0,
        le=_DAY,
    )

    max_failed: Annotated[FailureBudget, AsText(FailureBudget.parse)] = option(
        FailureBudget(share=1.0),
        "stop, and exit 1, if more samples failed: a count, or a share such as 2% of those done (judged from 1,000 on)",
        metavar="N|SHARE%",
        group=RUN,
    )
    shard_size: int = option(
        256, "most images in a shard: the unit of work, commit and resume", group=RUN, ge=1, le=1_000_000
    )
    shard_bytes: int = option(
        64 << 20,
        "most listed bytes in a shard, so that a shard of large images fits in memory",
        metavar="BYTES",
        group=RUN,
        ge=1,
        le=MOST,
    )
    wave_size: int | None = option(
        None,
        "shards that one Ray Data execution handles. It bounds the driver's memory; teachers start anew between two "
        "[5000; up to 20000 if shards are small]",
        group=RUN,
        ge=1,
        le=MOST,
    )
    lease_seconds: float = option(
        60.0,
        "how long other jobs on the same output leave this job's shards alone after its last sign of life",
        metavar="SECONDS",
        group=RUN,
        ge=1,
        le=_DAY,
    )
    progress: Literal["auto", "live", "plain"] = option(
        "auto", "a live line, or plain log lines; auto: live on a terminal", group=RUN
    )

    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", "where the teacher runs; auto: cuda if the cluster has GPUs, else cpu", group=CLUSTER
    )
    actors: Annotated[ActorRange, AsText(ActorRange.parse)] | None = option(
        None,
        "teacher actors: a range, or a fixed number [1 to the GPUs of the cluster; 1 on cpu]",
        metavar="MIN:MAX",
        group=CLUSTER,
    )
    ray_address: str | None = option(
        None, "the Ray cluster to join [RAY_ADDRESS if set, else an embedded Ray]", metavar="ADDRESS", group=CLUSTER
    )
    storage_client: StorageClient = storage_client_option(CLUSTER)

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

    @property
    def source_options(self) -> dict[str, Any]:
        """The arguments of `da2ray.sources.open_source` besides the URL of the images."""
        return {
            "client": self.storage_client,
            "allow": self.allow_scheme,
            "user_agent": self.user_agent,
            "image_column": self.image_column,
            "key_column": self.key_column,
        }


def pseudolabel(config: PseudolabelConfig, console: Console) -> int:
    """Label images; `da2ray.pipeline.run` is the main flow."""
    from da2ray.pipeline import run  # noqa: PLC0415 - Ray and torch: `--help` does without them

    return run.pseudolabel(config, console)


COMMAND = Command(PseudolabelConfig, pseudolabel)
