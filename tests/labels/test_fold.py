"""Snapshots that follow from their parent by pointers are those that the keys of all plans give, in any order of writers."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from da2ray.labels import fold, parts
from da2ray.labels.commits import REPLACES, Update, commit_key, commit_shard, list_all_commits
from da2ray.labels.listing import read_listing, write_listing
from da2ray.labels.live_rows import LiveRows
from da2ray.labels.parts import read_part
from da2ray.labels.schema import GONE, INDEX
from da2ray.labels.shards.formats import build_shard
from da2ray.labels.snapshots import Snapshot, create_snapshot, open_snapshot
from da2ray.labels.upkeep.verify import verify
from da2ray.storage import Store, open_store
from tests.labels.samples import FINGERPRINT, commit, content, info

Place = tuple[str, int, str | None]
"""The part and position of a live row, and its version."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of few shards and row groups of few rows, so that a few rows make several of each."""
    monkeypatch.setattr(fold, "SHARDS_PER_PART", 3)
    monkeypatch.setattr(parts, "GROUP_ROWS", 4)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = open_store(str(tmp_path / "dataset"))
    made.put("dataset.json", info().model_dump_json().encode())
    return made


def places(store: Store, snapshot: Snapshot) -> dict[str, Place]:
    with LiveRows(store, snapshot) as rows:
        found = [row for table in rows.every() for row in table.to_pylist()]
        assert len({row["key"] for row in found}) == len(found) == snapshot.rows
        ordered = rows.between(None, None)["key"].to_pylist()
        assert ordered == sorted(row["key"] for row in found)
    return {row["key"]: (snapshot.parts[row["part"]].name, row["position"], row["version"]) for row in found}


def update(
    store: Store, plan: str, shard: int, parent: Snapshot, keys: list[str], gone: bool = False, seed: int = 0
) -> None:
    """Commit a shard of a plan that was made from `parent`."""
    known = places(store, parent)
    rows, qs, _ = content(keys, plan=plan, shard=shard, seed=seed)
    rows = rows.set_column(
        INDEX.get_field_index("etag"), INDEX.field("etag"), pa.array([f"{plan}{key}" for key in keys])
    )
    if gone:
        fields = [dict.fromkeys(INDEX.names) | {n: row[n] for n in ("key", "uri", "plan", "shard", "row", "fingerprint")}
                  | {"status": GONE} for row in rows.to_pylist()]  # fmt: skip
        rows, qs = pa.Table.from_pylist(fields, schema=INDEX), [None] * len(keys)
    replaces = [
        dict.fromkeys(REPLACES.names)
        | (
            {"part": known[key][0], "position": known[key][1], "version": known[key][2], "status": "labelled",
             "fingerprint": FINGERPRINT} if key in known else {}
        )
        for key in keys
    ]  # fmt: skip
    made = Update(parent.number, pa.Table.from_pylist(replaces, schema=REPLACES), INDEX.empty_table())
    commit_shard(store, plan, shard, build_shard(rows, qs, "parquet"), FINGERPRINT, update=made)


def rows_of(store: Store, snapshot: Snapshot) -> pa.Table:
    return pa.concat_tables([INDEX.empty_table(), *(read_part(store, part) for part in snapshot.parts)])


def check(store: Store, snapshot: Snapshot, plans: list[str], tmp_path: Path) -> None:
    """Check rows and counts against a fold of the same commits from nothing, and the listing against the rows."""
    other = open_store(str(tmp_path / f"other-{snapshot.number}"))
    for plan, entries in list_all_commits(store).items():
        for entry in entries:
            other.put(commit_key(plan, entry.shard), store.get(commit_key(plan, entry.shard)))
    wanted = create_snapshot(other, plans, FINGERPRINT)
    assert rows_of(store, snapshot).equals(rows_of(other, wanted))
    for name in ("rows", "by_status", "by_reason", "superseded", "fingerprints"):
        assert getattr(snapshot, name) == getattr(wanted, name), name
    for part in snapshot.parts:
        statuses = Counter(read_part(store, part)["status"].to_pylist())
        assert (part.rows, part.by_status) == (statuses.total(), dict(statuses))
    listing = read_listing(store, snapshot.digest)
    with LiveRows(store, snapshot) as rows:
        again = rows.listing()
    assert listing.rows.sum() == snapshot.rows
    assert np.bitwise_xor.reduce(listing.digests).tolist() == np.bitwise_xor.reduce(again.digests).tolist()


def keep_listing(store: Store, snapshot: Snapshot) -> None:
    with LiveRows(store, snapshot) as rows:
        write_listing(store, snapshot.digest, rows.listing())


