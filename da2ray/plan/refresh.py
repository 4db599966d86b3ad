"""The samples that a refresh reads, and those that are gone: as shards of a plan that updates a snapshot."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from da2ray.labels.commits import REPLACES, Update, commit_shard
from da2ray.labels.schema import GONE, INDEX
from da2ray.labels.shards.base import ShardFormat
from da2ray.labels.shards.formats import build_shard
from da2ray.plan.changes import Changes
from da2ray.plan.plan import Plan
from da2ray.plan.update import BEFORE, Purpose, UpdateSource, pack, unpack
from da2ray.sources import members
from da2ray.sources.base import SHARDS, Cut
from da2ray.sources.members import MEMBERS, shard_bounds
from da2ray.storage import Store

GONE_ROWS: Final = 65_536
"""Rows of a shard that says what is gone. Nothing is read for it."""


@dataclass(frozen=True, slots=True)
class RefreshSource(UpdateSource):
    """What changed in a source since a snapshot.

    Attributes:
        changes: what to plan; None if the plan is stored. It stays on the machine that plans.
    """

    changes: Changes | None = field(default=None, compare=False)

    purpose = Purpose.REFRESH

    def __reduce__(self) -> tuple[type["RefreshSource"], tuple[Any, ...]]:
        return RefreshSource, (self.of, self.store, self.snapshot)

    @property
    def gone_shards(self) -> int:
        if self.changes is None:
            return 0
        summary = self.changes.summary
        return -(-(summary.gone.images + summary.moved.images) // GONE_ROWS)

    def shards(self, cut: Cut) -> Iterator[pa.RecordBatch]:
        """See `Source.shards`: samples to read in the order of keys, then those that are gone, of which none is counted."""
        assert self.changes is not None  # noqa: S101 - only a stored plan has none
        rest: pa.Table | None = None
        for found in self.changes.to_read():
            rest = found if rest is None else pa.concat_tables([rest, found])
            bounds = shard_bounds(rest["size"].combine_chunks(), cut)[:-1]  # where the last shard ends is not known yet
            if len(bounds) > 1:
                yield self._shards(rest, bounds)
            rest = rest.slice(int(bounds[-1]))
        if rest is not None and len(rest):
            yield self._shards(rest, shard_bounds(rest["size"].combine_chunks(), cut))
        rest = None
        for found in self.changes.gone():
            rest = found if rest is None else pa.concat_tables([rest, found])
            while len(rest) >= GONE_ROWS:
                yield self._gone(rest.slice(0, GONE_ROWS))
                rest = rest.slice(GONE_ROWS)
        if rest is not None and len(rest):
            yield self._gone(rest)

    def _shards(self, found: pa.Table, bounds: np.ndarray) -> pa.RecordBatch:
        rows = []
        for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            shard = found.slice(start, end - start)
            sizes = shard["size"]
            total = None if sizes.null_count else pc.sum(sizes).as_py()
            rows.append({"samples": len(shard), "exact": True, "bytes": total, "spec": self._spec(shard)})
        return pa.RecordBatch.from_pylist(rows, schema=SHARDS)

    def _gone(self, found: pa.Table) -> pa.RecordBatch:
        # Nobody reads a URI of what is gone, so the index is not read for it.
        uris = pc.fill_null(found["uri"], "")
        found = found.set_column(found.schema.get_field_index("uri"), "uri", uris)
        row = {"samples": 0, "exact": True, "bytes": 0, "spec": self._spec(found)}
        return pa.RecordBatch.from_pylist([row], schema=SHARDS)

    def _spec(self, found: pa.Table) -> bytes:
        listed = found.select(MEMBERS.names).cast(MEMBERS).combine_chunks()
        before = pa.table([found[f"old_{name}"] for name in BEFORE.names], schema=BEFORE)
        return pack(members.pack(listed.to_batches()[0], self.root), before)


def commit_gone(store: Store, plan: Plan, format: ShardFormat, fingerprint: str) -> int:  # noqa: A002 - the option's name
    """Commit the shards of a plan that say what is gone. The others are committed, so that an image that moved is never missing.

    Returns:
        How many there were to commit.

    Raises:
        OSError: the store failed.
    """
    left = plan.remaining(store)
    for shard, spec in plan.specs(left):
        inner, before = unpack(spec)
        keys = members.unpack(inner, plan.info.root).column("key")
        count = len(keys)
        columns = {
            "key": keys,
            "uri": pa.repeat("", count),
            "status": pa.repeat(GONE, count),
            "plan": pa.repeat(plan.id, count),
            "shard": pa.repeat(shard.number, count),
            "row": pa.array(np.arange(count, dtype=np.int32)),
            "fingerprint": pa.repeat(fingerprint, count),
        }
        rows = pa.table([columns.get(each.name, pa.nulls(count, each.type)) for each in INDEX], schema=INDEX)
        update = Update(plan.info.parent, before.select(REPLACES.names), INDEX.empty_table())
        commit_shard(
            store, plan.id, shard.number, build_shard(rows, [None] * count, format), fingerprint, update=update
        )
    return len(left)
