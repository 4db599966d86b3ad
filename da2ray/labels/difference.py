"""What differs between two snapshots. Parts that both have are not read, however large the dataset is."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from da2ray.labels.parts import Part, read_part, retired_rows
from da2ray.labels.schema import INDEX
from da2ray.labels.scratch import load, scratch_database
from da2ray.labels.snapshots import Snapshot
from da2ray.storage import Store

SHOWN: Final = 10
_COLUMNS: Final = ("key", "sha256", "status", "reason", "fingerprint", "object", "byte_offset", "plan", "shard", "row")
_SCHEMA: Final = pa.schema([(name, INDEX.field(name).type) for name in _COLUMNS])

_SAME: Final = " AND ".join(
    f"old.{name} IS NOT DISTINCT FROM new.{name}" for name in ("plan", "shard", "row", "object")
)
"""A row of a part that was only written anew."""
_WHAT: Final = """
    CASE WHEN old.key IS NULL THEN 'new' WHEN new.key IS NULL THEN 'gone'
        WHEN old.sha256 IS DISTINCT FROM new.sha256 THEN 'changed'
        WHEN old.fingerprint <> new.fingerprint THEN 'relabelled'
        WHEN old.status <> new.status OR old.reason IS DISTINCT FROM new.reason OR old.object IS DISTINCT FROM new.object
            OR old.byte_offset IS DISTINCT FROM new.byte_offset THEN 'labelled again'
        ELSE 'kept' END
"""
KINDS: Final = ("new", "gone", "changed", "relabelled", "labelled again", "kept")
"""How a row may differ. `changed`: other bytes; `relabelled`: another fingerprint; `labelled again`: another label or failure of
the same bytes and fingerprint; `kept`: another row with the same label."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Rows of each of KINDS, and the first SHOWN keys of each."""

    counts: dict[str, int]
    keys: dict[str, list[str]]


def difference(store: Store, old: Snapshot, new: Snapshot) -> Difference:
    """How the rows of one snapshot differ from those of another.

    Raises:
        OSError: the store failed, or a part of the index is corrupt.
    """
    with scratch_database() as database:
        for name, snapshot, other in (("old", old, new), ("new", new, old)):
            load(database, name, _SCHEMA, _own(store, snapshot, other))
        database.execute(
            f"CREATE TABLE differences AS SELECT coalesce(old.key, new.key) AS key, {_WHAT} AS what "  # noqa: S608 - constants
            f"FROM old FULL JOIN new ON old.key = new.key WHERE old.key IS NULL OR new.key IS NULL OR NOT ({_SAME})"
        )
        found = dict(database.execute("SELECT what, count(*) FROM differences GROUP BY 1").fetchall())
        query = "SELECT key FROM differences WHERE what = ? ORDER BY key LIMIT ?"
        return Difference(
            {kind: found.get(kind, 0) for kind in KINDS},
            {kind: [key for (key,) in database.execute(query, [kind, SHOWN]).fetchall()] for kind in KINDS},
        )


def _own(store: Store, snapshot: Snapshot, other: Snapshot) -> Iterator[pa.Table]:
    """The rows of a snapshot that are not the other's, by their places in the parts that both have."""
    others = {part.name: part for part in other.parts}
    for part in snapshot.parts:
        same = others.get(part.name)
        if same is None:
            yield read_part(store, part, _COLUMNS)
        elif same.retired != part.retired:
            yield _only_retired_there(store, part, same)


def _only_retired_there(store: Store, part: Part, other: Part) -> pa.Table:
    here, there = (set(retired_rows(store, each).tolist()) for each in (part, other))
    rows = read_part(store, part, _COLUMNS, retired=True)
    return rows.take(pa.array(sorted(there - here), pa.int64()))
