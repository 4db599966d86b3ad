"""Commits: data first, commit last (invariant 2). A shard exists when `commits/<plan>/<shard>.parquet` does.

Any number of attempts may label one shard at the same time: Ray retries, or a run that seemed dead goes on. Each writes its data
under a name of its own, and the conditional create of the commit picks one of them. No commit names what the others wrote, and
`gc` removes it. It is not deleted here, because an attempt that believes it lost may be wrong as long as its reads are stale.
"""

import json
import re
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from da2ray.errors import Status
from da2ray.labels.schema import INDEX, KEPT, conform
from da2ray.labels.shards.base import BuiltShard, ShardFormat
from da2ray.labels.shards.formats import FORMATS
from da2ray.labels.stored import Stored, intact
from da2ray.sources.base import Extent
from da2ray.storage import Store
from da2ray.storage.base import check_key

METADATA_KEY: Final = b"da2ray"


_COMMIT_KEY: Final = re.compile(r"commits/([^/]+)/([0-9]{8}|[1-9][0-9]{8,17})\.parquet")
REPEATED: Final = [
    "status",
    "reason",
    "plan",
    "shard",
    "object",
    "kind",
    "mask_bits",
    "mask_source",
    "focal_source",
    "fingerprint",
    "network_width",
    "network_height",
]
"""Columns that repeat a few values in a shard. The others are (nearly) unique, and a dictionary would only store them twice."""

