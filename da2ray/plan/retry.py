"""The samples of a source that failed in a snapshot: what `--retry-failed` labels again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from da2ray.errors import Status, UserError
from da2ray.labels.fold import versions_of
from da2ray.labels.parts import read_part, retired_rows
from da2ray.labels.snapshots import open_snapshot
from da2ray.plan.plan import Plan
from da2ray.plan.update import BEFORE, Purpose, UpdateSource, pack, unpack
from da2ray.sources.base import SHARDS, Cut, Member, Place, Source
from da2ray.sources.members import UNKNOWN_BYTES
from da2ray.storage import Store

_PLACE = ("row", "key", "uri", "image_offset", "image_length", "image_row")
_COLUMNS = (*_PLACE, "etag", "version", "status", "reason", "fingerprint", "plan", "shard")


@dataclass(frozen=True, slots=True)
class _Failed:
    """Samples of one shard: its specification for the other source, their places in it, and what the snapshot has of them."""

    spec: bytes
    places: list[Place]
    before: pa.Table


@dataclass(frozen=True, slots=True)
class RetrySource(UpdateSource):
    """The failed samples of a snapshot.

    A failed sample is addressed by its place, the plan, shard and row that its index row names, so the other source need not know
    its samples.

    Attributes:
        reasons: classes of failure; empty for all.
    """

    reasons: tuple[str, ...] = ()

    purpose = Purpose.RETRY

    @property
    def looks_for(self) -> str:
        classes = f" as {' or '.join(self.reasons)}" if self.reasons else ""
        return f"samples that failed{classes} in snapshot {self.snapshot}"

    def describe(self) -> dict[str, str]:
        return self.identity() | {"reasons": ",".join(self.reasons)}

    def shards(self, cut: Cut) -> Iterator[pa.RecordBatch]:
        """The failed samples as shards of the other source; sizes are unknown, because the objects as they are now count."""
        most = max(1, min(cut.shard_size, cut.shard_bytes // UNKNOWN_BYTES))
        waiting: list[_Failed] = []
        count = 0
        for failed in self._failed(cut.limit):
            done = 0
            while done < len(failed.places):
                taken = failed.places[done : done + most - count]
                waiting.append(_Failed(failed.spec, taken, failed.before.slice(done, len(taken))))
                done += len(taken)
                count += len(taken)
                if count == most:
                    yield self._shard(waiting, count)
                    waiting, count = [], 0
        if waiting:
            yield self._shard(waiting, count)

    def _shard(self, failed: list[_Failed], count: int) -> pa.RecordBatch:
        spec = pack(
            self.of.select([(each.spec, each.places) for each in failed]),
            pa.concat_tables(each.before for each in failed),
        )
        return pa.RecordBatch.from_pylist(
            [{"samples": count, "exact": True, "bytes": None, "spec": spec}], schema=SHARDS
        )

    def _failed(self, limit: int | None) -> Iterator[_Failed]:
        left = limit
        for rows in self._rows():
            here = rows[:left]
            for name in pc.unique(here["plan"]).to_pylist():
                of_plan = here.filter(pc.equal(here["plan"], name)).sort_by(
                    [("shard", "ascending"), ("row", "ascending")]
                )
                plan, shards = Plan(self.store, name), of_plan["shard"].to_numpy()
                for shard, spec in plan.specs(shards):
                    of_shard = of_plan.filter(pa.array(shards == shard.number))
                    inner = spec if plan.info.purpose is Purpose.LABEL else unpack(spec)[0]
                    yield _Failed(inner, _places_of(of_shard), before_of(of_shard))
            left = None if left is None else left - here.num_rows
            if left == 0:
                return

    def _rows(self) -> Iterator[pa.Table]:
        """The failed rows of each part of the snapshot: _COLUMNS, `part` and `position`."""
        for part in open_snapshot(self.store, self.snapshot).parts:
            if not any(part.by_reason.get(reason) for reason in self.reasons or part.by_reason):
                continue
            rows = read_part(self.store, part, _COLUMNS, retired=True)
            chosen = np.asarray(pc.equal(rows["status"], Status.FAILED.value)).copy()
            if self.reasons:
                chosen &= np.asarray(pc.is_in(rows["reason"], pa.array(self.reasons)))
            chosen[retired_rows(self.store, part)] = False
            positions = np.flatnonzero(chosen)
            found = rows.take(pa.array(positions))
            found = found.append_column("part", pa.repeat(part.name, len(found)))
            yield found.append_column("position", pa.array(positions, pa.int32()))


def _places_of(rows: pa.Table) -> list[Place]:
    """The places of index rows of one shard."""
    return [Place(row.pop("row"), Member(**row)) for row in rows.select(_PLACE).to_pylist()]


def before_of(rows: pa.Table) -> pa.Table:
    """BEFORE, without a label to keep, of index rows with `part` and `position`."""
    columns = {name: rows[name] for name in ("part", "position", "status", "reason", "fingerprint")}
    columns["version"] = versions_of(rows)["version"]
    return pa.table([columns.get(field.name, pa.nulls(len(rows), field.type)) for field in BEFORE], schema=BEFORE)


def failed_samples(of: Source, store: Store, reasons: Sequence[str]) -> RetrySource:
    """The samples that failed in the newest snapshot.

    Raises:
        UserError: there is no snapshot.
    """
    try:
        newest = open_snapshot(store)
    except UserError as error:
        raise UserError(f"--retry-failed: {error}") from None
    return RetrySource(of, store, newest.number, tuple(sorted(reasons)))
