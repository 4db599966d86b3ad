"""`da2ray verify`: check that a dataset holds what its commits say."""

import json
from dataclasses import asdict

from rich.console import Console
from rich.table import Column, Table

from da2ray.commands.options import Command, CommandConfig, option
from da2ray.commands.shared import Share, StorageClient, dataset_url_option, sample_option, storage_client_option
from da2ray.console import counted, progress
from da2ray.errors import Exit
from da2ray.labels.dataset import require_dataset
from da2ray.labels.upkeep.verify import Report
from da2ray.labels.upkeep.verify import verify as check
from da2ray.storage import Store, open_store, printable

SHOWN = 5
"""Files that are named in the line about foreign files."""


class VerifyConfig(CommandConfig):
    """Check every live shard, the newest snapshot and the views of a dataset. Exit 1 if anything is wrong."""

    url: str = dataset_url_option()
    sample: Share = sample_option()
    as_json: bool = option(False, "print JSON, for machines", alias="json")
    storage_client: StorageClient = storage_client_option()


def verify(config: VerifyConfig, console: Console) -> int:
    """Check a dataset and print what is wrong with it."""
    store = open_store(config.url, config.storage_client)
    report = verified(store, config.sample)
    if config.as_json:
        print(json.dumps(asdict(report), indent=2))  # not by rich, which may colour it
    else:
        print_report(report, console)
        if report.findings:
            console.print(f"to repair it: da2ray repair {store.url}")
    return Exit.WRONG if report.findings else Exit.DONE


def verified(store: Store, sample: float) -> Report:
    """Check a share of the shards, with progress on stderr.

    Raises:
        UserError: there is no dataset.
    """
    dataset = require_dataset(store)
    with progress("verify", "shards") as on_progress:
        return check(store, dataset.format, sample, on_progress)


def print_report(report: Report, console: Console) -> None:
    """Print a line for each finding, and what was checked."""
    if report.findings:
        table = Table(
            "plan", "shard", Column("object", overflow="fold"), "what", Column("detail", overflow="fold"), box=None
        )
        for found in report.findings:
            shard = "" if found.shard is None else str(found.shard)
            table.add_row(found.plan or "", shard, found.object, found.what.value, found.detail)
        console.print(table)
    if report.foreign:
        shown = ", ".join(report.foreign[:SHOWN]) + (", …" if len(report.foreign) > SHOWN else "")
        console.print(
            f"{counted(len(report.foreign), 'file')} not named by da2ray, which nothing reads: {printable(shown)}"
        )
    views = f"{counted(report.views, 'view')}, " if report.views else ""
    console.print(
        f"{report.shards_checked:,} of {counted(report.shards, 'shard')} and {report.parts_checked:,} of "
        f"{counted(report.parts, 'part')} of the newest snapshot's index checked, {views}"
        f"{counted(report.bytes, 'byte')} read: "
        + (counted(len(report.findings), "finding") if report.findings else "nothing is wrong")
    )


COMMAND = Command(VerifyConfig, verify)
