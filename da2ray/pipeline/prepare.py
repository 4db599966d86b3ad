"""The checked configuration of a run. Nothing is written before it is complete."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from da2ray.commands.pseudolabel import PseudolabelConfig
from da2ray.errors import UnavailableError, UserError
from da2ray.images.decode import DecodeMode, Limits
from da2ray.labels.codec import default_bits
from da2ray.labels.dataset import CheckedBy, DatasetInfo, check_same, open_dataset
from da2ray.labels.snapshots import list_snapshots
from da2ray.pipeline.control.cluster import gpu_count, resolve_device
from da2ray.pipeline.stages.decoding import Decoding
from da2ray.pipeline.stages.labelling import Labelling
from da2ray.pipeline.stages.reading import Reading, uses_camera
from da2ray.pipeline.stages.writing import Writing
from da2ray.plan.plan import plan_id, require_samples
from da2ray.plan.retry import failed_samples
from da2ray.plan.update import Purpose, UpdateSource
from da2ray.sources import Source, open_source
from da2ray.storage import Store, canonical_url, open_store, redact, redacted
from da2ray.teachers.base import Camera, LoadOptions, TeacherSpec
from da2ray.teachers.registry import licence_line, resolve


@dataclass(frozen=True, slots=True)
class Job:
    """A checked configuration: everything that a user can get wrong was checked, and nothing is written yet.

    `purpose` and `parent` are those of the plan (`PlanInfo`).
    """

    config: PseudolabelConfig
    spec: TeacherSpec
    load: LoadOptions
    reading: Reading
    store: Store
    dataset: DatasetInfo
    checker: tuple[TeacherSpec, LoadOptions] | None = None
    purpose: Purpose = Purpose.LABEL
    parent: int = 0

    @property
    def plan_id(self) -> str:
        return plan_id(self.reading.source.describe(), **self.plan_options)

    @property
    def plan_options(self) -> dict[str, Any]:
        """The options of `make_plan`: what decides a plan besides the source."""
        config = self.config
        return {
            "shard_size": config.shard_size,
            "shard_bytes": config.shard_bytes,
            "limit": config.limit,
            "fingerprint": self.fingerprint,
            "purpose": self.purpose,
            "parent": self.parent,
        }

    @property
    def fingerprint(self) -> str:
        return self.dataset.created_by.fingerprint

    @property
    def consistency(self) -> tuple[str, ...]:
        """The second opinions that the teacher itself gives."""
        return own_opinions(self.config)

    def labelling(self, processes: int) -> Labelling:
        """The settings of the label stage; `processes` may share a machine's cores."""
        return Labelling(
            spec=self.spec,
            load=self.load,
            bits=self.dataset.codec.bits,
            mask_bits=self.dataset.codec.mask_bits,
            decoding=self.reading.decoding,
            sample_timeout=self.config.sample_timeout,
            processes=processes,
            checker=self.checker,
            consistency=self.consistency,
        )

    @property
    def writing(self) -> Writing:
        """The settings of the write stage."""
        return Writing(
            store=self.store,
            plan=self.plan_id,
            format=self.config.format,
            kind=self.spec.kind.value,
            fingerprint=self.fingerprint,
            mask_bits=self.dataset.codec.mask_bits,
            camera=self.camera.value,
        )

    @property
    def camera(self) -> Camera:
        """What happens if a focal length is not known: as the teacher does, or as the checker does if the teacher needs none."""
        if self.spec.camera is Camera.UNUSED and self.checker:
            return self.checker[0].camera
        return self.spec.camera


Update = Callable[[Source, Store], UpdateSource]
"""What makes a source of what changes in a dataset, of the source of its images and the dataset."""


def prepare(config: PseudolabelConfig, console: Console, update_of: Update | None = None) -> Job:
    """Check everything that a user can get wrong, cheapest first: places, teacher, weights, cluster, fingerprint.

    Args:
        update_of: makes what to label, if it is not all of the source.

    Raises:
        UserError: something is wrong.
    """
    # Before a hub is asked for a teacher or its weights.
    source = open_source(config.images, **config.source_options)
    store = open_store(config.output, config.storage_client)
    check_output(store)
    stored = open_dataset(store)
    spec = resolve(config.teacher, config.teacher_option)
    console.print(licence_line(spec), highlight=False)
    check_consistency(config, spec)
    checker_spec = resolve_checker(config, console)
    update = update_of(source, store) if update_of else None
    if config.retry_failed is not None:
        update = failed_samples(source, store, config.retry_failed)
    if update_of is None:
        require_samples(update or source)  # before anything is written
    sha256 = spec.identify(
        LoadOptions(config.weights, compile=config.compile, trust_remote_code=config.trust_remote_code)
    )
    checker = None
    if checker_spec:
        checker = checker_spec, identify_checker(config, checker_spec, spec, sha256)
    device, precision = resolve_device(config, gpu_count(config, console), console)
    limits = Limits(config.min_side, config.max_aspect, config.max_tokens, config.max_pixels)
    bits = default_bits(spec.kind)
    dataset = DatasetInfo.make(
        spec,
        sha256,
        source=source.url,
        decode=config.decode,
        precision=precision,
        bits=bits,
        format=config.format,
        mask_bits=config.mask_bits,
        checker=checker and checker[1],
        consistency=own_opinions(config),
    )
    dataset = dataset.model_copy(update={"options": stored_options(config)})
    if stored:
        check_same(stored, dataset, store.url)
    load = LoadOptions(config.weights, device, precision, config.compile, config.trust_remote_code)
    decoding = Decoding(DecodeMode(config.decode), checker and checker[0].size_rule)
    return Job(
        config,
        spec,
        load,
        Reading(
            update or source,
            spec.size_rule,
            limits,
            decoding,
            config.batch_size,
            uses_camera(spec, checker_spec),
            update.snapshot if update else None,
        ),
        store,
        stored or dataset,
        checker and (checker[0], replace(load, weights=config.checker_weights)),
        update.purpose if update else Purpose.LABEL,
        update.snapshot if update else max(list_snapshots(store), default=0),
    )


