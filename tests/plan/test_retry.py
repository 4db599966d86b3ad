"""`--retry-failed` addresses samples by their places, whether or not their source knows its members."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from da2ray.labels.schema import INDEX
from da2ray.plan.plan import Plan, make_plan
from da2ray.plan.retry import RetrySource
from da2ray.plan.update import Purpose, replaces_of
from da2ray.sources import Cut, Source, open_source
from da2ray.storage import Store, open_store
from tests.sources.packs import PackSource, write_packs

COUNTS = [5, 3, 4]


@pytest.fixture(params=["prefix", "packs"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    """Three shards; sample number i of shard s has the body `bytes([s, i]) * 40`."""
    if request.param == "packs":
        return PackSource(str(write_packs(tmp_path / "packs", COUNTS)))
    for shard, count in enumerate(COUNTS):
        for row in range(count):
            path = tmp_path / "images" / f"{shard}-{row}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(bytes([shard, row]) * 40)
    return open_source(str(tmp_path / "images"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "labels"))


class Retry(RetrySource):
    """A retry of these rows, without a snapshot."""

    rows: pa.Table

    def _rows(self) -> list[pa.Table]:  # type: ignore[override]
        # An index may have several parts; this one has two.
        return [self.rows[:3], self.rows[3:]]


def retry(source: Source, store: Store, plan: Plan, places: list[tuple[int, int]]) -> RetrySource:
    shards, rows = zip(*places, strict=True)
    made = Retry(source, store, 1, ())
    columns = {name: pa.nulls(len(places), INDEX.field(name).type) for name in INDEX.names}
    columns |= {"plan": [plan.id] * len(places), "shard": shards, "row": rows}
    columns |= {"part": ["part"] * len(places), "position": pa.array(range(len(places)), pa.int32())}
    object.__setattr__(made, "rows", pa.table(columns))
    return made


def plan_of(source: Source, store: Store) -> Plan:
    """A plan whose shards are packs, or hold as many images as a pack."""
    if isinstance(source, PackSource):
        return make_plan(source, store, shard_size=100, limit=None, fingerprint="f")
    return make_plan(source, store, shard_size=5, limit=None, fingerprint="f")


def bodies(source: Source, cut: Cut) -> list[list[bytes]]:
    """The bodies that each shard reads."""
    specs = [spec.as_py() for batch in source.shards(cut) for spec in batch["spec"]]
    return [[sample.body for sample in source.read(spec, concurrency=2)] for spec in specs]


def test_just_the_failed_samples_are_read_packed_into_shards(source: Source, store: Store) -> None:
    plan = plan_of(source, store)
    every = [
        [sample.body for sample in source.read(spec, concurrency=1)] for _, spec in plan.specs(np.arange(len(plan)))
    ]
    assert sum(map(len, every)) == sum(COUNTS)
    places = [(0, 1), (0, 4), (1, 0), (2, 1), (1, 2)]
    again = retry(source, store, plan, places)
    # Sorted by part of the index, then by shard.
    wanted = [every[shard][row] for shard, row in [(0, 1), (0, 4), (1, 0), (1, 2), (2, 1)]]
    assert bodies(again, Cut(100, 1 << 40)) == [wanted]
    assert bodies(again, Cut(2, 1 << 40)) == [wanted[:2], wanted[2:4], wanted[4:]]
    assert bodies(again, Cut(100, 1 << 20)) == [[body] for body in wanted]  # each counts for 1 MiB
    assert bodies(again, Cut(100, 1 << 40, limit=3)) == [wanted[:3]]
    (batch,) = again.shards(Cut(100, 1 << 40))
    replaced = replaces_of(batch["spec"][0].as_py())
    assert replaced["position"].to_pylist() == [0, 1, 2, 4, 3], "each names the row that it replaces"


def test_a_retry_can_be_retried(source: Source, store: Store) -> None:
    first = retry(source, store, plan_of(source, store), [(0, 1), (0, 4), (1, 0), (2, 1)])
    plan = make_plan(first, store, shard_size=3, limit=None, fingerprint="f", purpose=Purpose.RETRY, parent=1)
    assert plan.info.exact
    assert plan.sizes().tolist() == [3, 1]
    second = retry(source, store, plan, [(0, 2), (1, 0)])
    whole = [body for shard in bodies(first, Cut(3, 1 << 40)) for body in shard]
    assert bodies(second, Cut(9, 1 << 40)) == [[whole[2], whole[3]]]
