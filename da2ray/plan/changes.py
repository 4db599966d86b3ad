"""What changed in a source since a snapshot: one pass over its listing, with one segment of it in memory.

The listing is digested by the segments of the snapshot's own (`labels.listing`). Segments with equal digests are done. Of the
others the stored keys and versions are read and compared. What is found goes to a DuckDB database on the local disk.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from da2ray.errors import CorruptError, Status, UserError
from da2ray.labels.commits import REPLACES
from da2ray.labels.listing import VERSIONS, Digester, Listing, read_listing, write_listing
from da2ray.labels.live_rows import LiveRows
from da2ray.labels.scratch import append, load, scratch_database
from da2ray.labels.snapshots import Snapshot
from da2ray.plan.update import BEFORE
from da2ray.sources.base import Source
from da2ray.sources.members import MEMBERS, MemberSource
from da2ray.storage import Store

MOST_PENDING: Final = 262_144
"""Listed rows of one segment in memory at most: beyond it, they are compared with what is stored so far."""
BATCH: Final = 16_384

_OF_PLAN: Final = ("of_plan", "of_shard", "of_row")
FOUND: Final = pa.schema(
    [
        pa.field("what", pa.string(), nullable=False),
        *(MEMBERS.field(name).with_nullable(True) for name in MEMBERS.names),
        *(pa.field(f"old_{field.name}", field.type) for field in BEFORE),
    ]
)
"""A finding: NEW, CHANGED or GONE; the member as listed, and what the snapshot has of it (BEFORE)."""
NEW, CHANGED, GONE = "new", "changed", "gone"


@dataclass(frozen=True, slots=True)
class Tally:
    """Images, and their listed bytes; None if one of them is not known."""

    images: int = 0
    bytes: int | None = 0


@dataclass(frozen=True, slots=True)
class Summary:
    """How much changed. Those that seem to have moved are neither new nor gone: their bytes decide when they are read.

    Attributes:
        spared: rows that are not listed, but below something that the listing skipped; they stay.
    """

    new: Tally
    changed: Tally
    gone: Tally
    moved: Tally
    spared: int

    @property
    def is_empty(self) -> bool:
        return not (self.new.images or self.changed.images or self.gone.images or self.moved.images)


class Changes:
    """What differs between a source and a snapshot of its labels. A context manager, because it lies on the disk."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._database = self._stack.enter_context(scratch_database())
        load(self._database, "found", FOUND, ())
        self.summary = Summary(Tally(), Tally(), Tally(), Tally(), 0)

    def __enter__(self) -> "Changes":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Delete what lies on the disk."""
        self._stack.close()

    def add(self, found: pa.Table) -> None:
        """Take findings (FOUND)."""
        append(self._database, "found", found)

    def settle(self, rows: LiveRows, skipped: Sequence[str]) -> None:
        """Find what moved and what must stay, once all findings are there.

        A new key may have moved if its version is that of a labelled row that is gone.

        Args:
            rows: of the snapshot.
            skipped: beginnings of keys below which the source was not listed.
        """
        execute = self._database.execute
        spared = 0
        for beginning in skipped:
            where = f"what = '{GONE}' AND starts_with(key, ?)"
            (count,) = execute(f"SELECT count(*) FROM found WHERE {where}", [beginning]).fetchone() or (0,)  # noqa: S608
            execute(f"DELETE FROM found WHERE {where}", [beginning])  # noqa: S608 - constants
            spared += count
        execute(
            f"""CREATE TABLE moved AS
            SELECT new.key AS new_key, min(gone.key) AS key FROM found new JOIN found gone
                ON new.what = '{NEW}' AND gone.what = '{GONE}' AND coalesce(new.version, new.etag) = gone.old_version
                AND gone.old_status = '{Status.LABELLED.value}' GROUP BY 1"""  # noqa: S608 - constants
        )
        numbers = {part.name: number for number, part in enumerate(rows.snapshot.parts)}
        taken: pa.RecordBatchReader = self._database.sql(
            f"SELECT moved.new_key, gone.* FROM moved JOIN found gone ON gone.key = moved.key AND gone.what = '{GONE}'"  # noqa: S608
        ).to_arrow_reader(BATCH)
        hashed = []
        for batch in taken:
            table = pa.Table.from_batches([batch])
            old = pa.table(
                {
                    "part": pa.array([numbers[name] for name in table["old_part"].to_pylist()], pa.int32()),
                    "position": table["old_position"],
                    "status": table["old_status"],
                }
            )
            columns = {f"old_{name}": table[f"old_{name}"] for name in _OF_PLAN} | {"new_key": table["new_key"]}
            hashed.append(pa.table(columns | {"old_sha256": _hashes(old, rows)}))
        for labels in hashed:
            self._database.register("rows", labels)
            values = ", ".join(f"old_{name} = rows.old_{name}" for name in ("sha256", *_OF_PLAN))
            execute(f"UPDATE found SET {values} FROM rows WHERE found.key = rows.new_key AND found.what = '{NEW}'")  # noqa: S608
            self._database.unregister("rows")
        is_moved = f"(what = '{GONE}' AND key IN (SELECT key FROM moved))"  # noqa: S608 - constants
        is_taken = f"(what = '{NEW}' AND key IN (SELECT new_key FROM moved))"  # noqa: S608 - constants
        self.summary = Summary(
            new=self._tally(f"what = '{NEW}' AND NOT {is_taken}"),
            changed=self._tally(f"what = '{CHANGED}'"),
            gone=self._tally(f"what = '{GONE}' AND NOT {is_moved}"),
            moved=Tally(self._tally(is_moved).images, self._tally(is_taken).bytes),
            spared=spared,
        )

    def to_read(self) -> Iterator[pa.Table]:
        """New and changed samples in the order of keys (FOUND)."""
        return self._batches(f"what <> '{GONE}'")

    def gone(self) -> Iterator[pa.Table]:
        """Samples that are gone, those that moved among them, in the order of keys (FOUND)."""
        return self._batches(f"what = '{GONE}'")

    def _tally(self, where: str) -> Tally:
        query = f"SELECT count(*), count(size), coalesce(sum(size), 0)::BIGINT FROM found WHERE {where}"  # noqa: S608
        count, sized, total = self._database.execute(query).fetchone() or (0, 0, 0)
        return Tally(count, total if sized == count else None)

    def _batches(self, where: str) -> Iterator[pa.Table]:
        with self._database.cursor() as cursor:
            query = f"SELECT * FROM found WHERE {where} ORDER BY key"  # noqa: S608 - fixed
            found: pa.RecordBatchReader = cursor.sql(query).to_arrow_reader(BATCH)
            for batch in found:
                yield pa.Table.from_batches([batch]).cast(FOUND)


def compare(
    source: Source, store: Store, snapshot: Snapshot, on_progress: Callable[[int], None] | None = None
) -> Changes:
    """List a source and find what differs from a snapshot of its labels.

    Args:
        on_progress: called with the number of samples listed so far.

    Returns:
        The changes, which the caller must close.

    Raises:
        UserError: the source cannot be read, or samples of its kind cannot be compared.
        OSError: a store failed, or a part of the index is corrupt.
    """
    members = _members_of(source)
    changes = Changes()
    try:
        with LiveRows(store, snapshot) as rows, Digester((listing := listing_of(store, rows)).last_keys) as digester:
            comparison = _Comparison(rows, listing, digester, changes)
            with _in_key_order(members) as batches:
                for batch in batches:
                    comparison.add(batch)
                    if on_progress:
                        on_progress(comparison.listed)
            comparison.finish()
            changes.settle(rows, members.skipped)
    except BaseException:
        changes.close()
        raise
    return changes


def listing_of(store: Store, rows: LiveRows) -> Listing:
    """The listing of a snapshot: the stored one, else one that is made of the index and stored."""
    try:
        listing = read_listing(store, rows.snapshot.digest)
        if not listing.is_uneven:
            return listing
    except (FileNotFoundError, CorruptError):
        pass
    listing = rows.listing()
    write_listing(store, rows.snapshot.digest, listing)
    return listing


class _Comparison:
    """Listed samples in the order of keys, beside the stored ones."""

    def __init__(self, rows: LiveRows, listing: Listing, digester: Digester, changes: Changes) -> None:
        self._rows = rows
        self._listing = listing
        self._digester = digester
        self._changes = changes
        self._pending: pa.Table = MEMBERS.empty_table()
        self._segment = 0
        self._after: str | None = None
        """The last key that was compared."""
        self._is_split = False
        """Whether a part of the segment was compared already."""
        self.listed = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Take the next listed samples (MEMBERS)."""
        self.listed += batch.num_rows
        segments = self._digester.add(_versions(batch))
        self._pending = pa.concat_tables([self._pending, pa.Table.from_batches([batch])])
        while self._segment < segments[-1]:
            self._end_segment()
        found = self._digester.found.rows[self._segment]
        if len(self._pending) > MOST_PENDING and found > self._listing.rows[self._segment]:
            self._compare(self._pending, self._pending["key"][-1].as_py())
            self._pending, self._is_split = self._pending.slice(0, 0), True

    def finish(self) -> None:
        """Compare what is left, after the last sample."""
        while self._segment < len(self._listing.rows):
            self._end_segment()

    def _end_segment(self) -> None:
        number = self._segment
        last = self._listing.last_keys[number] if number < len(self._listing.last_keys) else None
        count = len(self._pending)
        if last is not None and count:
            count = pc.sum(pc.less_equal(self._pending["key"], last)).as_py()
        same = not self._is_split and self._listing.rows[number] == self._digester.found.rows[number]
        if same and (self._listing.digests[number] == self._digester.found.digests[number]).all():
            self._after = last
        else:
            self._compare(self._pending.slice(0, count), last)
        self._pending = self._pending.slice(count)
        self._segment, self._is_split = number + 1, False

    def _compare(self, listed: pa.Table, last: str | None) -> None:
        """Compare listed samples with those that are stored up to the key `last`."""
        stored = self._rows.between(self._after, last)
        self._after = last
        listed, stored = listed.combine_chunks(), stored.combine_chunks()
        keys, known = (table["key"].combine_chunks() for table in (listed, stored))
        if keys.equals(known):
            places = pa.array(np.arange(len(keys)))
        else:
            places = pc.index_in(keys, value_set=known)
            gone = stored.filter(pc.invert(pc.is_in(known, value_set=keys)))
            if len(gone):
                self._changes.add(_found(GONE, gone.select(["key"]), gone, self._rows, hashed=False))
            new = listed.filter(pc.is_null(places))
            if len(new):
                self._changes.add(_found(NEW, new, None, self._rows, hashed=False))
        both, before = listed.filter(pc.is_valid(places)), stored.take(pc.drop_null(places))
        versions = pc.coalesce(both["version"], both["etag"])
        # Where the listing has no version, only new and gone samples can be told.
        differ = pc.and_(
            pc.is_valid(versions), pc.fill_null(pc.not_equal(versions, before["version"]), fill_value=True)
        )
        if pc.any(differ).as_py():
            changed, old = both.filter(differ), before.filter(differ)
            self._changes.add(_found(CHANGED, changed, old, self._rows, hashed=True))


