"""`da2ray status`: what is done, what failed, and how fast the newest run is."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from da2ray.commands.options import Command, CommandConfig, option
from da2ray.commands.shared import StorageClient, dataset_url_option, storage_client_option
from da2ray.console import counted, duration, number, to_seconds
from da2ray.errors import Exit
from da2ray.labels.dataset import DatasetInfo, require_dataset
from da2ray.labels.runs import RunProgress, newest_progress
from da2ray.labels.snapshots import Snapshot, list_snapshots, open_snapshot
from da2ray.plan.plan import list_plans
from da2ray.sources.base import passed_over_text
from da2ray.storage import Store, open_store


class StatusConfig(CommandConfig):
    """Show what a dataset holds: its plans, the newest run, and the newest snapshot with its failures by class."""

    url: str = dataset_url_option()
    as_json: bool = option(False, "print JSON, for machines", alias="json")
    storage_client: StorageClient = storage_client_option()


@dataclass(frozen=True, slots=True)
class PlanStatus:
    """A plan, and how many of its shards are committed. `exact`: `samples` is a count, not an estimate."""

    id: str
    source: str
    samples: int
    exact: bool
    shards: int
    committed: int
    passed_over: dict[str, int]


@dataclass(frozen=True, slots=True)
class DatasetStatus:
    """What a dataset holds now; `run` and `snapshot` are the newest ones, None if there is not one yet."""

    dataset: DatasetInfo
    plans: list[PlanStatus]
    run: RunProgress | None
    snapshot: Snapshot | None

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints. It leaves out the run's history and the names of the snapshot's parts."""
        return {
            "dataset": self.dataset.model_dump(mode="json"),
            "plans": [asdict(plan) for plan in self.plans],
            "run": self.run and self.run.model_dump(mode="json", exclude={"history"}),
            "snapshot": self.snapshot and self.snapshot.model_dump(exclude={"parts"}),
        }


def status(config: StatusConfig, console: Console) -> int:
    """Print the status of a dataset."""
    store = open_store(config.url, config.storage_client)
    found = describe(store)
    if config.as_json:
        print(json.dumps(found.as_json(), indent=2))  # not by rich, which may colour it
    else:
        _print(store, found, console)
    return Exit.DONE


def describe(store: Store) -> DatasetStatus:
    """Read the status of the store's dataset.

    Raises:
        UserError: there is no dataset.
    """
    dataset = require_dataset(store)
    plans = [
        PlanStatus(
            plan.id,
            plan.info.source["url"],
            plan.info.samples,
            plan.info.exact,
            plan.info.shards,
            plan.info.shards - len(plan.remaining(store)),
            plan.info.passed_over,
        )
        for plan in list_plans(store)
    ]
    numbers = list_snapshots(store)
    return DatasetStatus(dataset, plans, newest_progress(store), open_snapshot(store, numbers[-1]) if numbers else None)


def _print(store: Store, found: DatasetStatus, console: Console) -> None:
    dataset, made = found.dataset, found.dataset.created_by
    kind = dataset.kind + (f" ({dataset.unit})" if dataset.unit else "")
    console.print(
        f"{store.url}: {kind} by {made.teacher} {made.precision}, fingerprint {made.fingerprint}; {dataset.format} shards"
    )
    table = Table("plan", "source", "samples", "shards", "committed", "left", box=None)
    for plan in found.plans:
        counts = (plan.shards, plan.committed, plan.shards - plan.committed)
        samples = number(plan.samples, exact=plan.exact)
        table.add_row(plan.id, plan.source, samples, *(f"{count:,}" for count in counts))
    console.print(table)
    for plan in found.plans:
        if passed := passed_over_text(plan.passed_over):
            console.print(f"plan {plan.id} passed over: {passed}")
    if run := found.run:
        pace = f"{run.images_per_second}/s"
        if run.eta_seconds and run.state == "running":
            pace += f", ETA {duration(run.eta_seconds)}"
        console.print(
            f"run {run.run}: {run.state}, {run.samples.done:,} of "
            f"{counted(run.samples.total, 'image', exact=run.samples.exact)}, "
            f"{pace}, updated {run.updated.isoformat(timespec='seconds')}"
        )
    if snapshot := found.snapshot:
        console.print(f"snapshot {snapshot.number} of {to_seconds(snapshot.created)}: {counted(snapshot.rows, 'row')}")
        for indent, counted_by in (("", snapshot.by_status), ("  ", snapshot.by_reason)):
            for name, count in sorted(counted_by.items()):
                console.print(f"  {indent}{name}: {count:,}")
    else:
        console.print("no snapshot yet: the run that finishes makes one")


COMMAND = Command(StatusConfig, status)
