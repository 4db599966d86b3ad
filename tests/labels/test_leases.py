"""Leases keep two jobs off each other's shards, and nobody waits for a dead job."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from da2ray.labels.leases import Holder, Lease, Leases
from da2ray.storage import Store, open_store

LONG = 600.0
"""A lease time that is longer than any test."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def leases(store: Store, run: str, seconds: float = LONG) -> Leases:
    return Leases(store, "plan", run, seconds)


def test_a_span_is_held_by_one_and_each_gets_another(store: Store) -> None:
    first, second = leases(store, "first"), leases(store, "second")
    assert first.take([0, 1, 2]) is None
    assert second.take([0, 1, 2]) is None
    assert (first.held, second.held) == ({0}, {1})
    assert first.take([0, 1, 2]) is None
    assert first.held == {0, 2}
    holder = second.take([0, 1, 2])
    assert holder is not None
    assert holder.run == "first"
    assert second.held == {1}


def test_what_was_given_back_is_free(store: Store) -> None:
    first, second = leases(store, "first"), leases(store, "second")
    first.take([0])
    first.release()
    assert first.held == set()
    assert second.take([0]) is None
    assert second.held == {0}


def test_a_lease_that_is_not_renewed_expires_and_its_holder_learns_that_it_lost_it(store: Store) -> None:
    first, second = leases(store, "first", seconds=0.2), leases(store, "second")
    first.take([0])
    assert second.take([0]) is not None
    time.sleep(0.3)
    assert second.take([0]) is None
    assert second.held == {0}
    assert not first.renew()
    assert first.held == set()


def test_a_renewed_lease_holds_on(store: Store) -> None:
    first, second = leases(store, "first", seconds=0.6), leases(store, "second")
    first.take([0])
    for _ in range(4):
        time.sleep(0.3)
        assert first.renew()
        assert second.take([0]) is not None


def test_a_job_that_was_killed_on_this_machine_keeps_nobody_waiting(store: Store) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    alive = Holder.this_process("killed").model_copy(
        update={"pid": process.pid, "started": psutil.Process(process.pid).create_time()}
    )
    assert not alive.is_dead
    process.kill()
    deadline = time.monotonic() + 10
    while not alive.is_dead:  # also before another job waits for it
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.wait()
    assert alive.is_dead
    # Another process with the same number is not the holder.
    assert alive.model_copy(update={"pid": os.getpid()}).is_dead
    # Nothing is known about processes on other machines.
    assert not alive.model_copy(update={"boot": "elsewhere"}).is_dead

    first = leases(store, "first")
    first.take([0])
    key = next(key for batch in store.list("leases") for key in batch["key"].to_pylist())
    lease = Lease.model_validate_json(store.get(key))
    store.put(key, lease.model_copy(update={"holder": alive}).model_dump_json().encode())
    assert leases(store, "second").take([0]) is None


def test_what_is_no_lease_binds_nobody(store: Store) -> None:
    store.put("leases/plan/000000-000007.json", b"not json")
    store.put("leases/plan/readme.txt", b"")
    first = leases(store, "first")
    assert first.take([0]) is None
    assert first.held == {0}


def test_a_create_whose_answer_was_lost_is_ours(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first, create = leases(store, "first"), store.create

    def lossy(key: str, data: bytes) -> bool:
        create(key, data)
        return False  # as after a retry that meets the object of the first try

    monkeypatch.setattr(store, "create", lossy)
    assert first.take([0]) is None
    assert first.held == {0}
