"""`da2ray diff`: what differs between two snapshots."""

from rich.console import Console
from rich.table import Table

from da2ray.commands.options import Command, CommandConfig, option
from da2ray.commands.shared import StorageClient, dataset_url_option, storage_client_option
from da2ray.console import counted
from da2ray.errors import Exit
from da2ray.labels.dataset import require_dataset
from da2ray.labels.difference import KINDS, SHOWN, difference
from da2ray.labels.snapshots import open_snapshot
from da2ray.storage import open_store, printable


class DiffConfig(CommandConfig):
    """Count the images by which a snapshot differs from another, and show the first keys of each kind."""

    url: str = dataset_url_option()
    old: int = option(..., "number of the snapshot to begin with", metavar="A", positional=True, ge=1)
    new: int = option(..., "number of the snapshot to compare with it", metavar="B", positional=True, ge=1)
    storage_client: StorageClient = storage_client_option()


def diff(config: DiffConfig, console: Console) -> int:
    """Print how many images differ and how."""
    store = open_store(config.url, config.storage_client)
    require_dataset(store)
    old, new = (open_snapshot(store, number) for number in (config.old, config.new))
    found = difference(store, old, new)
    console.print(
        f"snapshot {old.number}: {counted(old.rows, 'row')}; snapshot {new.number}: {counted(new.rows, 'row')}"
    )
    table = Table("", "images", f"first {SHOWN} keys", box=None)
    for kind in KINDS:
        keys = " ".join(printable(key, 80) for key in found.keys[kind])
        table.add_row(kind, f"{found.counts[kind]:,}", keys)
    console.print(table)
    return Exit.DONE


COMMAND = Command(DiffConfig, diff)
