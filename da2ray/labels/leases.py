"""Leases: which job labels which shards now, so that two jobs on one output do not do the same work.

Leases are advice: a commit is created conditionally whoever holds a lease (invariant 2), so a wrong lease costs work but never a
label. A lease covers a span of `SPAN` shards. It is a chain of objects `leases/<plan>/<span>-<epoch>.json`. The job that creates
the next epoch holds the span until the time in that object, and extends the time by rewriting it. After a holder has died, any
job may create the next epoch once that time is over; a job on the same machine may do so at once, because it can see that
the holder is dead.
"""

import os
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

import psutil
from pydantic import AwareDatetime, Field

from da2ray.errors import CorruptError
from da2ray.labels.stored import Stored, broken, read_json
from da2ray.storage import Store

_KEY: Final = re.compile(r"leases/[^/]+/[^/]+\.json")

SPAN: Final = 1024
"""Shards of a lease: few objects for the longest plan, and work for several jobs in all but short plans."""


class Holder(Stored):
    """The job that holds a lease.

    Attributes:
        run: its name, as in `runs/<run>/`.
        host, boot, pid, started: the driver's process; `boot` tells one machine from another of the same name.
    """

    run: str
    host: str
    boot: str
    pid: int = Field(ge=0, lt=1 << 31)
    started: float

    @classmethod
    def this_process(cls, run: str) -> "Holder":
        return cls(
            run=run, host=socket.gethostname(), boot=_boot(), pid=os.getpid(), started=psutil.Process().create_time()
        )

    @property
    def is_dead(self) -> bool:
        """True if the holder ran on this machine and does not run any more; False also if nobody can tell."""
        if self.boot != _boot():
            return False
        try:
            process = psutil.Process(self.pid)
            # A killed process stays in the table until its parent asks for it, in containers often for ever.
            return process.create_time() != self.started or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True


class Lease(Stored):
    """What a lease object holds: `expires` is UTC, and `released` says that the holder is done with the span."""

    holder: Holder
    expires: AwareDatetime
    released: bool = False

    @property
    def is_over(self) -> bool:
        return self.released or self.expires < datetime.now(UTC) or self.holder.is_dead


@dataclass(frozen=True, slots=True)
class _Link:
    span: int
    epoch: int


class Leases:
    """The leases of one run on the spans of a plan. `renew` may run in another thread than the other methods."""

    def __init__(self, store: Store, plan: str, run: str, seconds: float) -> None:
        """`seconds`: how long a lease holds after it was taken or renewed."""
        self._store = store
        self._plan = plan
        self._seconds = seconds
        self._holder = Holder.this_process(run)
        self._held: dict[int, int] = {}
        self.shared = False
        """Whether another run holds, or held, one of the spans that `take` looked at."""

    @property
    def held(self) -> set[int]:
        """The spans that this run holds."""
        return set(self._held)

    def take(self, spans: Iterable[int]) -> Holder | None:
        """Take the first of these spans that is free.

        Returns:
            None if this run now holds one of them (`held` says which), or all of them already; else who holds the last one.

        Raises:
            OSError: the store failed.
        """
        newest = self._newest()
        other: Holder | None = None
        for span in spans:
            if span in self._held:
                continue
            epoch = newest.get(span, 0)
            if epoch:
                lease = self._read(_Link(span, epoch))
                self.shared |= lease is None or lease.holder != self._holder
                if lease and not lease.is_over:
                    other = lease.holder
                    continue
            link = _Link(span, epoch + 1)
            if self._store.create(self._key(link), self._mine()) or self._is_mine(link):
                self._held[span] = link.epoch
                return None
            self.shared = True
            other = lease.holder if (lease := self._read(link)) else other
        return other

    def renew(self) -> bool:
        """Extend all held leases; return False if another job has taken one over because it believed this one dead.

        Raises:
            OSError: the store failed; the leases stand until they expire.
        """
        held = dict(self._held)
        newest = self._newest() if held else {}
        for span, epoch in held.items():
            if newest.get(span, epoch) > epoch:
                self._held.pop(span, None)
                return False
            if span in self._held:
                self._store.put(self._key(_Link(span, epoch)), self._mine())
        return True

    def release(self) -> None:
        """Give the spans back, so that other jobs may take them."""
        for span, epoch in list(self._held.items()):
            del self._held[span]
            self._store.put(self._key(_Link(span, epoch)), self._mine(released=True))

    def _mine(self, *, released: bool = False) -> bytes:
        expires = datetime.now(UTC) + timedelta(seconds=self._seconds)
        return Lease(holder=self._holder, expires=expires, released=released).model_dump_json().encode()

    def _is_mine(self, link: _Link) -> bool:
        """Whether our create succeeded although its answer was lost."""
        lease = self._read(link)
        return lease is not None and lease.holder == self._holder

    def _read(self, link: _Link) -> Lease | None:
        """The lease; None if it is missing or not a lease, since such an object binds nobody."""
        try:
            return read_lease(self._store, self._key(link))
        except (FileNotFoundError, CorruptError):
            return None

    def _newest(self) -> dict[int, int]:
        """The highest epoch of each span."""
        found: dict[int, int] = {}
        for batch in self._store.list(f"leases/{self._plan}"):
            for key in batch["key"].to_pylist():
                span, dash, epoch = key.rpartition("/")[2].removesuffix(".json").partition("-")
                if dash and span.isdecimal() and epoch.isdecimal():
                    found[int(span)] = max(found.get(int(span), 0), int(epoch))
        return found

    def _key(self, link: _Link) -> str:
        return f"leases/{self._plan}/{link.span:06d}-{link.epoch:06d}.json"


def list_leases(store: Store) -> dict[str, int]:
    """The leases of all plans: key -> size in bytes. Other files in the folder are not ours."""
    return {
        key: size
        for batch in store.list("leases")
        for key, size in zip(batch["key"].to_pylist(), batch["size"].to_pylist(), strict=True)
        if _KEY.fullmatch(key)
    }


def broken_leases(store: Store) -> dict[str, str]:
    """The leases that cannot be read: key -> what is wrong.

    Raises:
        OSError: the store failed.
    """
    return broken(list_leases(store), partial(read_lease, store), "leases")


def read_lease(store: Store, key: str) -> Lease:
    """A lease.

    Raises:
        FileNotFoundError: it was removed.
        CorruptError: the object is not a lease.
        OSError: the store failed.
    """
    return read_json(store, key, Lease, "a lease", "delete it, it binds nobody (`da2ray repair` does so too)")


def _boot() -> str:
    """A name for this start of this machine and this namespace of process ids, which containers do not share."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux: two machines do not share both their name and the time of their start
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"
