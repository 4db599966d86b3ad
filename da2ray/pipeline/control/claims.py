"""Which shards a run labels next: what is left of its plan and leased to no other job."""

import threading
from types import TracebackType

import numpy as np
from rich.console import Console

from da2ray.console import Ticker
from da2ray.labels.leases import SPAN, Holder, Leases
from da2ray.plan.plan import Plan
from da2ray.storage import Store, printable

WAIT_SECONDS = 5.0


class Claims:
    """A context manager: within it the run's leases are renewed, and at its end they are given back."""

    def __init__(self, store: Store, plan: Plan, run: str, seconds: float, console: Console) -> None:
        """`seconds`: how long a lease holds without being renewed."""
        self._store = store
        self._plan = plan
        self._seconds = seconds
        self._console = console
        self._leases = Leases(store, plan.id, run, seconds)
        self._ended = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="leases", daemon=True)
        self.others: set[str] = set()
        """Runs that held shards of the plan meanwhile, as in a message."""

    def __enter__(self) -> "Claims":
        self._renewer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._renewer.join()
        try:
            self._leases.release()
        except OSError as trouble:  # it expires by itself
            self._console.print(f"lease not given back: {printable(trouble)}")

    def next(self, most: int, stopping: threading.Event) -> np.ndarray:
        """Up to `most` shards to label, int64, ascending; waits while other jobs hold all that is left.

        Returns:
            Numbers of shards; none where nothing is left, or `stopping` is set.

        Raises:
            OSError: the store failed.
        """
        self._leases.release()
        said = Ticker(self._console)
        while not stopping.is_set():
            left = self._plan.remaining(self._store)
            other = self._take(left, most)
            held = np.array(sorted(self._leases.held), dtype=np.int64)
            if held.size:
                if self._leases.shared:
                    # Listed again: who held a span before may have committed the last of it since.
                    left = self._plan.remaining(self._store)
                mine = left[np.isin(left // SPAN, held)][:most]
                if mine.size:
                    return mine
                self._leases.release()
                continue
            if other is None:
                break
            self._tell(other, len(left), said)
            stopping.wait(min(WAIT_SECONDS, self._seconds / 2))
        return np.array([], dtype=np.int64)

    def _take(self, left: np.ndarray, most: int) -> Holder | None:
        """Lease spans until they hold `most` shards; who has the others where none could be had."""
        spans, counts = np.unique(left // SPAN, return_counts=True)
        shards = dict(zip(spans.tolist(), counts.tolist(), strict=True))
        while sum(shards[span] for span in self._leases.held) < min(most, len(left)):
            before = self._leases.held
            other = self._leases.take(shards)
            if self._leases.held == before:
                return other
        return None

    def _tell(self, other: Holder, left: int, said: Ticker) -> None:
        name = f"run {other.run} on {other.host}"
        text = f"{name} labels what is left, {left:,} shards; waiting for it"
        if name in self.others:
            said.tick(text)
        else:
            self.others.add(name)
            self._console.print(text)

    def _renew(self) -> None:
        while not self._ended.wait(self._seconds / 3):
            try:
                if not self._leases.renew():
                    self._console.print(
                        "another job took over shards of this one: both may label them, nothing is lost"
                    )
            except OSError:
                continue  # labelling notices a store that stays down; until the lease expires nothing changes
