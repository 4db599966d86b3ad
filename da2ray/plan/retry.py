"""The samples of a source that failed in a snapshot: what `--retry-failed` labels again."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from da2ray.errors import SampleError, Status, UserError
from da2ray.labels.snapshots import open_snapshot, read_part
from da2ray.plan.plan import Plan
from da2ray.sources.base import FOCAL, MEMBERS, Member, Source
from da2ray.storage import Store


@dataclass(frozen=True, slots=True)
class RetrySource:
    """A part of another source, read as that one is.

    Attributes:
        of: the source that the snapshot's rows come from.
        store: the dataset.
        snapshot: number.
        reasons: classes of failure; none is all.
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

    def describe(self) -> dict[str, str]:
        return self.of.describe() | {
            "kind": self.kind,
            "of": self.of.kind,
            "snapshot": str(self.snapshot),
            "reasons": ",".join(self.reasons),
        }

    def samples(self, limit: int | None = None) -> Iterator[pa.RecordBatch]:
        """The failed rows' members, sizes and etags unknown: what the object is now counts."""
        left = limit
        for part in open_snapshot(self.store, self.snapshot).parts:
            if not any(part.by_reason.get(reason) for reason in self.reasons or part.by_reason):
                continue
            rows = read_part(self.store, part)
            failed = pc.equal(rows["status"], Status.FAILED.value)
            if self.reasons:
                failed = pc.and_(failed, pc.is_in(rows["reason"], pa.array(self.reasons)))
            rows = rows.filter(failed)[:left]
            left = None if left is None else left - rows.num_rows
            for batch in self._planned(rows):
                unknown = [pa.nulls(batch.num_rows, MEMBERS.field(name).type) for name in ("size", "etag")]
                members = pa.record_batch([batch["key"], batch["uri"], *unknown], schema=MEMBERS)
                yield members.append_column(FOCAL, batch["focal"]) if "focal" in batch.schema.names else members
            if left == 0:
                return

    def _planned(self, rows: pa.Table) -> Iterator[pa.RecordBatch]:
        """The rows as their plans have them: the index leaves out what signs a URI."""
        for plan in pc.unique(rows["plan"]).to_pylist():
            here = rows.filter(pc.equal(rows["plan"], plan))
            shards, numbers = here["shard"].to_numpy(), here["row"].to_numpy()
            for shard in Plan(self.store, plan).shards(shards):
                yield shard.members().take(pa.array(numbers[shards == shard.number]))

    def fetch(self, members: Iterable[Member], concurrency: int) -> Iterator[tuple[Member, bytes | SampleError]]:
        return self.of.fetch(members, concurrency)


def failed_samples(of: Source, store: Store, reasons: Sequence[str]) -> RetrySource:
    """Those of the newest snapshot.

    Raises:
        UserError: there is no snapshot.
    """
    try:
        newest = open_snapshot(store)
    except UserError as error:
        raise UserError(f"--retry-failed: {error}") from None
    return RetrySource(of, store, newest.number, tuple(sorted(reasons)))
