"""A plan of any listing holds every sample once, in order and as listed, and a stored plan is the one that was made."""

import itertools
import pickle
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from da2ray.labels.commits import commit_key
from da2ray.plan.plan import SHARDS_A_GROUP, Plan, make_plan, open_plan
from da2ray.sources import MEMBERS
from da2ray.sources.base import Member
from da2ray.storage import join, open_store

SETTINGS = settings(derandomize=True, deadline=None, max_examples=50)
ROOT = "s3://bucket/images"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@dataclass
class Listing:
    """A source of these members, listed in batches of these sizes, over and over."""

    members: list[Member]
    batches: list[int]
    kind: str = "prefix"
    url: str = ROOT
    root: str = ROOT
    listings: int = field(default=0)

    def describe(self) -> dict[str, str]:
        return {"kind": self.kind, "url": self.url}

    def samples(self, limit: int | None = None) -> Iterator[pa.RecordBatch]:
        self.listings += 1
        left = iter(self.members[:limit])
        for size in itertools.cycle(self.batches):
            batch = list(itertools.islice(left, size))
            if not batch:
                return
            columns = zip(*((each.key, each.uri, each.size, each.etag) for each in batch), strict=True)
            yield pa.record_batch(
                [pa.array(list(column), kind.type) for column, kind in zip(columns, MEMBERS, strict=True)],
                schema=MEMBERS,
            )


@st.composite
def listings(draw: st.DrawFn) -> Listing:
    """Up to 300 samples: enough for several row groups of shards where a shard has one sample."""
    sizes = draw(st.lists(st.none() | st.integers(0, 60) | st.integers(2**31, 2**40), min_size=1, max_size=300))
    odd = draw(st.dictionaries(st.integers(0, len(sizes) - 1), TEXT, max_size=6))
    members = []
    for number, size in enumerate(sizes):
        key = f"{number:04d}{odd.get(number, '')}.jpg"
        # Most lie under the root; a manifest's may lie anywhere.
        uri = f"file:///elsewhere/{key}" if number in odd and number % 2 else join(ROOT, key)
        members.append(Member(key, uri, size, draw(st.sampled_from([None, "", "e1", "é"])) if number in odd else None))
    return Listing(members, draw(st.lists(st.integers(1, 90), min_size=1, max_size=4)))


BOUNDS = {
    "shard_size": st.integers(1, 70),
    "shard_bytes": st.integers(1, 400) | st.just(2**40),
    "limit": st.none() | st.integers(1, 320),
}


@given(listings(), st.fixed_dictionaries(BOUNDS))
@SETTINGS
def test_shards_hold_every_sample_once_in_order_and_within_bounds(source: Listing, bounds: dict) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        plan = make_plan(source, store, fingerprint="f", **bounds)
        shards = list(plan.shards(np.arange(len(plan))))
        assert [shard.number for shard in shards] == list(range(len(plan)))
        planned = [shard.samples() for shard in shards]
        listed = source.members[: bounds["limit"]]
        assert list(itertools.chain(*planned)) == listed
        assert plan.sizes().tolist() == [len(samples) for samples in planned]
        for samples in planned:
            assert 0 < len(samples) <= bounds["shard_size"]
            assert len(samples) == 1 or sum(each.size or 0 for each in samples) <= bounds["shard_bytes"]
        sizes = [each.size for each in listed]
        total = None if None in sizes else sum(size for size in sizes if size is not None)
        assert (plan.info.shards, plan.info.samples, plan.info.bytes) == (len(planned), len(listed), total)

        # However it was listed, the plan is the same; made again, it is found, and nothing is listed.
        again = make_plan(source, store, fingerprint="f", **bounds)
        opened = open_plan(store, plan.id)
        assert source.listings == 1
        assert opened is not None
        assert opened.info == again.info == plan.info
        assert list(opened.shards(np.arange(len(opened)))) == shards
        assert [pickle.loads(pickle.dumps(shard)).samples() for shard in shards] == planned  # noqa: S301
        with tempfile.TemporaryDirectory() as other:
            rebatched = make_plan(Listing(source.members, [7]), open_store(other), fingerprint="f", **bounds)
            assert rebatched.id == plan.id
            assert [shard.samples() for shard in rebatched.shards(np.arange(len(rebatched)))] == planned


@given(st.integers(1, 3 * SHARDS_A_GROUP), st.data())
@SETTINGS
def test_what_is_left_and_what_is_read_of_a_plan_is_what_was_asked_for(count: int, data: st.DataObject) -> None:
    members = [Member(f"{number}.jpg", join(ROOT, f"{number}.jpg"), 1, None) for number in range(count)]
    numbers = st.sets(st.integers(0, count - 1))
    committed, asked = data.draw(numbers), data.draw(numbers)
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        plan: Plan = make_plan(Listing(members, [50]), store, shard_size=1, limit=None, fingerprint="f")
        for shard in committed:
            store.create(commit_key(plan.id, shard), b"")
        assert plan.remaining(store).tolist() == sorted(set(range(count)) - committed)
        read = list(plan.shards(np.array(list(asked), np.int64)))
        assert [(shard.number, shard.samples()) for shard in read] == [(n, [members[n]]) for n in sorted(asked)]
