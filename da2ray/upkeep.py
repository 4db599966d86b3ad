"""`da2ray verify`, `repair` and `gc`: what they print; da2ray/labels/ has what they do."""

import argparse
import json
import math
from dataclasses import asdict
from datetime import timedelta

from rich.console import Console
from rich.table import Column, Table

from da2ray.console import progress
from da2ray.errors import Exit, UserError
from da2ray.labels.dataset import DatasetInfo, open_dataset
from da2ray.labels.upkeep.garbage import collect
from da2ray.labels.upkeep.repair import repair
from da2ray.labels.upkeep.verify import Report, verify
from da2ray.storage import Store

DEFAULT_GRACE_HOURS = 24.0
"""Far more than any attempt takes from its object to its commit, also one that waits for a store to come back."""


def share(text: str) -> float:
    """An argument such as 0.05 or 5%: above 0 and at most 1."""
    value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share above 0 and at most 1, such as 0.05 or 5%")
    return value


def hours(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text} is no number of hours")
    return value


def require_dataset(store: Store) -> DatasetInfo:
    """What the store holds.

    Raises:
        UserError: no dataset.
    """
    dataset = open_dataset(store)
    if dataset is None:
        raise UserError(f"no dataset at {store.url}: nothing there, or not written by da2ray")
    return dataset


def print_verified(store: Store, console: Console, *, sample: float, as_json: bool) -> int:
    """`da2ray verify`: 1 where anything is wrong."""
    report = _verified(store, sample)
    if as_json:
        print(json.dumps(asdict(report), indent=2))  # not by rich, which may colour it
    else:
        _print_report(report, console)
        if report.findings:
            console.print(f"to mend it: da2ray repair {store.url}")
    return Exit.WRONG if report.findings else Exit.DONE


def print_repaired(store: Store, console: Console, *, sample: float, dry_run: bool) -> int:
    """`da2ray repair`: 1 where something is left that it cannot mend."""
    report = _verified(store, sample)
    _print_report(report, console)
    if not report.findings:
        return Exit.DONE
    repaired = repair(store, report, dry_run=dry_run)
    would = "would remove" if dry_run else "removed"
    if repaired.shards:
        console.print(f"{would} {len(repaired.shards):,} commits: their shards are labelled again by the next run")
    if repaired.rewritten:
        console.print(f"wrote {len(repaired.rewritten):,} parts of the index again")
    if repaired.lost and not dry_run:
        console.print(
            f"{len(repaired.lost):,} parts of the index are lost; the next snapshot gets others in their place"
        )
    if repaired.lost and dry_run:
        console.print(f"would write {len(repaired.lost):,} parts of the index again")
    if repaired.snapshots:
        numbers = ", ".join(str(number) for number in repaired.snapshots)
        console.print(f"snapshots name broken objects and never change, so these rows of theirs stay broken: {numbers}")
    if repaired.unreadable:
        console.print(
            f"{store.url}/{repaired.unreadable} is broken and cannot be mended: delete it, and the next snapshot takes its number"
        )
    if repaired.views:
        console.print(
            f"views are made by jobs/curate.py: make these again with --replace or delete their JSON: {', '.join(repaired.views)}"
        )
    if repaired.shards:
        console.print("next: run the same job again; it labels what is missing and makes a snapshot")
    elif repaired.lost or repaired.snapshots:
        console.print(f"next: run the same job again, or `da2ray snapshots {store.url} --create`: both make a snapshot")
    return Exit.WRONG if repaired.unreadable or repaired.views else Exit.DONE


def print_collected(store: Store, console: Console, *, grace_hours: float, dry_run: bool) -> int:
    """`da2ray gc`."""
    require_dataset(store)
    with progress("gc", "requests") as on_progress:
        collected = collect(store, timedelta(hours=grace_hours), dry_run=dry_run, on_progress=on_progress)
    table = Table("folder", "would remove" if dry_run else "removed", "bytes", box=None)
    for folder, tally in collected.removed.items():
        table.add_row(folder, f"{tally.objects:,}", f"{tally.bytes:,}")
    console.print(table)
    if collected.young.objects:
        console.print(
            f"kept {collected.young.objects:,} objects ({collected.young.bytes:,} bytes) that no commit names, "
            f"since they are younger than --grace {grace_hours:g} hours"
        )
    for key in collected.unreadable:
        console.print(f"{key} cannot be read, so all objects of its shards were kept: run `da2ray verify {store.url}`")
    return Exit.DONE


def _verified(store: Store, sample: float) -> Report:
    dataset = require_dataset(store)
    with progress("verify", "shards") as on_progress:
        return verify(store, dataset.format, sample, on_progress)


def _print_report(report: Report, console: Console) -> None:
    if report.findings:
        table = Table(
            "plan", "shard", Column("object", overflow="fold"), "what", Column("detail", overflow="fold"), box=None
        )
        for found in report.findings:
            shard = "" if found.shard is None else str(found.shard)
            table.add_row(found.plan or "", shard, found.object, found.what.value, found.detail)
        console.print(table)
    views = f"{report.views:,} views, " if report.views else ""
    console.print(
        f"{report.shards_checked:,} of {report.shards:,} shards and {report.parts_checked:,} of {report.parts:,} parts "
        f"of the newest snapshot's index checked, {views}{report.bytes:,} bytes read: "
        + (f"{len(report.findings):,} findings" if report.findings else "nothing is wrong")
    )
