"""One small actor a run: counts what is begun and done, remembers what died, and carries a stop request to the readers.

A run ends cleanly because each read task asks before it begins. After a stop request no shard begins any more; those in flight
are finished, and then the next reader that asks raises `Stopped`, which ends the execution. Readers never wait: a task that
waits would hold resources that Ray Data needs for the writers of what is in flight, and both would wait for ever.

What died is known from what was begun again: a shard that is read a second time is read image by image in a process of its
own; the micro-batches of a shard that a second teacher process takes up go through the device alone, each announced before
and struck off after, and one whose process dies again goes image by image. An image that is announced alone and not struck off
`STRIKES` times is given up.
"""

import time
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias, cast

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from da2ray.errors import Reason, Status
from da2ray.pipeline.control.budget import FailureBudget

Alone: TypeAlias = tuple[int, tuple[int, ...]]
"""A micro-batch by itself: shard, and its samples' rows."""

LIVING_SECONDS = 60.0
"""An actor says something every second, busy or not."""

STRIKES = 2
"""Deaths of a process that was labelling one image alone, after which the image is held to be the cause. The first may have
been a node that went away; with the two before, of its shard and its micro-batch, an image has four."""


class Stopped(RuntimeError):  # noqa: N818 - a request, not an error
    """Raised by a read task after a stop request, once nothing is in flight."""


class Begin(StrEnum):
    """What a read task is told."""

    GO = "go"
    ISOLATE = "isolate"  # an earlier attempt died: each image in a process of its own
    SKIP = "skip"  # stopping, and shards are in flight: leave this one for the next run
    STOP = "stop"  # stopping, and nothing is in flight


@dataclass(slots=True)
class Counts:
    """What a run has done so far. `busy` is device seconds, `alive` the actors' seconds since their first micro-batch; `living`
    actors were heard of lately.
    """

    shards: int = 0
    samples: int = 0
    by_status: Counter[str] = field(default_factory=Counter)
    by_reason: Counter[str] = field(default_factory=Counter)
    bytes_out: int = 0
    in_flight: int = 0
    busy: float = 0.0
    alive: float = 0.0
    actors: int = 0
    living: int = 0
    over_budget: bool = False

    @property
    def busy_share(self) -> float | None:
        """Share of wall time that the teachers were busy; None before the first micro-batch."""
        return self.busy / self.alive if self.alive > 0 else None


class Coordinator:
    """See the module. Calls are short, and served one at a time."""

    def __init__(self, budget: FailureBudget, planned: int) -> None:
        """`planned`: samples of the plan."""
        self._budget = budget
        self._planned = planned
        self._teachers: dict[int, set[str]] = {}
        self._alone: dict[Alone, tuple[int, Reason]] = {}
        self._in_flight: set[int] = set()
        self._done: set[int] = set()
        self._stopping = False
        self._counts = Counts()
        self._devices: dict[str, tuple[float, float]] = {}
        self._heard: dict[str, float] = {}

    def begin(self, shard: int) -> Begin:
        """A shard that is in flight already is a retry of a task that died, and goes on at any time."""
        if self._stopping and shard not in self._in_flight:
            return Begin.SKIP if self._in_flight else Begin.STOP
        died_before = shard in self._in_flight
        self._in_flight.add(shard)
        return Begin.ISOLATE if died_before else Begin.GO

    def teaching(self, shard: int, process: str) -> bool:
        """A teacher process takes up a shard; whether another one did before, and did not live to see it committed."""
        processes = self._teachers.setdefault(shard, set())
        processes.add(process)
        return len(processes) > 1

    def alone(self, shard: int, rows: tuple[int, ...]) -> tuple[int, Reason]:
        """A micro-batch of these rows is about to go through a device by itself.

        Returns:
            How often it was announced before and never struck off, and the class of failure that speaks for.
        """
        strikes, reason = self._alone.get((shard, rows), (0, Reason.CRASHED))
        self._alone[shard, rows] = (strikes + 1, Reason.CRASHED)
        return strikes, reason

    def survived(self, shard: int, rows: tuple[int, ...]) -> None:
        """It went through."""
        self._alone.pop((shard, rows), None)

    def late(self, shard: int, rows: tuple[int, ...]) -> None:
        """It takes too long, and its process is about to be ended."""
        strikes, _ = self._alone.get((shard, rows), (1, Reason.TIMEOUT))
        self._alone[shard, rows] = (strikes, Reason.TIMEOUT)

    def done(self, shard: int, statuses: dict[str, int], reasons: dict[str, int], bytes_out: int) -> None:
        """A shard is committed. One that was read or written twice, since Ray retried a task, counts once."""
        self._in_flight.discard(shard)
        if shard not in self._done:
            self._done.add(shard)
            self._counts.shards += 1
            self._counts.samples += sum(statuses.values())
            self._counts.by_status.update(statuses)
            self._counts.by_reason.update(reasons)
            self._counts.bytes_out += bytes_out
            self._teachers.pop(shard, None)
            for key in [key for key in self._alone if key[0] == shard]:
                del self._alone[key]
            failed = self._counts.by_status[Status.FAILED.value]
            if self._budget.exceeded(failed, self._counts.samples, self._planned):
                self._counts.over_budget = self._stopping = True

    def device(self, actor: str, busy: float, alive: float) -> None:
        """An actor's device seconds and its seconds since its first micro-batch."""
        self._devices[actor] = (busy, alive)
        self._heard[actor] = time.monotonic()

    def stop(self) -> None:
        """Let nothing more begin."""
        self._stopping = True

    def counts(self) -> Counts:
        counts = self._counts
        counts.in_flight = len(self._in_flight)
        counts.actors = len(self._devices)
        counts.busy = sum(busy for busy, _ in self._devices.values())
        counts.living = sum(time.monotonic() - heard < LIVING_SECONDS for heard in self._heard.values())
        counts.alive = sum(alive for _, alive in self._devices.values())
        return counts


def start_coordinator(budget: FailureBudget, planned: int) -> "ray.actor.ActorHandle":
    """Start it on this node: it lives and dies with the driver, not with a spot node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(Coordinator)
    return actor.options(num_cpus=0, scheduling_strategy=here).remote(budget, planned)


def counts_of(coordinator: "ray.actor.ActorHandle", timeout: float) -> Counts:
    """What is done so far; waits `timeout` seconds at most.

    Raises:
        ray.exceptions.RayError: the actor does not answer.
    """
    return cast(Counts, ray.get(coordinator.counts.remote(), timeout=timeout))


def last_counts(coordinator: "ray.actor.ActorHandle") -> Counts | None:
    """What is done in the end; None if the cluster is what failed, and then the last polled counts stand."""
    try:
        return counts_of(coordinator, timeout=10)
    except ray.exceptions.RayError:
        return None


class Meter:
    """Reports a device's share of busy time to the coordinator, every second at most."""

    def __init__(self, coordinator: "ray.actor.ActorHandle", actor: str) -> None:
        self._coordinator = coordinator
        self._actor = actor
        self._began: float | None = None
        self._told = 0.0

    def begin(self) -> None:
        """A micro-batch is about to be submitted; the first one starts the clock."""
        self._began = self._began or time.monotonic()

    def tell(self, busy: float) -> None:
        now = time.monotonic()
        if self._began is not None and now - self._told >= 1:
            self._told = now
            self._coordinator.device.remote(self._actor, busy, now - self._began)
