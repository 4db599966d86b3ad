"""A plan holds every sample once and is found again. The shards without a commit remain to be labelled."""

import pickle
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from da2ray.errors import UserError
from da2ray.labels.commits import commit_key
from da2ray.plan import file as plan_file
from da2ray.plan import plan as planning
from da2ray.plan.plan import Plan, make_plan, open_plan, plan_id, plan_key
from da2ray.sources import MEMBERS, Member, MemberSource, Sample, Source, members_of, open_source
from da2ray.sources.members import unpack
from da2ray.storage import Store, join, open_store
from tests.sources.packs import PackSource, write_packs


class Listed(MemberSource):
    """A source of `count` samples without bytes. The key of number i is {i:09d}.jpg."""

    kind = "prefix"
    looks_for = "numbers"
    url = root = "s3://bucket/images"

    def __init__(self, count: int, size: int | None = 1000, batch: int = 10_000) -> None:
        self.count = count
        self.size = size
        self.batch = batch
        self.listings = 0

    def describe(self) -> dict[str, str]:
        return {"kind": self.kind, "url": self.url}

    def members(self, limit: int | None = None) -> Iterator[pa.RecordBatch]:
        self.listings += 1
        count = self.count if limit is None else min(limit, self.count)
        for start in range(0, count, self.batch):
            rows = range(start, min(start + self.batch, count))
            keys = [f"{i:09d}.jpg" for i in rows]
            uris = [f"{self.root}/{key}" for key in keys]
            etags = [f"{i * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128:032x}" for i in rows]
            sizes, focals = pa.array([self.size] * len(rows), pa.int64()), pa.nulls(len(rows), pa.float32())
            yield pa.record_batch([keys, uris, sizes, etags, focals, pa.nulls(len(keys), pa.string())], schema=MEMBERS)

    def fetch(self, members: Iterable[Member], concurrency: int) -> Iterator[Sample]:  # noqa: ARG002
        raise AssertionError("planning reads no image")


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path / "dataset"))
    return open_store(request.getfixturevalue("s3").create_bucket() + "/dataset")


def make(source: Source, store: Store, shard_size: int = 4, limit: int | None = None, **options: int) -> Plan:
    return make_plan(source, store, shard_size=shard_size, limit=limit, fingerprint="f", **options)


def every(plan: Plan) -> list[bytes]:
    """The specifications of all shards."""
    return [spec for _, spec in plan.specs(np.arange(len(plan)))]


def planned(plan: Plan) -> list[list[Member]]:
    """The members of all shards of a source that lists its members."""
    return [members_of(unpack(spec, plan.info.root)) for spec in every(plan)]


def test_every_sample_is_in_one_shard_in_order(store: Store) -> None:
    source = Listed(1003, batch=100)
    plan = make(source, store)
    assert [shard.number for shard in plan.shards(np.arange(len(plan)))] == list(range(251))
    members = [member for shard in planned(plan) for member in shard]
    assert [member.key for member in members] == [f"{i:09d}.jpg" for i in range(1003)]
    assert all(member.uri == join(source.root, member.key) and member.size == 1000 for member in members)
    assert all(member.etag is not None for member in members)
    assert plan.sizes().tolist() == [4] * 250 + [3]
    assert (plan.info.shards, plan.info.samples, plan.info.bytes) == (251, 1003, 1_003_000)


def test_the_same_command_finds_its_plan_and_lists_nothing(store: Store) -> None:
    source = Listed(10)
    first = make(source, store)
    second = make(source, store)
    assert source.listings == 1
    assert first.id == second.id
    assert every(first) == every(second)


def test_a_stored_plan_is_read_as_it_was_made(store: Store) -> None:
    made = make(Listed(10), store)
    opened = open_plan(store, made.id)
    assert opened is not None
    assert opened.info == made.info
    assert opened.info.source == {"kind": "prefix", "url": "s3://bucket/images"}
    assert open_plan(store, "0" * 16) is None


def test_each_input_of_the_plan_is_part_of_its_id() -> None:
    fixed = {"shard_size": 4, "shard_bytes": 5, "limit": None, "fingerprint": "f"}
    ids = {plan_id({"url": "a"}, **fixed), plan_id({"url": "b"}, **fixed)}
    for name, value in (("shard_size", 5), ("shard_bytes", 6), ("limit", 1), ("fingerprint", "g")):
        ids.add(plan_id({"url": "a"}, **(fixed | {name: value})))
    assert len(ids) == 6
    assert plan_id({"url": "a"}, **fixed) == plan_id({"url": "a"}, **dict(reversed(fixed.items())))


def test_of_two_plans_made_at_once_both_jobs_use_the_first(store: Store) -> None:
    with ThreadPoolExecutor(2) as pool:
        plans = list(pool.map(lambda _: make(Listed(500), store), range(2)))
    assert every(plans[0]) == every(plans[1])
    listed = [key for batch in store.list("plans") for key in batch.column("key").to_pylist()]
    assert listed == [plan_key(plans[0].id)]


def test_a_plan_that_exists_is_never_replaced(store: Store) -> None:
    class Overtaken(Listed):
        def members(self, limit: int | None = None) -> Iterator[pa.RecordBatch]:
            make(Listed(8), store)
            yield from super().members(limit)

    assert make(Overtaken(100), store).info.samples == 8


