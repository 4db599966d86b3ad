"""`da2ray repair`: let the next run label broken shards again."""

from rich.console import Console

from da2ray.commands.options import Command, CommandConfig, option
from da2ray.commands.shared import Share, StorageClient, dataset_url_option, sample_option, storage_client_option
from da2ray.commands.verify import print_report, verified
from da2ray.console import counted
from da2ray.errors import Exit
from da2ray.labels.upkeep.repair import Repaired
from da2ray.labels.upkeep.repair import repair as mend
from da2ray.storage import Store, open_store


class RepairConfig(CommandConfig):
    """Verify a dataset and remove the commits of its broken shards, so that the next run labels those again.

    Exit 1 if something is left that it cannot repair.
    """

    url: str = dataset_url_option()
    dry_run: bool = option(False, "say what would be removed, and change nothing")
    sample: Share = sample_option()
    storage_client: StorageClient = storage_client_option()


def repair(config: RepairConfig, console: Console) -> int:
    """Repair a dataset and print what was done and what to do next."""
    store = open_store(config.url, config.storage_client)
    report = verified(store, config.sample)
    print_report(report, console)
    if not report.findings:
        return Exit.DONE
    repaired = mend(store, report, dry_run=config.dry_run)
    _print(store, repaired, console, dry_run=config.dry_run)
    return Exit.WRONG if repaired.unreadable or repaired.views else Exit.DONE


def _print(store: Store, repaired: Repaired, console: Console, *, dry_run: bool) -> None:
    would = "would remove" if dry_run else "removed"
    if repaired.shards:
        console.print(f"{would} {counted(len(repaired.shards), 'commit')}: the next run labels what they name again")
    if repaired.rewritten:
        console.print(f"wrote {counted(len(repaired.rewritten), 'part')} of the index again")
    if repaired.lost and not dry_run:
        console.print(
            f"lost: {counted(len(repaired.lost), 'part')} of the index; the next snapshot writes the index anew"
        )
    if repaired.lost and dry_run:
        console.print(f"would write {counted(len(repaired.lost), 'part')} of the index again")
    if repaired.snapshots:
        numbers = ", ".join(str(number) for number in repaired.snapshots)
        console.print(f"snapshots never change, so rows of broken objects stay broken in these: {numbers}")
    if repaired.removed:
        console.print(f"{would} {counted(len(repaired.removed), 'file')} on which no label depends")
    for key, detail in repaired.unreadable.items():
        console.print(f"{key} cannot be repaired: {detail}")
    if repaired.views:
        console.print(
            "these views are broken, make each again with jobs/curate.py --replace or delete its JSON: "
            + ", ".join(repaired.views)
        )
    if repaired.shards:
        console.print("next: run the same job again; it labels what is missing and makes a snapshot")
    elif repaired.lost or repaired.snapshots:
        console.print(f"next: run the same job again, or `da2ray snapshots {store.url} --create`: both make a snapshot")


COMMAND = Command(RepairConfig, repair)
