"""A plan of any listing holds every sample once, in order and as listed. A stored plan equals the plan that was made."""

import itertools
import pickle
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from da2ray.labels.commits import commit_key
from da2ray.plan import file as plan_file
from da2ray.plan.plan import Plan, make_plan, open_plan
from da2ray.sources import MEMBERS, Cut, Member, MemberSource, Place, Sample, members_of
from da2ray.sources import members as listing
from da2ray.sources.members import UNKNOWN_BYTES, cut_members, pack, shard_bounds, unpack
from da2ray.storage import Store, join, open_store

SETTINGS = settings(derandomize=True, max_examples=50)
ROOT = "s3://bucket/images"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@pytest.fixture(autouse=True)
def small_groups() -> Iterator[None]:
    """Collect members and group shards in tens, so that a listing of 300 has many seams."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "CUT_MEMBERS", 16)
        patch.setattr(plan_file, "GROUP_SHARDS", GROUP)
        patch.setattr(plan_file, "GROUP_BYTES", 2000)
        yield


GROUP = 8


@dataclass
class Listing(MemberSource):
    """A source of these members. Its listing repeats these batch sizes."""

    listed: list[Member]
    batches: list[int]
    kind: str = "prefix"
    looks_for: str = "members"
    url: str = ROOT
    root: str = ROOT
    listings: int = field(default=0)

    def describe(self) -> dict[str, str]:
        return {"kind": self.kind, "url": self.url}

    def members(self, limit: int | None = None) -> Iterator[pa.RecordBatch]:
        self.listings += 1
        left = iter(self.listed[:limit])
        for size in itertools.cycle(self.batches):
            batch = list(itertools.islice(left, size))
            if not batch:
                return
            yield batch_of(batch)

    def fetch(self, members: Iterable[Member], concurrency: int) -> Iterator[Sample]:  # noqa: ARG002
        raise AssertionError("planning reads no image")


def batch_of(members: list[Member]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([asdict(member) for member in members], schema=MEMBERS)


def planned(plan: Plan) -> list[list[Member]]:
    return [members_of(unpack(spec, ROOT)) for _, spec in plan.specs(np.arange(len(plan)))]


@st.composite
def listings(draw: st.DrawFn) -> Listing:
    """Up to 300 samples: enough for several row groups if a shard has one sample."""
    sizes = draw(st.lists(st.none() | st.integers(0, 60) | st.integers(2**31, 2**40), min_size=1, max_size=300))
    odd = draw(st.dictionaries(st.integers(0, len(sizes) - 1), TEXT, max_size=6))
    members = []
    for number, size in enumerate(sizes):
        key = f"{number:04d}{odd.get(number, '')}.jpg"
        # Most members lie under the root. Those of a manifest may lie anywhere.
        uri = f"file:///elsewhere/{key}" if number in odd and number % 2 else join(ROOT, key)
        etag = draw(st.sampled_from([None, "", "e1", "é"])) if number in odd else None
        focal = draw(st.none() | st.just(800.5)) if number in odd else None
        members.append(Member(key, uri, size, etag, focal))
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
        found = planned(plan)
        listed = source.listed[: bounds["limit"]]
        assert list(itertools.chain(*found)) == listed
        assert plan.sizes().tolist() == [len(samples) for samples in found]
        for samples in found:
            assert 0 < len(samples) <= bounds["shard_size"]
            assert len(samples) == 1 or sum(each.size or 0 for each in samples) <= bounds["shard_bytes"]
        sizes = [each.size for each in listed]
        total = None if None in sizes else sum(size for size in sizes if size is not None)
        assert (plan.info.shards, plan.info.samples, plan.info.bytes) == (len(found), len(listed), total)
        assert plan.info.exact

        # The plan does not depend on the batches of the listing. The second time the stored plan is used, without a listing.
        again = make_plan(source, store, fingerprint="f", **bounds)
        opened = open_plan(store, plan.id)
        assert source.listings == 1
        assert opened is not None
        assert opened.info == again.info == plan.info
        assert list(opened.shards(np.arange(len(opened)))) == shards
        specs = [pickle.loads(pickle.dumps(shard)).spec(store) for shard in shards]  # noqa: S301
        assert [members_of(unpack(spec, ROOT)) for spec in specs] == found
        with tempfile.TemporaryDirectory() as other:
            rebatched = make_plan(Listing(source.listed, [7]), open_store(other), fingerprint="f", **bounds)
            assert rebatched.id == plan.id
            assert planned(rebatched) == found


@given(
    st.lists(st.none() | st.integers(0, 50), max_size=60),
    st.integers(1, 8),
    st.sampled_from([1, 30, 100, 3 * UNKNOWN_BYTES]),
)
def test_shards_are_as_long_as_the_bounds_allow(sizes: list[int | None], shard_size: int, shard_bytes: int) -> None:
    bounds = shard_bounds(pa.array(sizes, pa.int64()), Cut(shard_size, shard_bytes)).tolist()
    assert bounds[0] == 0
    assert bounds[-1] == len(sizes)
    known = [UNKNOWN_BYTES if size is None else size for size in sizes]
    for begin, end in itertools.pairwise(bounds):
        assert 0 < end - begin <= shard_size
        assert end - begin == 1 or sum(known[begin:end]) <= shard_bytes
        longer = end - begin < shard_size and end < len(sizes) and sum(known[begin : end + 1]) <= shard_bytes
        assert not longer


@given(listings(), st.data())
@SETTINGS
def test_a_specification_gives_its_members_back_and_selects_among_them(source: Listing, data: st.DataObject) -> None:
    cut = Cut(data.draw(st.integers(1, 40)), 2**60)
    specs = [spec.as_py() for batch in cut_members(source.members(), cut, ROOT) for spec in batch["spec"]]
    found = [members_of(unpack(spec, ROOT)) for spec in specs]
    assert list(itertools.chain(*found)) == source.listed
    assert members_of(unpack(pack(batch_of(found[0]), ROOT), ROOT)) == found[0]

    chosen = data.draw(st.lists(st.integers(0, len(specs) - 1), min_size=1, max_size=4))
    places = [(shard, data.draw(st.lists(st.integers(0, len(found[shard]) - 1), max_size=5))) for shard in chosen]
    wanted = [found[shard][row] for shard, rows in places for row in rows]
    selected = source.select([(specs[shard], [Place(row) for row in rows]) for shard, rows in places])
    # Sizes and versions from the listing are dropped.
    assert members_of(unpack(selected, ROOT)) == [replace(member, size=None, etag=None) for member in wanted]
    assert [source.member(selected, row) for row in range(len(wanted) + 1)] == [
        *members_of(unpack(selected, ROOT)),
        None,
    ]


@given(st.integers(1, 3 * GROUP), st.data())
@SETTINGS
def test_what_is_left_and_what_is_read_of_a_plan_is_what_was_asked_for(count: int, data: st.DataObject) -> None:
    members = [Member(f"{number}.jpg", join(ROOT, f"{number}.jpg"), 1, None) for number in range(count)]
    numbers = st.sets(st.integers(0, count - 1))
    committed, asked = data.draw(numbers), data.draw(numbers)
    with tempfile.TemporaryDirectory() as folder:
        store: Store = open_store(folder)
        plan: Plan = make_plan(Listing(members, [50]), store, shard_size=1, limit=None, fingerprint="f")
        for shard in committed:
            store.create(commit_key(plan.id, shard), b"")
        assert plan.remaining(store).tolist() == sorted(set(range(count)) - committed)
        read = [(shard.number, spec) for shard, spec in plan.specs(np.array(list(asked), np.int64))]
        assert [(number, members_of(unpack(spec, ROOT))) for number, spec in read] == [
            (number, [members[number]]) for number in sorted(asked)
        ]
