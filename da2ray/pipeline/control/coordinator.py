"""The coordinator: one small actor in a run. It counts what is begun and done, notices crashes, and passes a stop request on to
the readers.

A run ends cleanly because each read task asks the coordinator before it begins. After a stop request no further shard begins. The
shards in flight are finished, and then the next reader that asks raises `Stopped`, which ends the execution. Readers never wait:
a waiting task would hold resources that Ray Data needs to write the shards in flight, and both would wait for ever.

Crashes are inferred from restarts. If a shard is read a second time, its images are decoded one by one in a separate process. If
a second teacher process takes up a shard, the shard's micro-batches go through the device alone. The teacher announces each
before, and strikes it off after. If a process dies again during one, it goes image by image. An image fails if it was announced
alone `STRIKES` times and never struck off.
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
"""A micro-batch that goes through a device alone: the shard, and its samples' rows in the shard."""

LIVING_SECONDS = 60.0
"""An actor is held to live this long after its last report. It reports every second, busy or not."""

STRIKES = 2
"""Processes that must die while they label one image alone, before the image is held to be the cause. The first may have died
because its node went away. Two processes died before, with the image's shard and with its micro-batch, so an image gets four."""


class Stopped(RuntimeError):  # noqa: N818 - a request, not an error
    """Raised by a read task after a stop request, once nothing is in flight."""


class Begin(StrEnum):
    """The answer to a read task that asks whether to begin."""

    GO = "go"
    ISOLATE = "isolate"  # an earlier attempt died: decode each image in a separate process
    SKIP = "skip"  # stopping, and shards are in flight: leave this shard to the next run
    STOP = "stop"  # stopping, and nothing is in flight


@dataclass(slots=True)
class Counts:
    """What a run has done so far.

    Attributes:
        busy: seconds in which the teachers' devices worked, summed over actors.
        alive: seconds since each actor's first micro-batch, summed over actors.
        living: actors that reported within the last `LIVING_SECONDS`.
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
        """The share of wall time in which the teachers worked; None before the first micro-batch."""
        return self.busy / self.alive if self.alive > 0 else None


class Coordinator:
    """The actor's class; see the module. Calls are short, and are served one at a time."""

    def __init__(self, budget: FailureBudget, planned: int) -> None:
        """`planned`: number of samples in the plan."""
        self._budget = budget
        self._planned = planned
        self._teachers: dict[int, set[str]] = {}
        self._alone: dict[Alone, tuple[int, Reason]] = {}
        self._in_flight: set[int] = set()
        self._done: set[int] = set()
        self._stopping = False
        self._readable: set[str] = set()
        self._counts = Counts()
        self._devices: dict[str, tuple[float, float]] = {}
        self._heard: dict[str, float] = {}

    def begin(self, shard: int) -> Begin:
        """Tell a read task whether to begin its shard. If the shard is in flight, an earlier task died; this one may begin."""
        if self._stopping and shard not in self._in_flight:
            return Begin.SKIP if self._in_flight else Begin.STOP
        died_before = shard in self._in_flight
        self._in_flight.add(shard)
        return Begin.ISOLATE if died_before else Begin.GO

    def readable(self, scheme: str) -> None:
        """Note that a process read an image from a store of this scheme."""
        self._readable.add(scheme)

    def was_readable(self, scheme: str) -> bool:
        """Whether any process of this run read an image from a store of this scheme."""
        return scheme in self._readable

    def teaching(self, shard: int, process: str) -> bool:
        """Note that a teacher process takes up a shard. True if another process did before, and died before the commit."""
        processes = self._teachers.setdefault(shard, set())
        processes.add(process)
        return len(processes) > 1

    def alone(self, shard: int, rows: tuple[int, ...]) -> tuple[int, Reason]:
        """Announce that the micro-batch of these rows is about to go through a device alone.

        Returns:
            How often it was announced before without being struck off, at most `STRIKES` times, and the class of failure that
            this means. From `STRIKES` on both stay: a later process asks again if it takes up the same shard, because another
            image of the shard ended the process before.
        """
        strikes, reason = self._alone.get((shard, rows), (0, Reason.CRASHED))
        if strikes < STRIKES:
            self._alone[shard, rows] = (strikes + 1, Reason.CRASHED)
        return strikes, reason

    def survived(self, shard: int, rows: tuple[int, ...]) -> None:
        """Strike off a micro-batch that went through."""
        self._alone.pop((shard, rows), None)

    def late(self, shard: int, rows: tuple[int, ...]) -> None:
        """Note that a micro-batch takes too long, and that its process is about to end itself."""
        strikes, _ = self._alone.get((shard, rows), (1, Reason.TIMEOUT))
        self._alone[shard, rows] = (strikes, Reason.TIMEOUT)

    def done(self, shard: int, statuses: dict[str, int], reasons: dict[str, int], bytes_out: int) -> None:
        """Count a committed shard. A shard that was written twice, because Ray retried a task, counts once."""
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
        """Note the seconds in which an actor's device worked, and the seconds since its first micro-batch."""
        self._devices[actor] = (busy, alive)
        self._heard[actor] = time.monotonic()

    def stop(self) -> None:
        """Let no further shard begin."""
        self._stopping = True

    def counts(self) -> Counts:
        """The counts now."""
        counts = self._counts
        counts.in_flight = len(self._in_flight)
        counts.actors = len(self._devices)
        counts.busy = sum(busy for busy, _ in self._devices.values())
        counts.living = sum(time.monotonic() - heard < LIVING_SECONDS for heard in self._heard.values())
        counts.alive = sum(alive for _, alive in self._devices.values())
        return counts


def start_coordinator(budget: FailureBudget, planned: int) -> "ray.actor.ActorHandle":
    """Start the coordinator on this node, so that it lives as long as the driver, and not as long as a spot node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(Coordinator)
    return actor.options(num_cpus=0, scheduling_strategy=here).remote(budget, planned)


def counts_of(coordinator: "ray.actor.ActorHandle", timeout: float) -> Counts:
    """The coordinator's counts. Waits for at most `timeout` seconds.

    Raises:
        ray.exceptions.RayError: the coordinator does not answer.
    """
    return cast(Counts, ray.get(coordinator.counts.remote(), timeout=timeout))


def last_counts(coordinator: "ray.actor.ActorHandle") -> Counts | None:
    """The final counts; None if the cluster failed, and then the last polled counts stand."""
    try:
        return counts_of(coordinator, timeout=10)
    except ray.exceptions.RayError:
        return None


class Meter:
    """Reports an actor's busy time to the coordinator, at most once a second."""

    def __init__(self, coordinator: "ray.actor.ActorHandle", actor: str) -> None:
        self._coordinator = coordinator
        self._actor = actor
        self._began: float | None = None
        self._told = 0.0

    def begin(self) -> None:
        """Note that a micro-batch is about to be submitted. The first one starts the clock."""
        self._began = self._began or time.monotonic()

    def tell(self, busy: float) -> None:
        """Report the seconds in which the device worked so far, unless the last report is less than a second old."""
        now = time.monotonic()
        if self._began is not None and now - self._told >= 1:
            self._told = now
            self._coordinator.device.remote(self._actor, busy, now - self._began)
