"""After any order of attempts, deaths, lost answers, repairs and snapshots by several writers, a dataset equals a small model.

In the model a shard has the attempt that was committed first (invariant 2). A key's row comes from the latest plan that has a
committed shard with that key. A snapshot never changes.
"""

import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from da2ray.labels import fold
from da2ray.labels.commits import CommitOutcome, commit_key, list_commits, read_commit
from da2ray.labels.parts import read_part
from da2ray.labels.snapshots import Snapshot, create_snapshot, list_snapshots, open_snapshot
from da2ray.storage import open_store
from tests.labels.samples import FINGERPRINT, LostAnswers, commit

PLANS = {"old": 2, "new": 3, "newest": 1}
"""Plans, oldest first, with the number of keys per shard. Shards of two plans share some keys."""
SHARDS = st.integers(0, 4)
WHICH = st.sampled_from(sorted(PLANS))

Place = tuple[str, int]
Rows = dict[str, tuple[str, str]]
# Key -> plan and object.


def keys_of(place: Place) -> list[str]:
    plan, shard = place
    return [f"{number}.jpg" for number in range(shard * PLANS[plan], (shard + 1) * PLANS[plan])]


def attempt_at(store: object, place: Place, seed: int) -> CommitOutcome:
    plan, shard = place
    return commit(store, keys_of(place), plan=plan, shard=shard, seed=seed)


class Dies(LostAnswers):
    """A writer that is killed between its data and its commit."""

    def create(self, *_: object) -> bool:
        raise OSError("killed")


class Interrupted(LostAnswers):
    """A writer that lets another one act before its own first create under a prefix."""

    def __init__(self, store: object, prefix: str, act: Callable[[], object]) -> None:
        super().__init__(store)
        self._prefix = prefix
        self._act: Callable[[], object] | None = act

    def create(self, key: str, data: bytes) -> bool:
        if self._act and key.startswith(self._prefix):
            act, self._act = self._act, None
            act()
        return self._store.create(key, data)