REPLACES: Final = pa.schema(
    [
        pa.field("part", pa.string()),
        pa.field("position", pa.int32()),
        pa.field("version", pa.string()),
        pa.field("status", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("fingerprint", pa.string()),
    ]
)
"""Which row of the parent snapshot a row of a commit replaces: the name of its part, its position in the file, and what the
counts of the next snapshot need of it. All are null for a new key."""
_PREFIX: Final = "replaced_"


def commit_key(plan: str, shard: int) -> str:
    return f"commits/{plan}/{shard:08d}.parquet"


def object_key(plan: str, shard: int, attempt: str, format: ShardFormat) -> str:  # noqa: A002 - the option's name
    return f"shards/{plan}/{shard:08d}-{attempt}{FORMATS[format].suffix}"


@dataclass(frozen=True, slots=True)
class Checksum:
    """The checksum of a whole object: `algorithm` is crc32 (zlib's), `value` 8 hexadecimal digits."""

    algorithm: str
    value: str


@dataclass(frozen=True, slots=True)
class Commit:
    """The record that makes a shard exist.

    Attributes:
        attempt: id of the attempt that won; it is part of the object's name.
        object: key of the shard's data, which exists even if no row is labelled.
        size: of the object, in bytes.
        checksum: of the object.
        fingerprint: of the shard's labels.
        rows: INDEX, in the plan's order. The label of a row may lie in an object of another shard, if the image's bytes are those
            that this object's label was made of.
        parent: number of the snapshot that the plan was made from; None if the plan knows nothing of what the dataset holds.
        replaces: REPLACES, beside `rows`; None without a parent.
        extent: which part of its file the shard has read; None if the source knew its samples when it was planned.
    """

    plan: str
    shard: int
    attempt: str
    object: str
    size: int
    checksum: Checksum
    fingerprint: str
    rows: pa.Table
    extent: Extent | None = None
    parent: int | None = None
    replaces: pa.Table | None = None


@dataclass(frozen=True, slots=True)
class CommitSummary:
    """A commit's attempt, its extent, and the keys of its rows."""

    attempt: str
    extent: Extent | None
    keys: list[str]


class _About(Stored):
    """What a commit says besides its rows; `rows` is their number."""

    plan: str
    shard: int
    attempt: str
    object: str
    size: int
    checksum: Checksum
    fingerprint: str
    rows: int
    extent: Extent | None = None
    parent: int | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """What a shard changes in a snapshot.

    Attributes:
        parent: number of the snapshot.
        replaces: REPLACES, one for each row of the shard.
        kept: INDEX, the rows of status KEPT with the labels that they keep, ascending by `row`; everything that does not describe
            the label is the new row's own.
    """

    parent: int
    replaces: pa.Table
    kept: pa.Table


@dataclass(frozen=True, slots=True)
class CommitOutcome:
    """How an attempt ended: `committed` if it won; `attempt` and `object` are those of the attempt that did."""

    committed: bool
    attempt: str
    object: str


@dataclass(frozen=True, slots=True)
class CommitEntry:
    """A commit as a listing shows it. `version` changes when the commit does: it is the etag, or the size if there is no etag."""

    shard: int
    version: str


def commit_shard(
    store: Store,
    plan: str,
    shard: int,
    built: BuiltShard,
    fingerprint: str,
    extent: Extent | None = None,
    update: Update | None = None,
) -> CommitOutcome:
    """Write a shard's data, then its commit. If another attempt has committed, its commit stays in place.

    Args:
        update: what a shard of a plan that was made from a snapshot changes.

    Raises:
        OSError: the store failed. Nothing is committed; or the commit exists but its answer was lost twice, and a retry will see
            it.
    """
    attempt = uuid.uuid4().hex[:16]
    commit = Commit(
        plan=plan,
        shard=shard,
        attempt=attempt,
        object=object_key(plan, shard, attempt, built.format),
        size=len(built.data),
        checksum=Checksum("crc32", f"{zlib.crc32(built.data):08x}"),
        fingerprint=fingerprint,
        rows=_with_labels(built.rows, object_key(plan, shard, attempt, built.format), update),
        parent=update.parent if update else None,
        replaces=update.replaces if update else None,
        extent=extent,
    )
    store.put(commit.object, built.data)
    if store.create(commit_key(plan, shard), serialise(commit)):
        return CommitOutcome(True, attempt, commit.object)
    # A commit exists: another attempt won, or ours did and the answer was lost (15 of 30 lost answers, measured).
    winner = read_commit(store, plan, shard)
    return CommitOutcome(winner.attempt == attempt, winner.attempt, winner.object)


def read_commit(store: Store, plan: str, shard: int) -> Commit:
    """The commit of a shard.

    Raises:
        FileNotFoundError: the shard is not committed.
        CorruptError: the object is not a commit of this shard.
        OSError: the store failed.
    """
    key = commit_key(plan, shard)
    with intact(store, key, "a commit of this shard", f"run `da2ray repair {store.url}`, then the job again"):
        table = pq.read_table(pa.BufferReader(store.get(key)), page_checksum_verification=True)
        about = _About.model_validate_json(table.schema.metadata[METADATA_KEY])
        if (about.plan, about.shard, about.rows) != (plan, shard, table.num_rows):
            raise ValueError(
                f"it says plan {about.plan}, shard {about.shard}, {about.rows} rows, and holds {table.num_rows}"
            )
        return Commit(
            plan=plan,
            shard=shard,
            attempt=about.attempt,
            object=check_key(about.object),
            size=about.size,
            checksum=about.checksum,
            fingerprint=about.fingerprint,
            rows=conform(table, INDEX),
            extent=about.extent,
            parent=about.parent,
            replaces=None
            if about.parent is None
            else pa.table([table[f"{_PREFIX}{name}"] for name in REPLACES.names], schema=REPLACES),
        )


def own_rows(commit: Commit) -> pa.Table:
    """The rows of a commit as its object has them: kept labels lie elsewhere."""
    labelled = pc.equal(commit.rows["status"], Status.LABELLED.value)
    kept = pc.and_(labelled, pc.fill_null(pc.not_equal(commit.rows["object"], commit.object), fill_value=False))
    rows = commit.rows
    rows = rows.set_column(
        INDEX.get_field_index("status"), INDEX.field("status"), pc.if_else(kept, KEPT, rows["status"])
    )
    for name in ("kind", "scale", "offset", "network_height", "network_width", "mask_bits"):
        own = pc.if_else(kept, pa.scalar(None, INDEX.field(name).type), rows[name])
        rows = rows.set_column(INDEX.get_field_index(name), INDEX.field(name), own)
    return rows


def read_summary(store: Store, plan: str, shard: int) -> CommitSummary:
    """What a commit says without its rows.

    Raises:
        FileNotFoundError, CorruptError, OSError: as for `read_commit`.
    """
    key = commit_key(plan, shard)
    with intact(store, key, "a commit of this shard", f"run `da2ray repair {store.url}`, then the job again"):
        table = pq.read_table(pa.BufferReader(store.get(key)), columns=["key"], page_checksum_verification=True)
        about = _About.model_validate_json(table.schema.metadata[METADATA_KEY])
        return CommitSummary(about.attempt, about.extent, table["key"].to_pylist())


def list_commits(store: Store, plan: str) -> Iterator[CommitEntry]:
    """The committed shards of a plan, in the store's order, from one listing and without reading a commit."""
    return (entry for _, entry in _list(store, f"commits/{plan}"))


def list_all_commits(store: Store) -> dict[str, list[CommitEntry]]:
    """The committed shards of each plan, ascending, from one listing."""
    found: dict[str, list[CommitEntry]] = {}
    for plan, entry in _list(store, "commits"):
        found.setdefault(plan, []).append(entry)
    return {plan: sorted(entries, key=lambda entry: entry.shard) for plan, entries in found.items()}


def _list(store: Store, folder: str) -> Iterator[tuple[str, CommitEntry]]:
    for batch in store.list(folder):
        for key, size, etag in zip(*(batch[name].to_pylist() for name in ("key", "size", "etag")), strict=True):
            if named := _COMMIT_KEY.fullmatch(key):
                yield named[1], CommitEntry(int(named[2]), etag or str(size))


def serialise(commit: Commit) -> bytes:
    """A commit as Parquet: its rows, and the rest as JSON under the metadata key `da2ray`. Equal commits give equal bytes."""
    fields = {name: getattr(commit, name) for name in ("plan", "shard", "attempt", "object", "size", "fingerprint")}
    about = fields | {"checksum": asdict(commit.checksum), "rows": commit.rows.num_rows, "parent": commit.parent}
    if commit.extent is not None:
        about["extent"] = asdict(commit.extent)
    rows = commit.rows
    if commit.replaces is not None:
        for name in REPLACES.names:
            rows = rows.append_column(f"{_PREFIX}{name}", commit.replaces[name])
    # Pages carry checksums: a commit holds what its shard does not (URIs, scores), and nothing else would show damage.
    sink = pa.BufferOutputStream()
    pq.write_table(
        rows.replace_schema_metadata({METADATA_KEY: json.dumps(about, sort_keys=True)}),
        sink,
        compression="zstd",
        use_dictionary=REPEATED,
        write_statistics=False,
        write_page_checksum=True,
    )
    return sink.getvalue().to_pybytes()


def _with_labels(rows: pa.Table, name: str, update: Update | None) -> pa.Table:
    """The rows of a shard with the name of its object, and with the labels that it keeps."""
    objects = pc.if_else(pc.equal(rows["status"], Status.LABELLED.value), pa.scalar(name), pa.scalar(None, pa.string()))
    rows = rows.set_column(rows.schema.get_field_index("object"), INDEX.field("object"), objects)
    if update is None or not len(update.kept):
        return rows
    own = rows.filter(pc.not_equal(rows["status"], KEPT))
    return pa.concat_tables([own, update.kept]).sort_by("row").combine_chunks()
