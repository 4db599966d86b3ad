"""Choose rows of a snapshot: rules, then near-duplicates, then a split. `da2ray.commands.curate` stores the choice as a view."""

# ruff: noqa: S608 - what is put into the SQL here are constants of this module

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import duckdb
import numpy as np
import pyarrow as pa

from da2ray.errors import UserError
from da2ray.labels.views import Dedupe
from da2ray.quality.catalog import TABLE
from da2ray.quality.duplicates import HASH_BITS, find_duplicates, threads_to_use
from da2ray.quality.filters import BoundRule, Effect, Skipped, apply, resolve

PLAIN_BITS: Final = 16
"""An image of nearly one colour has a hash of fewer set bits (`da2ray.quality.phash`: an image of one colour has none, one
with content has 32). Such a hash says nothing about what the image shows, so these rows are never duplicates. Rules such as
`blank` find them."""

BATCH: Final = 100_000
"""Rows handed over at a time."""

TRAIN, VAL = "train", "val"


@dataclass(frozen=True, slots=True)
class Duplicates:
    """The near-duplicates among the rows that the rules keep. `plain` rows and `unhashed` rows were not compared."""

    found: Dedupe
    plain: int
    unhashed: int


@dataclass(frozen=True, slots=True)
class Choice:
    """The rows that a curation keeps, as counts; `kept_rows` reads the rows themselves.

    Attributes:
        rules, effects: each rule, and what it removes.
        skipped: rules of the preset whose scores the dataset does not have.
        duplicates: None if none were looked for.
        by_split: kept rows by split.
    """

    rules: list[BoundRule]
    effects: list[Effect]
    skipped: list[Skipped]
    duplicates: Duplicates | None
    by_split: dict[str, int]

    @property
    def kept(self) -> int:
        return sum(self.by_split.values())


def columns_of(rules: Iterable[BoundRule], *, dedupe: bool) -> set[str]:
    """The columns of the index that a choice reads."""
    columns = {"key", *(column for rule in rules for column in rule.columns)}
    return columns | {"phash", "width", "height"} if dedupe else columns


def choose(
    catalog: duckdb.DuckDBPyConnection,
    preset: Sequence[BoundRule],
    own: Sequence[BoundRule],
    *,
    dedupe: int | None,
    val_share: float,
) -> Choice:
    """Apply the rules of a preset and the user's own, remove near-duplicates, and split the remaining rows.

    Args:
        dedupe: the bits in which hashes of near-duplicates may differ; None keeps them all.
        val_share: the share of keys that go to the split `val`.

    Raises:
        UserError: a rule of one's own is wrong or needs a score that the dataset does not have.
    """
    rules, skipped = resolve(catalog, preset, skip=True)
    rules += resolve(catalog, own, skip=False)[0]
    effects = apply(catalog, rules)
    duplicates = None if dedupe is None else remove_duplicates(catalog, dedupe)
    return Choice(rules, effects, skipped, duplicates, _split(catalog, val_share))


def kept_rows(catalog: duckdb.DuckDBPyConnection) -> Iterator[pa.RecordBatch]:
    """The rows that `choose` kept, with key and split, ascending."""
    yield from catalog.sql("SELECT row, key, split FROM chosen ORDER BY row").to_arrow_reader(BATCH)


def split_threshold(val_share: float) -> int:
    """A key belongs to the split `val` if the first 8 bytes of the MD5 of its UTF-8, as a big-endian number, are below this."""
    return math.ceil(Fraction(val_share) * 2**64)


def remove_duplicates(catalog: duckdb.DuckDBPyConnection, distance: int) -> Duplicates:
    """Remove near-duplicates from the table `kept`: the row with most pixels stays, and of equal ones the first key.

    Raises:
        UserError: no row has a perceptual hash.
    """
    kept = f"{TABLE} SEMI JOIN kept USING (row)"
    ((total, unhashed, plain),) = catalog.execute(
        f"SELECT count(*), count(*) FILTER (phash IS NULL), count(*) FILTER (bit_count(phash) < {PLAIN_BITS}) FROM {kept}"
    ).fetchall()
    if total and unhashed == total:
        raise UserError("--dedupe: no row has a perceptual hash, as an older da2ray labelled them: label again")
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


def why_nothing(choice: Choice) -> str:
    """Name the rule that leaves no row: one that removes all rows by itself, or else the one that removes the last."""
    if not choice.effects:
        return "no row is labelled, so no view is stored"
    labelled = choice.effects[0].removes + choice.effects[0].kept_after
    pairs = list(zip(choice.rules, choice.effects, strict=True))
    blamed = [rule for rule, effect in pairs if effect.removes == labelled]
    what = f"all {labelled:,} labelled rows"
    if not blamed:
        blamed = [rule for rule, effect in pairs if not effect.kept_after]
        what = "the last rows that the rules before it keep"
    where = " ".join(blamed[0].resolved.split())
    return f"no row is left, so no view is stored: rule {blamed[0].rule.name} ({where}) removes {what}"


def _columns(reader: Iterable[pa.RecordBatch], count: int) -> tuple[np.ndarray, np.ndarray]:
    """The int64 rows and uint64 hashes of a query's answer, without a second copy of it."""
    rows, hashes = np.empty(count, np.int64), np.empty(count, np.uint64)
    start = 0
    for batch in reader:
        stop = start + len(batch)
        rows[start:stop], hashes[start:stop] = batch["row"].to_numpy(), batch["phash"].to_numpy()
        start = stop
    return rows, hashes


def _split(catalog: duckdb.DuckDBPyConnection, val_share: float) -> dict[str, int]:
    """Make the table `chosen`, which holds the kept rows with key and split, and count each split."""
    # Hexadecimal digits of one length sort as the number does.
    val = f"left(md5(key), {HASH_BITS // 4}) < '{split_threshold(val_share):016x}'"
    catalog.execute(
        f"CREATE TABLE chosen AS SELECT row, key, CASE WHEN {val} THEN '{VAL}' ELSE '{TRAIN}' END AS split "
        f"FROM {TABLE} SEMI JOIN kept USING (row)"
    )
    counts = dict(catalog.execute("SELECT split, count(*) FROM chosen GROUP BY split").fetchall())
    return {split: counts.get(split, 0) for split in (TRAIN, VAL)}
