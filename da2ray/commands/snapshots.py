"""`da2ray snapshots`: the versions of a dataset."""

from rich.console import Console
from rich.table import Column, Table

from da2ray.commands.options import Command, CommandConfig, option
from da2ray.commands.shared import StorageClient, dataset_url_option, storage_client_option
from da2ray.console import to_seconds
from da2ray.errors import Exit
from da2ray.labels.dataset import require_dataset
from da2ray.labels.snapshots import create_snapshot, list_snapshots, open_snapshot
from da2ray.labels.tags import list_tags
from da2ray.plan.joints import foldable
from da2ray.plan.plan import plan_ids
from da2ray.storage import open_store


class SnapshotsConfig(CommandConfig):
    """List the snapshots of a dataset: numbered versions that never change."""

    url: str = dataset_url_option()
    create: bool = option(False, "first make a snapshot of what is committed now, even if the run has not finished")
    storage_client: StorageClient = storage_client_option()


def snapshots(config: SnapshotsConfig, console: Console) -> int:
    """List the snapshots, after making one if asked to."""
    store = open_store(config.url, config.storage_client)
    dataset = require_dataset(store)
    if config.create:
        create_snapshot(store, lambda: foldable(store), dataset.created_by.fingerprint)
        for plan in {*plan_ids(store)} - {*open_snapshot(store).plans}:
            console.print(f"plan {plan} is left out: it is not finished, and until then may have images of tars twice")
    names: dict[int, list[str]] = {}
    for tag in list_tags(store):
        names.setdefault(tag.snapshot, []).append(tag.name)
    heads = ("rows", "counts", "new", "changed", "gone", "parts", "tags")
    table = Table("snapshot", Column("created", overflow="fold"), *heads, box=None)
    for number in list_snapshots(store):
        found = open_snapshot(store, number)
        counts = ", ".join(f"{count:,} {name}" for name, count in sorted(found.by_status.items()))
        changes = ("" if found.changes is None else f"{found.changes[kind]:,}" for kind in ("new", "changed", "gone"))
        cells = (f"{found.rows:,}", counts, *changes, str(len(found.parts)), " ".join(names.get(number, ())))
        table.add_row(str(number), to_seconds(found.created), *cells)
    console.print(table)
    return Exit.DONE


COMMAND = Command(SnapshotsConfig, snapshots)
