"""The shards that a run labels next: those of its plan that have no commit and that no other job has leased."""

import threading
from types import TracebackType

import numpy as np
from rich.console import Console

from da2ray.console import Ticker, counted
from da2ray.labels.leases import SPAN, Holder, Leases
from da2ray.plan.plan import Plan
from da2ray.storage import Store, printable

WAIT_SECONDS = 5.0


class Claims:
    """The leases of a run. A context manager: it renews them, and gives them back at its end."""

    def __init__(self, store: Store, plan: Plan, run: str, seconds: float, console: Console) -> None:
        """`seconds`: time after which a lease expires unless it is renewed."""
        self._store = store
        self._plan = plan
        self._seconds = seconds
        self._console = console
        self._leases = Leases(store, plan.id, run, seconds)
        self._ended = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="leases", daemon=True)
        self.others: set[str] = set()
        """Other runs that held shards of the plan meanwhile, in the words of the message about them."""

    def __enter__(self) -> "Claims":
        self._renewer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._renewer.join()
        try:
            self._leases.release()
        except OSError as trouble:  # the lease expires by itself
            self._console.print(f"lease not given back: {printable(trouble)}")

    def next(self, most: int, stopping: threading.Event) -> np.ndarray:
        """Claim up to `most` shards to label; wait while other jobs hold all shards that are left.

        Returns:
            The shards' numbers, int64, ascending; empty if no shard is left or `stopping` is set.

        Raises:
            OSError: the store failed.
        """
        self._leases.release()
        ticker = Ticker(self._console)
        while not stopping.is_set():
            left = self._plan.remaining(self._store, gone=False)
            other = self._take(left, most)
            held = np.array(sorted(self._leases.held), dtype=np.int64)
            if held.size:
                if self._leases.shared:
                    # List again: the span's earlier holder may have committed its last shards since.
                    left = self._plan.remaining(self._store, gone=False)
                mine = left[np.isin(left // SPAN, held)][:most]
                if mine.size:
                    return mine
                self._leases.release()
                continue
            if other is None:
                break
            self._report(other, len(left), ticker)
            stopping.wait(min(WAIT_SECONDS, self._seconds / 2))
        return np.array([], dtype=np.int64)

    def _take(self, left: np.ndarray, most: int) -> Holder | None:
        """Lease spans until they hold `most` shards. Returns the holder of the other spans if no span was free, else None."""
        spans, counts = np.unique(left // SPAN, return_counts=True)
        shards = dict(zip(spans.tolist(), counts.tolist(), strict=True))
        while sum(shards[span] for span in self._leases.held) < min(most, len(left)):
            before = self._leases.held
            other = self._leases.take(shards)
            if self._leases.held == before:
                return other
        return None

    def _report(self, other: Holder, left: int, ticker: Ticker) -> None:
        name = f"run {other.run} on {other.host}"
        text = f"{name} labels {counted(left, 'remaining shard')}; waiting for it"
        if name in self.others:
            ticker.tick(text)
        else:
            self.others.add(name)
            self._console.print(text)

    def _renew(self) -> None:
        while not self._ended.wait(self._seconds / 3):
            try:
                if not self._leases.renew():
                    self._console.print(
                        "another job took over shards of this one; both may label them, and nothing is lost"
                    )
            except OSError:
                continue  # nothing changes until the lease expires, and labelling notices a store that stays down
