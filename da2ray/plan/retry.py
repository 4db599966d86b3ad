"""The samples of a source that failed in a snapshot: what `--retry-failed` labels again."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from da2ray.errors import Status, UserError
from da2ray.labels.snapshots import open_snapshot, read_part
from da2ray.plan.plan import Plan
from da2ray.sources.base import SHARDS, Cut, Extent, Member, Place, Sample, Source
from da2ray.sources.members import UNKNOWN_BYTES
from da2ray.storage import Store


@dataclass(frozen=True, slots=True)
class RetrySource:
    """A part of another source, which reads it.

    A failed sample is addressed by its place, the plan, shard and row that its index row names, so the other source need not know
    its samples.

    Attributes:
        of: the source that the snapshot's rows come from.
        store: the dataset.
        snapshot: number.
        reasons: classes of failure; empty for all.
    """

    of: Source
    store: Store
    snapshot: int
    reasons: tuple[str, ...]
    kind: str = "retry"

    @property
    def url(self) -> str:
        return self.of.url

    @property
    def root(self) -> str:
        return self.of.root

    @property
    def looks_for(self) -> str:
        classes = f" as {' or '.join(self.reasons)}" if self.reasons else ""
        return f"samples that failed{classes} in snapshot {self.snapshot}"

    @property
    def passed_over(self) -> dict[str, int]:
        return {}

    def describe(self) -> dict[str, str]:
        described = self.of.describe()
        return described | {
            "kind": self.kind,
            "of": described.get("of", self.of.kind),
            "snapshot": str(self.snapshot),
            "reasons": ",".join(self.reasons),
        }

    def shards(self, cut: Cut) -> Iterator[pa.RecordBatch]:
        """The failed samples as shards of the other source; sizes are unknown, because the objects as they are now count."""
        most = max(1, min(cut.shard_size, cut.shard_bytes // UNKNOWN_BYTES))
        places: list[tuple[bytes, Sequence[Place]]] = []
        count = 0
        for spec, rows in self._places(cut.limit):
            left = rows
            while left:
                taken, left = left[: most - count], left[most - count :]
                places.append((spec, taken))
                count += len(taken)
                if count == most:
                    yield self._shard(places, count)
                    places, count = [], 0
        if places:
            yield self._shard(places, count)

    def read(self, spec: bytes, *, concurrency: int, skip: int = 0) -> Iterator[Sample | Extent]:
        return self.of.read(spec, concurrency=concurrency, skip=skip)

    def member(self, spec: bytes, row: int) -> Member | None:
        return self.of.member(spec, row)

    def select(self, places: Iterable[tuple[bytes, Sequence[Place]]]) -> bytes:
        return self.of.select(places)

    def _shard(self, places: list[tuple[bytes, Sequence[Place]]], count: int) -> pa.RecordBatch:
        row = {"samples": count, "exact": True, "bytes": None, "spec": self.of.select(places)}
        return pa.RecordBatch.from_pylist([row], schema=SHARDS)

    def _places(self, limit: int | None) -> Iterator[tuple[bytes, list[Place]]]:
        """The failed samples by their shards: the shard's specification, and their places in it."""
        left = limit
        for rows in self._failed():
            here = rows[:left]
            for plan in pc.unique(here["plan"]).to_pylist():
                of_plan = here.filter(pc.equal(here["plan"], plan))
                shards = of_plan["shard"].to_numpy()
                for shard, spec in Plan(self.store, plan).specs(shards):
                    yield spec, _places_of(of_plan.filter(pa.array(shards == shard.number)))
            left = None if left is None else left - here.num_rows
            if left == 0:
                return

    def _failed(self) -> Iterator[pa.Table]:
        """The failed rows of each part of the snapshot."""
        for part in open_snapshot(self.store, self.snapshot).parts:
            if not any(part.by_reason.get(reason) for reason in self.reasons or part.by_reason):
                continue
            rows = read_part(self.store, part)
            failed = pc.equal(rows["status"], Status.FAILED.value)
            if self.reasons:
                failed = pc.and_(failed, pc.is_in(rows["reason"], pa.array(self.reasons)))
            yield rows.filter(failed)


def _places_of(rows: pa.Table) -> list[Place]:
    """The places of index rows of one shard, ascending."""
    columns = ("row", "key", "uri", "image_offset", "image_length", "image_row")
    return [Place(row.pop("row"), Member(**row)) for row in rows.select(columns).sort_by("row").to_pylist()]


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
