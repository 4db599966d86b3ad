"""`jobs/curate.py`: choose rows of a snapshot and store the choice as a view; nothing is labelled again."""

from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Literal

from pydantic import field_validator
from rich.console import Console
from rich.table import Column, Table

from da2ray.commands.options import Command, CommandConfig, option
from da2ray.commands.shared import StorageClient, storage_client_option
from da2ray.console import counted, progress
from da2ray.errors import Exit, Status, UserError
from da2ray.labels.dataset import require_dataset
from da2ray.labels.snapshots import Snapshot, open_snapshot
from da2ray.labels.views import Rule as StoredRule
from da2ray.labels.views import View, view_key, write_view
from da2ray.quality.catalog import open_catalog
from da2ray.quality.curation import TRAIN, VAL, Choice, choose, columns_of, kept_rows, why_nothing
from da2ray.quality.duplicates import DEFAULT_DISTANCE, MAX_DISTANCE
from da2ray.quality.filters import Rule, bind
from da2ray.quality.presets import PRESETS
from da2ray.storage import Store, canonical_url, open_store, split_uri

WHAT, CHOICE, CALIBRATION = "what and where", "which rows", "calibrate the scores instead"


class CurateConfig(CommandConfig):
    """Choose rows of a snapshot by their scores and store the choice as a named view; or calibrate the scores."""

    dataset: str = option(..., "URL or path of a dataset", metavar="URL", group=WHAT)
    view: str | None = option(
        None, "name of the view to store; needed unless --dry-run or --calibrate", metavar="NAME", group=WHAT
    )
    dry_run: bool = option(False, "print the table and store nothing", group=WHAT)
    replace: bool = option(False, "replace another view of this name", group=WHAT)
    snapshot: int | None = option(None, "the snapshot to choose from [the newest]", metavar="NUMBER", group=WHAT, ge=1)
    storage_client: StorageClient = storage_client_option(WHAT)

    preset: Literal["lenient", "default", "strict", "none"] = option(
        "default", "rules to begin with; those whose scores the dataset does not have are skipped", group=CHOICE
    )
    where: list[str] = option(
        [],
        'a rule that kept rows do not break: SQL over the index, such as "flip_p90 < 0.08 AND blur > 20", or '
        '"flip_p90 below p95", a percentile of the labelled rows. May be given again',
        metavar="SQL",
        group=CHOICE,
    )
    dedupe: int | None = option(
        None,
        "remove near-duplicates, whose perceptual hashes differ in at most this many bits "
        f"({DEFAULT_DISTANCE} is a good start); the one with most pixels stays. With 62 million rows 4 bits take minutes, 7 an "
        "hour of CPU, 10 a day [off]",
        metavar="BITS",
        group=CHOICE,
        ge=0,
        le=MAX_DISTANCE,
    )
    val_share: float = option(
        0.05, "share of keys that go to the split val, by their hash", metavar="SHARE", group=CHOICE, ge=0, lt=1
    )

    calibrate: str | None = option(
        None,
        "only say how well each score predicts true errors, and store no view. The URL has true depth, named as each image's "
        "key without its suffix, as .npy (float metres) or .png (16-bit millimetres)",
        metavar="URL",
        group=CALIBRATION,
    )
    error: Literal["abs_rel", "disparity"] | None = option(
        None,
        "the true error to count: abs_rel, |depth - truth| / truth, lies in what is far; disparity, the error of 1 / depth in "
        "units of its spread, lies in what is near [abs_rel]",
        group=CALIBRATION,
    )
    calibration_output: str | None = option(
        None, "write all that --calibrate finds to this file, as JSON", metavar="URL", group=CALIBRATION
    )

    @field_validator("where", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value  # not `split_list`: SQL has commas


def curate(config: CurateConfig, console: Console) -> int:
    """Choose, print what each rule removes, and store the view.

    Raises:
        UserError: a rule is wrong or needs a score that the dataset does not have, or there is another view of this name.
        OSError: the store failed, or what it holds is corrupt.
    """
    store = open_store(config.dataset, config.storage_client)
    require_dataset(store)
    if config.calibrate is not None:
        return _calibrate(config, config.calibrate, console)
    for name in ("error", "calibration_output"):
        if getattr(config, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} belongs to --calibrate: give --calibrate too, or drop it")
    if config.view is None and not config.dry_run:
        raise UserError("--view is required: the name to store the choice under, unless --dry-run or --calibrate")
    if config.view is not None:
        view_key(config.view)
    preset = bind(PRESETS[config.preset] if config.preset != "none" else ())
    own = bind(Rule(f"where {number}", where) for number, where in enumerate(config.where, 1))
    snapshot = open_snapshot(store, config.snapshot)
    columns = columns_of((*preset, *own), dedupe=config.dedupe is not None)
    with ExitStack() as stack:
        with progress("reading the index", "rows") as on_progress:
            catalog = stack.enter_context(open_catalog(store, snapshot, columns, on_progress))
        choice = choose(catalog, preset, own, dedupe=config.dedupe, val_share=config.val_share)
        _print(store, snapshot, choice, console)
        if config.dry_run or config.view is None:
            console.print("nothing stored: --dry-run")
            return Exit.DONE
        if not choice.kept:
            raise UserError(why_nothing(choice))
        view = _view(config.view, snapshot, choice, config.val_share)
        write_view(store, view, kept_rows(catalog), replace=config.replace)
    console.print(f"view {config.view} stored; to read it: da2ray.open_labels({store.url!r}, view={config.view!r})")
    return Exit.DONE


def _view(name: str, snapshot: Snapshot, choice: Choice, val_share: float) -> View:
    rules = tuple(
        StoredRule(
            name=bound.rule.name,
            where=bound.rule.where,
            resolved=bound.resolved,
            removes=effect.removes,
            alone=effect.alone,
        )
        for bound, effect in zip(choice.rules, choice.effects, strict=True)
    )
    return View(
        name=name,
        created=datetime.now(UTC).isoformat(),
        snapshot=snapshot.number,
        rows=snapshot.rows,
        kept=choice.kept,
        rules=rules,
        skipped=tuple((each.name, each.why) for each in choice.skipped),
        dedupe=choice.duplicates.found if choice.duplicates else None,
        val_share=val_share,
        by_split=choice.by_split,
    )


def _calibrate(config: CurateConfig, truth: str, console: Console) -> int:
    # These import torch, which views do without.
    from da2ray.labels.reader import open_labels  # noqa: PLC0415
    from da2ray.quality.calibration import calibrate  # noqa: PLC0415
    from da2ray.quality.calibration_tables import print_calibration  # noqa: PLC0415
    from da2ray.quality.truth import ErrorKind  # noqa: PLC0415

    of_views = {"view", "where", "dedupe", "preset", "val_share", "replace", "dry_run"}
    if useless := sorted(config.model_fields_set & of_views):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in useless)
        raise UserError(f"--calibrate judges all labels that have ground truth and stores no view: leave {options} out")
    # A wrong URL of the output is found before the work.
    output = split_uri(canonical_url(config.calibration_output)) if config.calibration_output else None
    labels = open_labels(config.dataset, snapshot=config.snapshot, client=config.storage_client)
    kind = ErrorKind(config.error) if config.error else ErrorKind.ABS_REL
    with progress("calibrate", "labels") as on_progress:
        calibration = calibrate(labels, truth, config.storage_client, on_progress, kind)
    print_calibration(calibration, console)
    if output:
        root, key = output
        open_store(root, config.storage_client).put(key, calibration.to_json().encode())
    return Exit.DONE