@pytest.mark.parametrize("seed", range(4))
def test_updates_by_any_writers_in_any_order_give_what_the_keys_give(store: Store, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    alphabet = [f"{number:03d}" for number in range(60)]
    for shard in range(6):
        commit(store, alphabet[shard * 6 : shard * 6 + 6], plan="label", shard=shard)
    made = [create_snapshot(store, ["label"], FINGERPRINT)]
    keep_listing(store, made[0])
    plans: list[tuple[int, str]] = [(0, "label")]
    waiting: list[tuple[str, int, Snapshot, list[str], bool]] = []
    for step in range(6):
        # A plan of the newest snapshot, or of one before: of a job that began earlier.
        parent = chance.choice(made[-2:])
        plan = f"{step}plan"
        plans.append((parent.number, plan))
        known = places(store, parent)
        keys = chance.sample(alphabet, chance.randint(1, 14))
        gone = [key for key in keys if key in known and chance.random() < 0.3]
        rest = [key for key in keys if key not in gone]
        shards = [(rest[start : start + 4], False) for start in range(0, len(rest), 4)] + (
            [(gone, True)] if gone else []
        )
        waiting += [(plan, number, parent, keys, is_gone) for number, (keys, is_gone) in enumerate(shards)]
        # Some commits come later, after other plans were published.
        chance.shuffle(waiting)
        for _ in range(chance.randint(1, len(waiting))):
            update(store, *waiting.pop())
        ordered = [plan for _, plan in sorted(plans)]
        snapshot = create_snapshot(store, ordered, FINGERPRINT)
        keep_listing(store, snapshot)
        check(store, snapshot, ordered, tmp_path)
        if snapshot.number != made[-1].number:
            made.append(snapshot)
    assert len(made) > 3
    assert verify(store, "parquet").findings == []


def test_an_update_reads_its_commits_and_writes_a_list_of_retired_rows(store: Store, tmp_path: Path) -> None:
    keys = [f"{number:03d}" for number in range(30)]
    for shard in range(5):
        commit(store, keys[shard * 6 : shard * 6 + 6], plan="label", shard=shard)
    first = create_snapshot(store, ["label"], FINGERPRINT)
    keep_listing(store, first)
    update(store, "update", 0, first, ["003", "new"])
    update(store, "update", 1, first, ["009"], gone=True)
    before = {key for batch in store.list("index") for key in batch["key"].to_pylist()}
    reads: Counter[str] = Counter()

    class Counting:
        def __getattr__(self, name: str) -> object:
            return getattr(store, name)

        def get(self, key: str) -> bytes:
            reads[key.partition("/")[0]] += 1
            return store.get(key)

    second = create_snapshot(Counting(), ["label", "update"], FINGERPRINT)
    assert reads["index"] == 0
    assert reads["commits"] <= 3
    check(store, second, ["label", "update"], tmp_path)
    assert [part.name for part in second.parts[:2]] == [part.name for part in first.parts]
    after = {key for batch in store.list("index") for key in batch["key"].to_pylist()}
    assert sorted(key.count(".retired") for key in after - before) == [0, 1]
    assert second.by_status == {"labelled": 30}
    assert second.parts[0].retired is not None
    stay = [key for key in keys if key not in ("003", "009")]
    assert rows_of(store, second)["key"].to_pylist() == [*stay, "003", "new"]
    assert create_snapshot(store, ["label", "update"], FINGERPRINT) == second


def test_a_part_of_which_a_fifth_is_retired_is_written_anew(store: Store, tmp_path: Path) -> None:
    keys = [f"{number:03d}" for number in range(10)]
    commit(store, keys, plan="label")
    first = create_snapshot(store, ["label"], FINGERPRINT)
    keep_listing(store, first)
    update(store, "a", 0, first, keys[:2])
    second = create_snapshot(store, ["label", "a"], FINGERPRINT)
    assert second.parts[0].name == first.parts[0].name
    update(store, "b", 0, second, keys[2:3])
    update(store, "c", 0, second, keys[2:5])  # by another job at the same time; its pointers are into the old part
    third = create_snapshot(store, ["label", "a", "b"], FINGERPRINT)
    assert (third.parts[0].stored, third.parts[0].retired) == (7, None)
    fourth = create_snapshot(store, ["label", "a", "b", "c"], FINGERPRINT)
    check(store, fourth, ["label", "a", "b", "c"], tmp_path)
    update(store, "d", 0, fourth, keys)
    fifth = create_snapshot(store, ["label", "a", "b", "c", "d"], FINGERPRINT)
    assert [part.plan for part in fifth.parts] == ["d"]
    check(store, fifth, ["label", "a", "b", "c", "d"], tmp_path)


def test_what_a_removed_commit_replaced_comes_back(store: Store, tmp_path: Path) -> None:
    commit(store, ["a", "b", "c"], plan="label")
    first = create_snapshot(store, ["label"], FINGERPRINT)
    keep_listing(store, first)
    update(store, "update", 0, first, ["b"])
    update(store, "update", 1, first, ["c"], gone=True)
    plans = ["label", "update"]
    assert rows_of(store, create_snapshot(store, plans, FINGERPRINT))["key"].to_pylist() == ["a", "b"]
    store.delete([commit_key("update", 0), commit_key("update", 1)])  # as `repair` does
    again = create_snapshot(store, plans, FINGERPRINT)
    assert {row["key"]: row["plan"] for row in rows_of(store, again).to_pylist()} == dict.fromkeys("abc", "label")
    keep_listing(store, again)
    check(store, again, plans, tmp_path)


def test_a_hash_is_read_by_its_place(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, qs, _ = content([f"{number:03d}" for number in range(10)])
    hashes = [bytes([number]) * 32 if number != 7 else None for number in range(10)]
    rows = rows.set_column(INDEX.get_field_index("sha256"), INDEX.field("sha256"), pa.array(hashes, pa.binary(32)))
    commit_shard(store, "p", 0, build_shard(rows, qs, "parquet"), FINGERPRINT)
    snapshot = create_snapshot(store, ["p"], FINGERPRINT)
    for points in (0, 64):
        monkeypatch.setattr("da2ray.labels.live_rows.POINTS", points)
        with LiveRows(store, open_snapshot(store)) as live:
            for chosen in ([0], [3, 4], [1, 6, 7, 9], list(range(10))):
                assert live.file(0).hashes(np.array(chosen)) == [hashes[place] for place in chosen]
    assert snapshot.rows == 10
