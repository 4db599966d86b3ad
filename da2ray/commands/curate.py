"""The job behind `jobs/curate.py`: rules, near-duplicates and a split make a view of a snapshot; nothing is labelled again."""

# ruff: noqa: S608 - what is put into the SQL here are constants of this module

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from typing import Final, Literal

import duckdb
import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator
from rich.console import Console
from rich.table import Column, Table

from da2ray.commands.options import JobConfig
from da2ray.console import progress
from da2ray.errors import Exit, Status, UserError
from da2ray.labels.snapshots import Snapshot, open_snapshot
from da2ray.labels.views import Dedupe, View, view_key, write_view
from da2ray.labels.views import Rule as StoredRule
from da2ray.quality.catalog import TABLE, open_catalog
from da2ray.quality.duplicates import DEFAULT_DISTANCE, HASH_BITS, MAX_DISTANCE, find_duplicates, threads_to_use
from da2ray.quality.filters import BoundRule, Effect, Rule, Skipped, apply, bind, resolve
from da2ray.quality.presets import PRESETS
from da2ray.storage import Store, open_store
from da2ray.upkeep import require_dataset

PLAIN_BITS: Final = 16
"""A hash of fewer set bits belongs to an image of next to one colour (`da2ray.quality.phash`: an image of one colour has
none, one with content 32). It says nothing of what the image shows, so such rows are no one's duplicates: rules such as
`blank` are for them."""

BATCH: Final = 100_000
"""Rows handed over at a time."""

TRAIN, VAL = "train", "val"


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


@dataclass(frozen=True, slots=True)
class Duplicates:
    """What was found among the rows that the rules keep; `plain` rows were not compared, nor were `unhashed` ones."""

    found: Dedupe
    plain: int
    unhashed: int


def curate(config: CurateConfig, console: Console) -> int:
    """Run the job.

    Raises:
        UserError: a rule is wrong, or asks for what the dataset does not have; there is another view of this name.
        OSError: the store failed, or what it holds is corrupt.
    """
    store = open_store(config.dataset, config.storage_client)
    require_dataset(store)
    if config.calibrate is not None:
        return _calibrate(config, console)
    for option in ("error", "calibration_output"):
        if getattr(config, option) is not None:
            raise UserError(f"--{option.replace('_', '-')} is for --calibrate, which is not given")
    if config.view is None and not config.dry_run:
        raise UserError("--view is required: the name to store the choice under, unless --dry-run or --calibrate")
    if config.view is not None:
        view_key(config.view)
    preset = bind(PRESETS[config.preset] if config.preset != "none" else ())
    own = bind(Rule(f"where {number}", where) for number, where in enumerate(config.where, 1))
    snapshot = open_snapshot(store, config.snapshot)
    columns = {"key", *(column for bound in (*preset, *own) for column in bound.columns)}
    if config.dedupe is not None:
        columns |= {"phash", "width", "height"}
    with ExitStack() as stack:
        with progress("reading the index", "rows") as on_progress:
            catalog = stack.enter_context(open_catalog(store, snapshot, columns, on_progress))
        rules, skipped = resolve(catalog, preset, skip=True)
        rules += resolve(catalog, own, skip=False)[0]
        effects = apply(catalog, rules)
        duplicates = None if config.dedupe is None else remove_duplicates(catalog, config.dedupe)
        by_split = _split(catalog, config.val_share)
        _print(console, store, snapshot, rules, effects, skipped, duplicates, by_split)
        if config.dry_run or config.view is None:
            console.print("nothing stored: --dry-run")
            return Exit.DONE
        if not any(by_split.values()):
            raise UserError(_why_nothing(rules, effects))
        view = View(
            name=config.view,
            created=datetime.now(UTC).isoformat(),
            snapshot=snapshot.number,
            rows=snapshot.rows,
            kept=sum(by_split.values()),
            rules=tuple(
                StoredRule(
                    name=bound.rule.name,
                    where=bound.rule.where,
                    resolved=bound.resolved,
                    removes=effect.removes,
                    alone=effect.alone,
                )
                for bound, effect in zip(rules, effects, strict=True)
            ),
            skipped=tuple((each.name, each.why) for each in skipped),
            dedupe=duplicates.found if duplicates else None,
            val_share=config.val_share,
            by_split=by_split,
        )
        write_view(store, view, _kept(catalog), replace=config.replace)
    console.print(f"view {config.view} stored; to read it: da2ray.open_labels({store.url!r}, view={config.view!r})")
    return Exit.DONE


def _calibrate(config: CurateConfig, console: Console) -> int:
    from da2ray.quality.calibration import calibrate_dataset  # noqa: PLC0415 - torch, which views do without
    from da2ray.quality.truth import ErrorKind  # noqa: PLC0415 - likewise

    assert config.calibrate is not None  # noqa: S101 - the caller looked
    of_views = {"view", "where", "dedupe", "preset", "val_share", "replace", "dry_run"}
    if useless := sorted(config.model_fields_set & of_views):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in useless)
        raise UserError(f"--calibrate judges all labels that have ground truth and stores no view: leave {options} out")
    return calibrate_dataset(
        config.dataset,
        config.calibrate,
        console,
        client=config.storage_client,
        snapshot=config.snapshot,
        output=config.calibration_output,
        kind=ErrorKind(config.error) if config.error else ErrorKind.ABS_REL,
    )


def split_threshold(val_share: float) -> int:
    """A key is of the split `val` where the first 8 bytes of the MD5 of its UTF-8, as a big-endian number, are below this."""
    return math.ceil(Fraction(val_share) * 2**64)