def _print(store: Store, snapshot: Snapshot, choice: Choice, console: Console) -> None:
    labelled = snapshot.by_status[Status.LABELLED.value]
    console.print(
        f"{store.url}, snapshot {snapshot.number}: {counted(snapshot.rows, 'row')}, {labelled:,} of them labelled; "
        f"views leave out the other {snapshot.rows - labelled:,}"
    )
    duplicates = choice.duplicates
    if choice.rules or duplicates:
        heads = [Column(name, justify="right") for name in ("removes", "only it", "kept after it")]
        table = Table("rule", Column("keeps rows with", overflow="fold"), *heads, box=None)
        for bound, effect in zip(choice.rules, choice.effects, strict=True):
            counts = (f"{count:,}" for count in (effect.removes, effect.alone, effect.kept_after))
            table.add_row(bound.rule.name, " ".join(bound.resolved.split()), *counts)
        if duplicates:
            removed = f"{duplicates.found.removed:,}"
            table.add_row("dedupe", str(duplicates.found), removed, removed, f"{choice.kept:,}")
        console.print(table)
    for each in choice.skipped:
        console.print(f"skipped rule {each.name}: {each.why}")
    if duplicates:
        console.print(
            f"{counted(duplicates.found.clusters, 'cluster')} of look-alikes; not compared: "
            f"{counted(duplicates.plain, 'image')} of nearly one colour, {duplicates.unhashed:,} without a hash"
        )
    share = f" ({choice.kept / labelled:.1%} of labelled)" if labelled else ""
    console.print(f"kept {choice.kept:,}{share}: {choice.by_split[TRAIN]:,} train, {choice.by_split[VAL]:,} val")


COMMAND = Command(CurateConfig, curate)