@pytest.mark.parametrize("limit", [1, 4, 5, 99, 100, 1000])
def test_a_limit_plans_exactly_that_many(tmp_path: Path, limit: int) -> None:
    plan = make(Listed(100, batch=7), open_store(str(tmp_path)), limit=limit)
    assert plan.info.samples == sum(map(len, planned(plan))) == min(limit, 100)


def test_a_shard_ends_before_its_bytes_exceed_the_bound(tmp_path: Path) -> None:
    plan = make(Listed(1000, size=30, batch=77), open_store(str(tmp_path)), shard_size=50, shard_bytes=100)
    assert plan.sizes().tolist() == [3] * 333 + [1]


def test_unknown_sizes_give_unknown_bytes(tmp_path: Path) -> None:
    plan = make(Listed(10, size=None), open_store(str(tmp_path)))
    assert plan.info.bytes is None
    assert plan.sizes().tolist() == [4, 4, 2]


def test_counts_that_a_source_estimates_make_a_plan_that_says_so(tmp_path: Path) -> None:
    folder = write_packs(tmp_path / "packs", [3, 5])
    plan = make(PackSource(str(folder)), open_store(str(tmp_path / "out")))
    assert not plan.info.exact
    assert plan.info.shards == 2
    assert plan.info.samples == plan.sizes().sum() != 8
    assert plan.info.bytes == sum(path.stat().st_size for path in folder.iterdir())


def test_what_remains_is_what_no_commit_names(store: Store) -> None:
    plan = make(Listed(40), store)
    assert plan.remaining(store).tolist() == list(range(10))
    for shard in (0, 3, 9):
        store.create(commit_key(plan.id, shard), b"")
    store.put(f"commits/{plan.id}/notes.txt", b"")
    store.put(f"commits/{plan.id}/00000004.parquet.bak", b"")
    store.put(commit_key("another", 5), b"")
    remaining = plan.remaining(store)
    assert remaining.dtype == np.int64
    assert remaining.tolist() == [1, 2, 4, 5, 6, 7, 8]
    assert [shard.number for shard in plan.shards(remaining)] == remaining.tolist()


def test_a_commit_of_a_shard_that_the_plan_lacks_is_no_part_of_it(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    plan = make(Listed(8), store)
    store.create(commit_key(plan.id, 7), b"")
    with pytest.raises(UserError, match="00000007"):
        plan.remaining(store)


def test_shards_of_other_numbers_are_an_index_error(tmp_path: Path) -> None:
    plan = make(Listed(8), open_store(str(tmp_path)))
    with pytest.raises(IndexError):
        list(plan.shards(np.array([2])))


def test_a_shard_travels_as_numbers_and_its_specification_is_one_range_of_the_plan(store: Store) -> None:
    plan = make(Listed(512), store, shard_size=256)
    shard = next(plan.shards(np.array([1])))
    assert len(pickle.dumps(shard)) < 250
    spec = pickle.loads(pickle.dumps(shard)).spec(store)  # noqa: S301
    assert spec == store.get(plan_key(plan.id))[shard.offset : shard.offset + shard.length]
    members = members_of(unpack(spec, plan.info.root))
    assert len(spec) < 12_000
    assert [member.key for member in members] == [f"{i:09d}.jpg" for i in range(256, 512)]


def test_the_numbers_of_a_plan_are_read_without_its_specifications(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_file, "GROUP_BYTES", 64 << 10)
    store = open_store(str(tmp_path))
    made = make(Listed(20_000), store, shard_size=10)
    read = 0
    get_range = type(store).get_range

    def counted(self: Store, key: str, offset: int, length: int) -> bytes:
        nonlocal read
        read += length
        return get_range(self, key, offset, length)

    monkeypatch.setattr(planning, "_READ_BYTES", 16 << 10)
    monkeypatch.setattr(type(store), "get_range", counted)
    plan = Plan(store, made.id)
    assert len(list(plan.shards(np.arange(len(plan))))) == len(plan) == 2000
    assert read < store.stat(plan_key(made.id)).size / 2


def test_uris_that_are_not_below_the_root_are_kept(tmp_path: Path) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text("uri,key\ns3://b/x.jpg,1\na/y.jpg,2\nz.jpg,z.jpg\n")
    plan = make(open_source(str(manifest)), open_store(str(tmp_path / "out")))
    (members,) = planned(plan)
    assert [member.uri for member in members] == ["s3://b/x.jpg", f"{tmp_path}/a/y.jpg", f"{tmp_path}/z.jpg"]
    assert [member.key for member in members] == ["1", "2", "z.jpg"]


def test_a_source_without_images_is_a_user_error_and_leaves_no_plan(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "readme.txt").write_text("x")
    store = open_store(str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"no images under .*in; looked for .*\.jpg"):
        make(open_source(str(tmp_path / "in")), store)
    assert not list(store.list())


def test_resume_of_a_large_plan_is_known_in_seconds(tmp_path: Path) -> None:
    """`jobs/benchmark.py --resume-shards 200000` measures it at full size."""
    store = open_store(str(tmp_path))
    plan = make(Listed(10_000), store, shard_size=1)
    folder = tmp_path / "commits" / plan.id
    folder.mkdir(parents=True)
    for shard in range(0, 10_000, 2):
        (folder / f"{shard:08d}.parquet").touch()
    started = time.monotonic()
    assert plan.remaining(store).tolist() == list(range(1, 10_000, 2))
    assert time.monotonic() - started < 5
