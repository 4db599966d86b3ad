"""One small actor a run: admits shards, counts what is done, and carries a stop request to the readers.

Ray Data alone lets reading race ahead of a slow teacher until the object store spills (ray#64352). Here a read task asks before
it begins, and waits while the shards in flight would fill the store. The same gate ends a run cleanly: after a stop request no
shard begins, those in flight are finished, and then the readers that wait raise `Stopped`, which ends the execution.
"""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class Stopped(RuntimeError):  # noqa: N818 - a request, not an error
    """Raised by a read task after a stop request, once nothing is in flight."""


@dataclass(slots=True)
class Counts:
    """What a run has done so far. `busy` is device seconds, `alive` the actors' seconds since their first micro-batch."""

    shards: int = 0
    samples: int = 0
    by_status: Counter[str] = field(default_factory=Counter)
    by_reason: Counter[str] = field(default_factory=Counter)
    bytes_out: int = 0
    in_flight: int = 0
    busy: float = 0.0
    alive: float = 0.0
    actors: int = 0

    @property
    def busy_share(self) -> float | None:
        """Share of wall time that the teachers were busy; None before the first micro-batch."""
        return self.busy / self.alive if self.alive > 0 else None


@ray.remote(num_cpus=0)
class Coordinator:
    """See the module. `budget` bounds the bytes in flight, by what shards have needed so far."""

    def __init__(self, budget: int, first: int) -> None:
        self._budget = budget
        self._first = first  # shards admitted before the first one tells its size
        self._largest = 0
        self._in_flight: set[int] = set()
        self._stopping = False
        self._changed = asyncio.Condition()
        self._counts = Counts()
        self._devices: dict[str, tuple[float, float]] = {}

    async def begin(self, shard: int) -> bool:
        """Wait for room, then admit a shard. False: the run is stopping and nothing is in flight any more.

        A shard that is already in flight is a retry of a task that died, and goes on at once.
        """
        async with self._changed:
            if shard not in self._in_flight:
                await self._changed.wait_for(lambda: (not self._in_flight) if self._stopping else self._has_room())
                if self._stopping:
                    return False
                self._in_flight.add(shard)
            return True

    def _has_room(self) -> bool:
        if not self._largest:
            return len(self._in_flight) < self._first
        return not self._in_flight or (len(self._in_flight) + 1) * self._largest <= self._budget

    async def read(self, size: int) -> None:
        """A shard's block has this many bytes."""
        async with self._changed:
            self._largest = max(self._largest, size)
            self._changed.notify_all()

    async def done(self, shard: int, statuses: dict[str, int], reasons: dict[str, int], bytes_out: int) -> None:
        """A shard is committed."""
        async with self._changed:
            if shard in self._in_flight:  # a write that Ray ran twice counts once
                self._in_flight.remove(shard)
                self._counts.shards += 1
                self._counts.samples += sum(statuses.values())
                self._counts.by_status.update(statuses)
                self._counts.by_reason.update(reasons)
                self._counts.bytes_out += bytes_out
            self._changed.notify_all()

    async def device(self, actor: str, busy: float, alive: float) -> None:
        """An actor's device seconds and its seconds since its first micro-batch."""
        self._devices[actor] = (busy, alive)

    async def stop(self) -> None:
        """Admit nothing more."""
        async with self._changed:
            self._stopping = True
            self._changed.notify_all()

    async def counts(self) -> Counts:
        counts = self._counts
        counts.in_flight = len(self._in_flight)
        counts.actors = len(self._devices)
        counts.busy, counts.alive = (
            (sum(values) for values in zip(*self._devices.values(), strict=True)) if self._devices else (0, 0)
        )
        return counts


def start_coordinator(budget: int, first: int) -> "ray.actor.ActorHandle":
    """Start it on this node: it lives and dies with the driver, not with a spot node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Coordinator.options(scheduling_strategy=here).remote(budget, first)


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