def stored_options(config: PseudolabelConfig) -> dict[str, Any]:
    """The options of a run that a refresh of its dataset uses: those that were given, where any folder may be the current one.

    Without the URL of the images if it holds a credential.
    """
    given = config.model_dump(mode="json", include=config.model_fields_set, exclude=OF_ONE_RUN)
    images = canonical_url(config.images)
    given["images"] = images if redact(images) == images else None
    for name in ("weights", "checker_weights"):
        if given.get(name) and Path(given[name]).exists():
            given[name] = str(Path(given[name]).absolute())
    return redacted(given)


OF_ONE_RUN = {
    "output",
    "limit",
    "dry_run",
    "retry_failed",
    "ray_address",
    "progress",
    "lease_seconds",
    "storage_client",
}
"""Options that say nothing about the labels."""


def own_opinions(config: PseudolabelConfig) -> tuple[str, ...]:
    """The second opinions of `--consistency`, without the checker: it has its own options and its own part of the fingerprint."""
    return tuple(name for name in config.consistency if name != "checker")


def check_consistency(config: PseudolabelConfig, spec: TeacherSpec) -> None:
    """Check that the teacher can give the second opinions of `--consistency`.

    Raises:
        UserError: it cannot give one of them.
    """
    if "checker" in config.consistency and config.checker is None:
        raise UserError("--consistency checker: say which teacher checks with --checker NAME, or leave checker out")
    if "scale" in config.consistency and spec.size_step is None:
        raise UserError(
            f"--consistency scale: {spec.name} takes images only at its own size: leave scale out; flip works with every teacher"
        )


def check_output(store: Store) -> None:
    """Check that the store can hold a dataset: its bucket exists, or its folder can be made. Nothing is written.

    Raises:
        UserError: the store cannot hold one.
        UnavailableError: the store does not answer.
    """
    problem: object = None
    if store.url.startswith("/"):
        # `lexists`, because a link to nothing is there but cannot become a folder.
        nearest = next(each for each in (Path(store.url), *Path(store.url).parents) if os.path.lexists(each))
        if not nearest.is_dir():
            problem = f"{nearest} is not a folder"
        elif not os.access(nearest, os.W_OK | os.X_OK):
            problem = f"no permission to write in {nearest}"
    else:
        try:
            next(iter(store.list("snapshots")), None)
        except UnavailableError:
            raise
        except OSError as error:
            problem = error
    if problem:
        raise UserError(f"cannot write to {store.url}: {problem}\nchoose another --output or mend its permissions")


def resolve_checker(config: PseudolabelConfig, console: Console) -> TeacherSpec | None:
    """The spec of `--checker`; None without it.

    Raises:
        UserError: no teacher has that name.
    """
    if config.checker is None:
        if config.checker_weights is not None:
            raise UserError("--checker-weights: give --checker too, or drop it")
        return None
    with _checker_options():
        checker = resolve(config.checker)
    console.print(licence_line(checker), highlight=False)
    return checker


def identify_checker(config: PseudolabelConfig, checker: TeacherSpec, spec: TeacherSpec, sha256: str) -> CheckedBy:
    """What decides the opinions of a checker of the teacher `spec`, whose weights have the hash `sha256`.

    Raises:
        UserError: its weights do not fit, or it is the teacher itself.
    """
    options = LoadOptions(config.checker_weights, compile=config.compile, trust_remote_code=config.trust_remote_code)
    with _checker_options():
        checked_by = CheckedBy.make(checker, checker.identify(options))
    if (checker.name, checked_by.weights_sha256) == (spec.name, sha256):
        raise UserError(f"--checker {checker.name} is the teacher itself, and would agree with it: choose another one")
    return checked_by


@contextmanager
def _checker_options() -> Iterator[None]:
    """Let an error name the options that chose the checker instead of those that choose the teacher."""
    try:
        yield
    except UserError as error:
        message = str(error).replace("--teacher", "--checker").replace("--weights", "--checker-weights")
        raise UserError(message) from error
