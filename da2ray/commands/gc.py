"""`da2ray gc`: remove what nothing names."""

from datetime import timedelta

from rich.console import Console
from rich.table import Table

from da2ray.commands.options import Command, CommandConfig, option
from da2ray.commands.shared import StorageClient, dataset_url_option, storage_client_option
from da2ray.console import counted, progress
from da2ray.errors import Exit, UserError
from da2ray.labels.dataset import require_dataset
from da2ray.labels.upkeep.garbage import Keep, collect
from da2ray.storage import open_store

GRACE_HOURS = 24.0
"""Far longer than any attempt takes from its object to its commit, even if it waits for a store to come back."""

MOST_HOURS = 24 * 36_500.0


class GcConfig(CommandConfig):
    """Remove the objects of a dataset that no commit, snapshot or view names, and expired leases."""

    url: str = dataset_url_option()
    dry_run: bool = option(False, "say what would be removed, and remove nothing")
    grace: float = option(
        GRACE_HOURS,
        "keep what is younger than this; while a job writes to the dataset, it must be longer than a shard takes",
        metavar="HOURS",
        ge=0,
        le=MOST_HOURS,
    )
    keep: int | None = option(
        None,
        "remove all snapshots but the newest N and those that a tag or a view names, and the labels that no snapshot has any "
        "more [keep all]",
        ge=1,
    )
    older_than: float | None = option(
        None, "with --keep: only snapshots older than this", metavar="DAYS", ge=0, le=MOST_HOURS / 24
    )
    storage_client: StorageClient = storage_client_option()


def gc(config: GcConfig, console: Console) -> int:
    """Remove garbage and print how much, by folder."""
    store = open_store(config.url, config.storage_client)
    require_dataset(store)
    if config.older_than is not None and config.keep is None:
        raise UserError("--older-than: give --keep too, or drop it")
    keep = None if config.keep is None else Keep(config.keep, timedelta(days=config.older_than or 0))
    with progress("gc", "requests") as on_progress:
        collected = collect(
            store, timedelta(hours=config.grace), dry_run=config.dry_run, keep=keep, on_progress=on_progress
        )
    table = Table("folder", "would remove" if config.dry_run else "removed", "bytes", box=None)
    for folder, tally in collected.removed.items():
        table.add_row(folder, f"{tally.objects:,}", f"{tally.bytes:,}")
    console.print(table)
    if collected.young.objects:
        console.print(
            f"kept {counted(collected.young.objects, 'object')} ({counted(collected.young.bytes, 'byte')}) that no commit "
            f"names, younger than --grace {config.grace:g} hours"
        )
    for key in collected.unreadable:
        console.print(f"kept all objects of the shards of {key}, which cannot be read: run `da2ray verify {store.url}`")
    return Exit.DONE


COMMAND = Command(GcConfig, gc)
