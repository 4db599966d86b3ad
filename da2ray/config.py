"""Configuration models: one source for command lines, YAML files and docs.

A job's options are the fields of one pydantic model. `load` makes a command line of them, merges a `--config FILE.yaml`
below it (the command line wins) and turns every mistake into a `UserError` that names the option.
"""

import argparse
import re
import types
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from da2ray.errors import UserError
from da2ray.images import Limits
from da2ray.labels.schema import Reason, Status
from da2ray.quality.duplicates import DEFAULT_DISTANCE, MAX_DISTANCE

Model = TypeVar("Model", bound="JobConfig")
_LIMITS = Limits()


class ShardFormat(StrEnum):
    """How shards are stored; one format for a dataset."""

    PARQUET = "parquet"
    ZARR = "zarr"


class JobConfig(BaseModel):
    """Base of the jobs' configurations: unknown names are errors, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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
    actors: Annotated[str, StringConstraints(pattern=r"^\d+(:\d+)?$")] | None = Field(
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
    max_failed: str = Field(
        "100%",
        description="stop, and exit 1, where more failed: a count, or a share such as 2%% of what is done (of 1,000 at least)",
    )
    retry_failed: list[str] | None = Field(
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

    @field_validator("retry_failed", "allow_scheme", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return split_list(value)

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

    @field_validator("retry_failed")
    @classmethod
    def _failure_classes(cls, value: list[str] | None) -> list[str] | None:
        known = [reason.value for reason in Reason if reason.status is Status.FAILED]
        if unknown := sorted(set(value or ()) - set(known)):
            raise ValueError(f"{unknown[0]} is no failure class: there are {', '.join(known)}")
        return None if value is None else sorted(set(value))

    @field_validator("actors")
    @classmethod
    def _actors_in_order(cls, value: str | None) -> str | None:
        if value is not None:
            low, high = parse_range(value)
            if not 1 <= low <= high:
                raise ValueError("MIN:MAX needs 1 <= MIN <= MAX")
        return value

    @field_validator("max_failed")
    @classmethod
    def _a_count_or_a_share(cls, value: str) -> str:
        if not re.fullmatch(r"\d+|\d+(\.\d+)?%", value):
            raise ValueError("a count such as 100, or a share such as 2%")
        return value


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


class TrainTeacherConfig(JobConfig):
    """Train the embedded tiny teacher on rendered worlds; run the same command again to go on."""

    work: str = Field("scratch/train-teacher", description="folder for rendered worlds and the checkpoint")
    scenes: int = Field(10240, ge=1, description="worlds to train on")
    steps: int = Field(4000, ge=1, description="may be changed between runs")
    batch_size: int = Field(32, ge=2, description="pictures of 168 x 224 in a step; of smaller ones more")
    learning_rate: float = Field(1e-3, gt=0, description="at its peak")
    seed: int = Field(0, ge=0, description="of the first weights and of what each step sees")
    device: Literal["cpu", "cuda"] = Field("cpu", description="where it trains")
    held_out: int = Field(500, ge=1, description="worlds to judge the result on")
    initial_weights: str | None = Field(
        None,
        description="weights of the same network to begin with: a file that an earlier training wrote [random ones]",
    )
    weights: str = Field("scratch/train-teacher/tiny.safetensors", description="where the result is written, in fp16")


class CurateConfig(JobConfig):
    """Choose rows of a snapshot by their scores and store the choice as a named view; or calibrate the scores."""

    dataset: str = Field(description="URL or path of a dataset")
    view: str | None = Field(None, description="name of the view to store; needed unless --dry-run or --calibrate")
    preset: Literal["lenient", "default", "strict", "none"] = Field(
        "default", description="rules to begin with; those of scores that the dataset does not have are skipped"
    )
    where: list[str] = Field(
        [],
        description='a rule: SQL over the index that kept rows do not break, such as "flip_p90 < 0.08 AND blur > 20" or '
        '"flip_p90 below p95", the percentile over labelled rows; may be given again',
    )
    dedupe: int | None = Field(
        None,
        ge=0,
        le=MAX_DISTANCE,
        description="of near-duplicates among the rows kept keep the one of most pixels: bits in which their perceptual hashes "
        f"may differ, {DEFAULT_DISTANCE} say; of 62 million that takes minutes, 7 an hour of CPU, 10 a day [off]",
    )
    val_share: float = Field(0.05, ge=0, lt=1, description="share of keys that go to the split val, by their hash")
    snapshot: int | None = Field(None, ge=1, description="number of the snapshot [the newest]")
    replace: bool = Field(False, description="replace another view of this name")
    dry_run: bool = Field(False, description="print the table and store nothing")
    calibrate: str | None = Field(
        None,
        description="only say how well each score predicts true errors, and store no view: URL of true depth, named as each "
        "image's key without its suffix, and .npy (float metres) or .png (16-bit millimetres)",
    )
    error: Literal["abs_rel", "disparity"] | None = Field(
        None,
        description="true error that --calibrate counts: abs_rel, |depth - truth| / truth, which lies in what is far; disparity, "
        "that of 1 / depth in units of its spread, which lies in what is near [abs_rel]",
    )
    calibration_output: str | None = Field(
        None, description="path or URL of a file that --calibrate writes all it found to, as JSON"
    )
    storage_client: Literal["auto", "obstore", "fsspec"] = Field(
        "auto", description="how object stores are reached [obstore where it knows the scheme]"
    )

    @field_validator("where", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value  # not `split_list`: SQL has commas


def split_list(value: object) -> object:
    """`"a,b"` and `["a,b", "c"]` -> a list of words; anything else as it is, for pydantic to judge."""
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return value
    return [part for word in words for part in word.split(",") if part]


def parse_settings(value: object) -> object:
    """`["KEY=VALUE", …]`, or a mapping as YAML has them -> the mapping, values as text; anything else as it is.

    Raises:
        ValueError: a word is no KEY=VALUE, or a key is there twice.
    """
    if isinstance(value, Mapping):
        return {str(key): str(setting) for key, setting in value.items()}
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        return value
    settings: dict[str, str] = {}
    for word in value:
        key, equals, setting = word.partition("=")
        if not (key and equals and setting):
            raise ValueError(f"expected KEY=VALUE, not {word!r}")
        if key in settings:
            raise ValueError(f"{key} is there twice")
        settings[key] = setting
    return settings


def parse_range(text: str) -> tuple[int, int]:
    """`"2:8"` -> (2, 8); `"4"` -> (4, 4)."""
    low, _, high = text.partition(":")
    return int(low), int(high or low)


def load(model: type[Model], argv: Sequence[str], *, prog: str | None = None) -> Model:
    """Parse a command line, with `--config FILE.yaml` below it.

    Raises:
        UserError: an option is unknown, missing or out of range, or the file cannot be read.
        SystemExit: after `--help` (code 0).
    """
    parser = _parser(model, prog)
    given = vars(parser.parse_args(argv))
    path = given.pop("config", None)
    values = (_read_yaml(Path(path)) if path else {}) | given
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(_explain(problem) for problem in error.errors()[:2])) from None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message}\nsee {self.prog} --help")


def _parser(model: type[JobConfig], prog: str | None) -> argparse.ArgumentParser:
    parser = _Parser(prog=prog, description=model.__doc__, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE.yaml", help="options from a YAML file; the command line wins")
    for name, field in model.model_fields.items():
        option = "--" + name.replace("_", "-")
        kind = _plain_type(field.annotation)
        default = (
            ""
            if field.is_required() or field.default in (None, {}) or kind is bool
            else f" [{field.default}]".replace("%", "%%")
        )
        text = f"{field.description}{default}"
        if kind is bool:
            parser.add_argument(option, action=argparse.BooleanOptionalAction, help=text)
        elif get_origin(kind) is Literal:
            parser.add_argument(option, choices=get_args(kind), help=text)
        elif get_origin(kind) is list:
            # One list, in one go or one by one: the last of several would win, and the others be lost without a word.
            metavar = "SQL" if name == "where" else "NAME"
            parser.add_argument(option, nargs="*", action="extend", metavar=metavar, help=text)
        elif get_origin(kind) is dict:
            parser.add_argument(option, nargs="+", metavar="KEY=VALUE", help=text)
        elif isinstance(kind, type) and issubclass(kind, StrEnum):
            parser.add_argument(option, choices=[member.value for member in kind], help=text)
        else:
            parser.add_argument(option, metavar={int: "N", float: "X"}.get(kind, "TEXT"), help=text)
    return parser


def _plain_type(annotation: Any) -> Any:
    """The type inside `X | None` and `Annotated[X, …]`."""
    if get_origin(annotation) is Annotated:
        return _plain_type(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return _plain_type(next(part for part in get_args(annotation) if part is not type(None)))
    return annotation


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is not YAML: {' '.join(str(error).split())[:160]}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"--config {path}: expected `option: value` lines, found a {type(values).__name__}")
    return {str(name).replace("-", "_"): value for name, value in values.items()}


def _explain(problem: Any) -> str:
    option = "--" + ".".join(str(part) for part in problem["loc"]).replace("_", "-")
    if problem["type"] == "missing":
        return f"{option} is required"
    if problem["type"] == "extra_forbidden":
        return f"{option} is not an option of this job"
    return f"{option}: {problem['msg'].removeprefix('Value error, ')} (got {problem['input']!r})"