def remove_duplicates(catalog: duckdb.DuckDBPyConnection, distance: int) -> Duplicates:
    """Take near-duplicates out of the table `kept`: of those that are alike the one of most pixels stays, then the first key.

    Raises:
        UserError: no row has a perceptual hash.
    """
    kept = f"{TABLE} SEMI JOIN kept USING (row)"
    ((total, unhashed, plain),) = catalog.execute(
        f"SELECT count(*), count(*) FILTER (phash IS NULL), count(*) FILTER (bit_count(phash) < {PLAIN_BITS}) FROM {kept}"
    ).fetchall()
    if total and unhashed == total:
        raise UserError(
            "--dedupe: no row has a perceptual hash, since it was labelled before there was one: label again"
        )
    reader = catalog.sql(
        f"SELECT row, phash FROM {kept} WHERE bit_count(phash) >= {PLAIN_BITS} "
        "ORDER BY width::BIGINT * height DESC NULLS LAST, key, row"
    ).to_arrow_reader(BATCH)
    rows, hashes = _columns(reader, total - unhashed - plain)
    duplicate_of = find_duplicates(hashes, distance, threads_to_use())
    gone = duplicate_of >= 0
    catalog.register("gone", pa.table({"row": rows[gone]}))
    catalog.execute("DELETE FROM kept USING gone WHERE kept.row = gone.row")
    catalog.unregister("gone")
    clusters = len(np.unique(duplicate_of[gone]))
    return Duplicates(Dedupe(distance=distance, clusters=clusters, removed=int(gone.sum())), plain, unhashed)


def _columns(reader: Iterable[pa.RecordBatch], count: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 rows and uint64 hashes of a query's answer, without a second copy of it."""
    rows, hashes = np.empty(count, np.int64), np.empty(count, np.uint64)
    start = 0
    for batch in reader:
        stop = start + len(batch)
        rows[start:stop], hashes[start:stop] = batch["row"].to_numpy(), batch["phash"].to_numpy()
        start = stop
    return rows, hashes


def _split(catalog: duckdb.DuckDBPyConnection, val_share: float) -> dict[str, int]:
    """Make the table `chosen`: kept rows with key and split, and count its splits."""
    # Hexadecimal digits of one length sort as the number does.
    val = f"left(md5(key), {HASH_BITS // 4}) < '{split_threshold(val_share):016x}'"
    catalog.execute(
        f"CREATE TABLE chosen AS SELECT row, key, CASE WHEN {val} THEN '{VAL}' ELSE '{TRAIN}' END AS split "
        f"FROM {TABLE} SEMI JOIN kept USING (row)"
    )
    counts = dict(catalog.execute("SELECT split, count(*) FROM chosen GROUP BY split").fetchall())
    return {split: counts.get(split, 0) for split in (TRAIN, VAL)}


def _kept(catalog: duckdb.DuckDBPyConnection) -> Iterator[pa.RecordBatch]:
    yield from catalog.sql("SELECT row, key, split FROM chosen ORDER BY row").to_arrow_reader(BATCH)


def _why_nothing(rules: list[BoundRule], effects: list[Effect]) -> str:
    """Which rule it is by which no row is left: one that removes all by itself, or else the one that removes the last."""
    labelled = effects[0].removes + effects[0].kept_after
    found = list(zip(rules, effects, strict=True))
    blamed = [rule for rule, effect in found if effect.removes == labelled]
    what = f"all {labelled:,} labelled rows"
    if not blamed:
        blamed = [rule for rule, effect in found if not effect.kept_after]
        what = "the last rows that those before it keep"
    said = " ".join(blamed[0].resolved.split())
    return f"no row is left, so no view is stored: rule {blamed[0].rule.name} ({said}) removes {what}"


def _print(
    console: Console,
    store: Store,
    snapshot: Snapshot,
    rules: list[BoundRule],
    effects: list[Effect],
    skipped: list[Skipped],
    duplicates: Duplicates | None,
    by_split: dict[str, int],
) -> None:
    labelled = snapshot.by_status[Status.LABELLED.value]
    console.print(
        f"{store.url}, snapshot {snapshot.number}: {snapshot.rows:,} rows, of which {labelled:,} are labelled; "
        f"the other {snapshot.rows - labelled:,} are in no view"
    )
    if rules or duplicates:
        heads = [Column(name, justify="right") for name in ("removes", "only it", "kept after it")]
        table = Table("rule", Column("keeps rows with", overflow="fold"), *heads, box=None)
        for bound, effect in zip(rules, effects, strict=True):
            counts = (f"{count:,}" for count in (effect.removes, effect.alone, effect.kept_after))
            table.add_row(bound.rule.name, " ".join(bound.resolved.split()), *counts)
        if duplicates:
            removed, left = f"{duplicates.found.removed:,}", f"{sum(by_split.values()):,}"
            table.add_row("dedupe", str(duplicates.found), removed, removed, left)
        console.print(table)
    for each in skipped:
        console.print(f"skipped rule {each.name}: {each.why}")
    if duplicates:
        console.print(
            f"{duplicates.found.clusters:,} clusters of look-alikes; not compared: {duplicates.plain:,} images of next to one "
            f"colour, {duplicates.unhashed:,} without a hash"
        )
    kept = sum(by_split.values())
    share = f" ({kept / labelled:.1%} of labelled)" if labelled else ""
    console.print(f"kept {kept:,}{share}: {by_split[TRAIN]:,} train, {by_split[VAL]:,} val")
