"""Two jobs on one plan label every shard between them, each once."""

import io
import threading
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from da2ray.labels import leases
from da2ray.labels.commits import commit_key
from da2ray.pipeline.control import claims
from da2ray.pipeline.control.claims import Claims
from da2ray.plan.plan import Plan, make_plan
from da2ray.sources import open_source
from da2ray.storage import Store, open_store

SHARDS = 20


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "labels"))


@pytest.fixture
def plan(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> Plan:
    for module in (leases, claims):
        monkeypatch.setattr(module, "SPAN", 4)
    monkeypatch.setattr(claims, "WAIT_SECONDS", 0.05)
    images = tmp_path / "images"
    images.mkdir()
    for number in range(SHARDS):
        (images / f"{number:03d}.jpg").touch()
    return make_plan(open_source(str(images)), store, shard_size=1, limit=None, fingerprint="test")


def commit(store: Store, plan: Plan, shards: np.ndarray) -> None:
    for shard in shards.tolist():
        assert store.create(commit_key(plan.id, shard), b""), f"shard {shard} was labelled twice"


def test_one_job_gets_all_in_waves(store: Store, plan: Plan) -> None:
    waves = []
    with Claims(store, plan, "one", 60, Console(file=io.StringIO())) as mine:
        while (wave := mine.next(6, threading.Event())).size:
            commit(store, plan, wave)
            waves.append(wave.tolist())
    assert [len(wave) for wave in waves] == [6, 6, 6, 2]
    assert [shard for wave in waves for shard in wave] == list(range(SHARDS))
    assert mine.others == set()


def test_a_job_that_was_never_beside_another_lists_commits_once_a_wave(
    store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    listings = []
    remaining = Plan.remaining
    monkeypatch.setattr(Plan, "remaining", lambda *args, **given: listings.append(1) or remaining(*args, **given))
    for run, each in (("one", 1), ("two", 2)):  # the second run meets the leases of the first
        listings.clear()
        with Claims(store, plan, run, 60, Console(file=io.StringIO())) as mine:
            commit(store, plan, mine.next(5, threading.Event()))
            commit(store, plan, mine.next(5, threading.Event()))
        assert len(listings) == 2 * each


def test_two_jobs_label_every_shard_once_between_them(store: Store, plan: Plan) -> None:
    labelled: dict[str, list[int]] = {"one": [], "two": []}
    trouble: list[BaseException] = []

    def job(run: str) -> None:
        try:
            with Claims(store, plan, run, 60, Console(file=io.StringIO())) as mine:
                while (wave := mine.next(4, threading.Event())).size:
                    threading.Event().wait(0.02)
                    commit(store, plan, wave)
                    labelled[run] += wave.tolist()
        except BaseException as error:  # noqa: BLE001 - shown below
            trouble.append(error)

    threads = [threading.Thread(target=job, args=(run,)) for run in labelled]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not trouble
    assert sorted(labelled["one"] + labelled["two"]) == list(range(SHARDS))


def test_who_finds_all_leased_waits_and_learns_who_labelled_it(store: Store, plan: Plan) -> None:
    printed = io.StringIO()
    with Claims(store, plan, "one", 60, Console(file=io.StringIO())) as first:
        wave = first.next(SHARDS, threading.Event())
        assert len(wave) == SHARDS
        second, got = Claims(store, plan, "two", 60, Console(file=printed)), []
        thread = threading.Thread(target=lambda: got.append(second.next(SHARDS, threading.Event())))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive(), "it did not wait"
        commit(store, plan, wave)
        thread.join(30)
    assert got[0].size == 0
    assert "run one on" in printed.getvalue()
    assert len(second.others) == 1


def test_what_a_dead_job_left_is_taken_up_where_it_ended(store: Store, plan: Plan) -> None:
    dead = Claims(store, plan, "dead", 0.3, Console(file=io.StringIO()))  # never entered: nothing renews its leases
    commit(store, plan, dead.next(SHARDS, threading.Event())[:7])
    with Claims(store, plan, "heir", 60, Console(file=io.StringIO())) as heir:
        labelled = []
        while (wave := heir.next(SHARDS, threading.Event())).size:  # its leases expire one after another
            commit(store, plan, wave)
            labelled += wave.tolist()
    assert labelled == list(range(7, SHARDS))


def test_a_stop_request_ends_the_waiting(store: Store, plan: Plan) -> None:
    stopping = threading.Event()
    with Claims(store, plan, "one", 60, Console(file=io.StringIO())) as first:
        first.next(SHARDS, stopping)
        threading.Timer(0.1, stopping.set).start()
        assert not Claims(store, plan, "two", 60, Console(file=io.StringIO())).next(SHARDS, stopping).size
