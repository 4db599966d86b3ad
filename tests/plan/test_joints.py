"""Shards that were cut blindly come to meet before a snapshot is made of them, wherever a run dies and if several run at once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from da2ray.errors import CorruptError
from da2ray.labels.commits import Commit, commit_key, commit_shard, read_commit, serialise
from da2ray.labels.dataset import create_or_open
from da2ray.labels.parts import read_part
from da2ray.labels.schema import INDEX
from da2ray.labels.shards.formats import build_shard
from da2ray.labels.snapshots import create_snapshot
from da2ray.labels.upkeep.check import Wrong
from da2ray.labels.upkeep.repair import repair
from da2ray.labels.upkeep.verify import verify
from da2ray.plan import joints
from da2ray.plan.joints import Correction, Joint, correct, corrections, foldable, misplaced
from da2ray.plan.plan import Plan, correction_key, make_plan
from da2ray.sources import Source, open_source
from da2ray.sources.base import Extent
from da2ray.storage import Store, open_store
from tests.labels.samples import FINGERPRINT, info
from tests.sources.tar.tars import read_shard, serial, some_bodies, tar_bytes, write_tar

SHARD_BYTES = 2048


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    """A tar whose members are images and tars, several shards long each."""
    bodies = some_bodies(9)
    inner = tar_bytes({f"inner-{number}.jpg": body for number, body in enumerate(bodies)})
    members = {"a.jpg": bodies[0], "x.tar": inner, "b.jpg": bodies[1], "y.tar": inner, "c.jpg": bodies[2]}
    return write_tar(tmp_path / "tars" / "a.tar", members)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store(str(tmp_path / "labels"))
    create_or_open(store, info())
    return store


def plan_of(source: Source, store: Store) -> Plan:
    return make_plan(source, store, shard_size=100, shard_bytes=SHARD_BYTES, limit=None, fingerprint=FINGERPRINT)


def label(source: Source, store: Store, plan: Plan) -> int:
    """Read and commit the remaining shards, without a label, as a run does. Returns how many there were."""
    left = plan.remaining(store)
    for shard, spec in plan.specs(left):
        commit(source, store, plan, shard.number, spec)
    return len(left)


def commit(source: Source, store: Store, plan: Plan, number: int, spec: bytes) -> None:
    samples, extent = read_shard(source, spec)
    rows = [
        dict.fromkeys(INDEX.names)
        | {
            "key": sample.member.key, "uri": sample.member.uri, "image_offset": sample.member.image_offset,
            "image_length": sample.member.image_length, "status": "failed", "reason": "not_an_image", "plan": plan.id,
            "shard": number, "row": row, "fingerprint": FINGERPRINT,
        }
        for row, sample in enumerate(samples)
    ]  # fmt: skip
    built = build_shard(pa.Table.from_pylist(rows, schema=INDEX), [None] * len(rows), "parquet")
    commit_shard(store, plan.id, number, built, FINGERPRINT, extent)


def keys_of(store: Store) -> list[str]:
    snapshot = create_snapshot(store, lambda: foldable(store), FINGERPRINT)
    return [key for part in snapshot.parts for key in read_part(store, part, ["key"])["key"].to_pylist()]


def finish(source: Source, store: Store, plan: Plan) -> int:
    """What a run does once all shards are committed. Returns the rounds that it took."""
    for round_ in range(20):
        label(source, store, plan)
        if not correct(source, store, plan):
            return round_
    raise AssertionError("the shards do not come to meet")


def test_shards_that_do_not_meet_are_read_again_until_all_do(tar: Path, store: Store) -> None:
    source = open_source(str(tar))
    plan = plan_of(source, store)
    assert plan.info.ranged
    label(source, store, plan)
    wrong = misplaced(store, plan)
    assert wrong
    assert {found.what for found in verify(store, "parquet").findings} == {Wrong.EXTENT}
    assert foldable(store) == [], "a snapshot would have images of inner tars"
    assert finish(source, store, plan) >= 1
    assert misplaced(store, plan) == []
    assert foldable(store) == [plan.id]
    assert sorted(keys_of(store)) == sorted(serial(tar))
    assert verify(store, "parquet").findings == []
    # Later readings of the same plan begin where they must.
    store.delete([commit_key(plan.id, number) for number in range(len(plan))])
    assert foldable(store) == [plan.id], "it is in the newest snapshot"
    again = Plan(store, plan.id)
    label(source, store, again)
    assert correct(source, store, again) == 0


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", range(8))
def test_a_run_that_dies_while_it_corrects_leaves_what_the_next_one_finishes(
    tar: Path, store: Store, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(str(tar))
    plan = plan_of(source, store)
    label(source, store, plan)
    steps = 0

    def dies(call: Callable[..., None]) -> Callable[..., None]:
        def counted(*args: object) -> None:
            nonlocal steps
            if steps == step:
                raise Killed
            steps += 1
            call(*args)

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "put", dies(type(store).put))
        patch.setattr(type(store), "delete", dies(type(store).delete))
        with pytest.raises(Killed):
            correct(source, store, plan)
    assert foldable(store) == []
    finish(source, store, Plan(store, plan.id))
    assert sorted(keys_of(store)) == sorted(serial(tar))


def test_runs_that_correct_at_the_same_time_agree(tar: Path, store: Store) -> None:
    source = open_source(str(tar))
    plan = plan_of(source, store)
    label(source, store, plan)
    stale = dict(plan.specs(np.arange(len(plan))))
    number = misplaced(store, plan)[0]
    again = correct(source, store, plan)
    assert again == correct(source, store, plan) == len(plan.remaining(store)) > 0
    # A read task of another run, which began before the correction, commits last.
    shard, spec = next((shard, spec) for shard, spec in stale.items() if shard.number == number)
    commit(source, store, plan, shard.number, spec)
    finish(source, store, plan)
    assert sorted(keys_of(store)) == sorted(serial(tar))


def test_a_commit_that_another_run_has_made_anew_is_not_removed(
    tar: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(str(tar))
    plan = plan_of(source, store)
    label(source, store, plan)
    number = misplaced(store, plan)[0]
    real, done = joints.read_summary, []

    def meanwhile(store: Store, plan_id: str, shard: int) -> object:
        summary = real(store, plan_id, shard)
        if shard == number and not done:
            done.append(shard)  # after this run has read the commit
            store.delete([commit_key(plan_id, shard)])
            label(source, store, plan)
        return summary

    monkeypatch.setattr(joints, "read_summary", meanwhile)
    correct(source, store, plan)
    assert number not in plan.remaining(store)


def test_shards_of_two_versions_of_a_tar_are_read_again(tar: Path, store: Store) -> None:
    source = open_source(str(tar))
    plan = plan_of(source, store)
    for shard, spec in plan.specs(np.arange(len(plan) // 2)):
        commit(source, store, plan, shard.number, spec)
    write_tar(tar, {f"{number}.jpg": body for number, body in enumerate(some_bodies(15, seed=7))})
    finish(source, store, plan)
    assert sorted(keys_of(store)) == sorted(serial(tar))


def test_a_plan_of_loose_files_reads_no_commit(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"x")
    source = open_source(str(tmp_path / "images"))
    plan = plan_of(source, store)
    monkeypatch.setattr(joints, "read_summary", None)
    assert correct(source, store, plan) == 0
    assert foldable(store) == [plan.id]


def test_a_damaged_correction_is_found_and_a_damaged_extent_repaired(tar: Path, store: Store) -> None:
    source = open_source(str(tar))
    plan = plan_of(source, store)
    label(source, store, plan)
    number = misplaced(store, plan)[0]
    finish(source, store, plan)
    whole = sorted(keys_of(store))
    old = read_commit(store, plan.id, number)
    moved = Extent(
        **{**{name: getattr(old.extent, name) for name in Extent.__dataclass_fields__}, "first": old.extent.begin}
    )
    fields = {name: getattr(old, name) for name in Commit.__dataclass_fields__} | {"extent": moved}
    store.put(commit_key(plan.id, number), serialise(Commit(**fields)))
    report = verify(store, "parquet")
    assert {(found.shard, found.what) for found in report.findings} == {(number, Wrong.EXTENT)}
    repair(store, report, dry_run=False)
    finish(source, store, plan)
    assert sorted(keys_of(store)) == whole
    key = correction_key(plan.id, number)
    data = store.get(key)
    store.put(key, data[:-1] + b"?")
    (found,) = verify(store, "parquet").findings
    assert (found.object, found.what) == (key, Wrong.PLAN)
    with pytest.raises(CorruptError, match=r"\.spec is not a corrected specification"):
        list(plan.specs(np.array([number])))


def joint(number: int, begin: int, stop: int | None, first: int | None, end: int | None, **more: object) -> Joint:
    quiet = more.pop("quiet", begin if first is None else first)
    return Joint(number, Extent("f", "v", begin, stop, quiet, first, end, **more), ())


@pytest.mark.parametrize(
    ("shards", "again"),
    [
        ([joint(0, 0, 10, 0, 10), joint(1, 10, None, 10, 20)], []),
        ([joint(0, 0, 10, 0, 13), joint(1, 10, None, 13, 20)], []),
        # A member fills the second range.
        ([joint(0, 0, 10, 0, 25), joint(1, 10, 20, None, 20, quiet=20), joint(2, 20, None, 25, 30)], []),
        # Zeros between two archives, and behind the last.
        ([joint(0, 0, 10, 0, 12), joint(1, 10, 20, 16, 20, quiet=12), joint(2, 20, None, None, 30)], []),
        ([joint(0, 0, 10, 0, 13), joint(1, 10, None, 12, 20)], [Correction(1, 13)]),
        ([joint(0, 0, 10, 0, 13), joint(1, 10, None, 15, 20)], [Correction(1, 13)]),
        ([joint(0, 0, 10, 0, 13), joint(1, 10, 20, None, 20, quiet=14)], [Correction(1, 13)]),
        # Two false ranges within one member, and the first behind it; what follows is judged after that is read again.
        (
            [
                *(joint(0, 0, 10, 0, 33), joint(1, 10, 20, 12, 24), joint(2, 20, 30, 24, 30)),
                *(joint(3, 30, 40, 31, 44), joint(4, 40, None, 41, 50)),
            ],
            [Correction(1, 33), Correction(2, 33), Correction(3, 33)],
        ),
        # Behind a place where the file is broken, any header counts.
        ([joint(0, 0, 10, 0, None), joint(1, 10, 20, None, 20, quiet=19), joint(2, 20, None, 24, 30)], []),
    ],
)  # fmt: skip
def test_what_must_be_read_again(shards: list[Joint], again: list[Correction]) -> None:
    assert corrections(shards) == again