class Orders(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp()
        self.store = open_store(self.folder)
        self.committed: dict[Place, str] = {}  # the attempt
        self.made: dict[int, tuple[Snapshot, Rows]] = {}
        self.shards_per_part = fold.SHARDS_PER_PART
        fold.SHARDS_PER_PART = 2  # parts of few shards, so that some change and some are shared

    def teardown(self) -> None:
        try:
            self.at_the_end_first_attempts_and_snapshots_are_what_they_were()
        finally:
            fold.SHARDS_PER_PART = self.shards_per_part
            shutil.rmtree(self.folder)

    # ------------------------------------------------------------------------------------------------------ attempts

    def check_outcome(self, place: Place, outcome: CommitOutcome) -> None:
        """Check that an attempt won, or learnt which one did."""
        assert outcome.committed == (place not in self.committed)
        assert self.committed.setdefault(place, outcome.attempt) == outcome.attempt

    @rule(plan=WHICH, shard=SHARDS, seed=st.integers(0, 3))
    def attempt(self, plan: str, shard: int, seed: int) -> None:
        self.check_outcome((plan, shard), attempt_at(self.store, (plan, shard), seed))

    @rule(plan=WHICH, shard=SHARDS)
    def attempt_whose_answer_is_lost(self, plan: str, shard: int) -> None:
        self.check_outcome((plan, shard), attempt_at(LostAnswers(self.store), (plan, shard), 0))

    @rule(plan=WHICH, shard=SHARDS)
    def attempt_that_dies_before_its_commit(self, plan: str, shard: int) -> None:
        with suppress(OSError):
            attempt_at(Dies(self.store), (plan, shard), 0)

    @rule(plan=WHICH, shard=SHARDS)
    def attempt_overtaken_by_another(self, plan: str, shard: int) -> None:
        place = (plan, shard)
        overtaking = Interrupted(
            self.store, "commits/", lambda: self.check_outcome(place, attempt_at(self.store, place, 1))
        )
        self.check_outcome(place, attempt_at(overtaking, place, 2))

    @rule(plan=WHICH, shard=SHARDS, writers=st.integers(2, 4))
    def attempts_at_once(self, plan: str, shard: int, writers: int) -> None:
        place = (plan, shard)
        with ThreadPoolExecutor(writers) as pool:
            outcomes = list(pool.map(lambda seed: attempt_at(self.store, place, seed), range(writers)))
        assert sum(outcome.committed for outcome in outcomes) == (place not in self.committed)
        assert len({outcome.attempt for outcome in outcomes}) == 1
        assert self.committed.setdefault(place, outcomes[0].attempt) == outcomes[0].attempt

    @precondition(lambda self: self.committed)
    @rule(data=st.data(), labelled_again=st.booleans())
    def a_commit_is_removed_as_repair_does(self, data: st.DataObject, labelled_again: bool) -> None:
        place = data.draw(st.sampled_from(sorted(self.committed)))
        self.store.delete([commit_key(*place)])
        del self.committed[place]
        if labelled_again:
            self.attempt(*place, seed=0)

    # ----------------------------------------------------------------------------------------------------- snapshots

    def live(self) -> Rows:
        """The rows of a snapshot that is made now, by the model."""
        rows: Rows = {}
        for plan in PLANS:
            for place, attempt in sorted(self.committed.items()):
                if place[0] == plan:
                    rows |= dict.fromkeys(keys_of(place), (plan, attempt))
        return rows

    def stored(self, snapshot: Snapshot) -> Rows:
        rows = [row for part in snapshot.parts for row in read_part(self.store, part).to_pylist()]
        places = [(list(PLANS).index(row["plan"]), row["shard"], row["row"]) for row in rows]
        assert places == sorted(places), "rows out of order"
        # The object's name is shards/<plan>/<shard>-<attempt>.parquet.
        found = {row["key"]: (row["plan"], row["object"].rpartition("-")[2].partition(".")[0]) for row in rows}
        assert len(found) == len(rows) == snapshot.rows == sum(snapshot.by_status.values())
        return found

    def check(self, snapshot: Snapshot) -> None:
        """Check that the newest snapshot holds the live rows, and that it is new exactly if they changed."""
        live, numbers = self.live(), list_snapshots(self.store)
        assert self.stored(snapshot) == live
        assert snapshot.number == numbers[-1]
        assert numbers == list(range(1, len(numbers) + 1))
        if snapshot.number in self.made:
            assert self.made[snapshot.number] == (snapshot, live)
        else:
            before = self.made.get(snapshot.number - 1)
            assert before is None or before[1] != live
            self.made[snapshot.number] = (snapshot, live)

    @rule()
    def snapshot(self) -> None:
        self.check(create_snapshot(self.store, list(PLANS), FINGERPRINT))

    @rule()
    def snapshot_whose_answer_is_lost(self) -> None:
        self.check(create_snapshot(LostAnswers(self.store), list(PLANS), FINGERPRINT))

    @rule(plan=WHICH, shard=SHARDS)
    def snapshot_overtaken_by_a_commit_and_its_snapshot(self, plan: str, shard: int) -> None:
        def overtake() -> None:
            self.attempt_in_between(plan, shard)
            self.snapshot()

        self.check(create_snapshot(Interrupted(self.store, "snapshots/", overtake), list(PLANS), FINGERPRINT))

    def attempt_in_between(self, plan: str, shard: int) -> None:
        self.check_outcome((plan, shard), attempt_at(self.store, (plan, shard), 3))

    @rule(writers=st.integers(2, 3))
    def snapshots_at_once(self, writers: int) -> None:
        with ThreadPoolExecutor(writers) as pool:
            made = list(pool.map(lambda _: create_snapshot(self.store, list(PLANS), FINGERPRINT), range(writers)))
        assert len({snapshot.number for snapshot in made}) == 1
        self.check(made[0])

    # --------------------------------------------------------------------------------------------------- what stays

    @invariant()
    def one_commit_a_shard(self) -> None:
        listed = [(plan, entry.shard) for plan in PLANS for entry in list_commits(self.store, plan)]
        assert sorted(listed) == sorted(self.committed)

    def at_the_end_first_attempts_and_snapshots_are_what_they_were(self) -> None:
        for place, attempt in self.committed.items():
            assert read_commit(self.store, *place).attempt == attempt
        for number, (snapshot, rows) in self.made.items():
            assert open_snapshot(self.store, number) == snapshot
            assert self.stored(snapshot) == rows


TestOrders = pytest.mark.slow(Orders.TestCase)
TestOrders.settings = settings(derandomize=True, max_examples=25, stateful_step_count=30)