def _found(what: str, members: pa.Table, old: pa.Table | None, rows: LiveRows, *, hashed: bool) -> pa.Table:
    """Findings (FOUND). `hashed`: with the labels that they may keep."""
    columns = {name: members[name] for name in members.column_names}
    columns["what"] = pa.repeat(what, len(members))
    if old is not None:
        names = [part.name for part in rows.snapshot.parts]
        columns |= {f"old_{name}": old[name] for name in REPLACES.names if name != "part"}
        columns["old_part"] = pa.array(names).take(old["part"])
        columns |= {"old_of_plan": old["plan"], "old_of_shard": old["shard"], "old_of_row": old["row"]}
        if hashed:
            columns["old_sha256"] = _hashes(old, rows)
    return pa.table([columns.get(field.name, pa.nulls(len(members), field.type)) for field in FOUND], schema=FOUND)


def _hashes(old: pa.Table, rows: LiveRows) -> pa.Array:
    """The hash of each labelled row's image (of LIVE rows), else null."""
    found: list[bytes | None] = [None] * len(old)
    parts, positions = (np.asarray(old[name]) for name in ("part", "position"))
    labelled = np.asarray(pc.equal(old["status"], Status.LABELLED.value))
    for part in np.unique(parts).tolist():
        here = np.flatnonzero((parts == part) & labelled)
        here = here[np.argsort(positions[here])]
        for place, value in zip(here.tolist(), rows.file(part).hashes(positions[here]), strict=True):
            found[place] = value
    return pa.array(found, pa.binary(32))


def _versions(batch: pa.RecordBatch | pa.Table) -> pa.Table:
    """Members as VERSIONS."""
    versions = pc.coalesce(batch.column("version"), batch.column("etag"))
    return pa.table([batch.column("key"), versions], schema=VERSIONS)


def _members_of(source: Source) -> MemberSource:
    if not isinstance(source, MemberSource):
        raise UserError(
            f"{source.url}: a {source.kind} source cannot be compared with its labels yet, so the dataset cannot be refreshed"
        )
    return source


@contextmanager
def _in_key_order(source: MemberSource) -> Iterator[Iterator[pa.RecordBatch]]:
    """The members in the order of keys; sorted on the local disk if the source lists them otherwise."""
    if source.in_key_order:
        yield source.members()
        return
    with scratch_database() as database:
        load(database, "listed", MEMBERS, source.members())
        reader: pa.RecordBatchReader = database.sql("SELECT * FROM listed ORDER BY key").to_arrow_reader(BATCH)
        yield (_cast(batch) for batch in reader)


def _cast(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.record_batch([batch.column(field.name).cast(field.type) for field in MEMBERS], schema=MEMBERS)
