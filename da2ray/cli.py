"""`da2ray`: look at a dataset from a terminal, and look after it."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from da2ray.console import duration, run_command
from da2ray.labels.runs import newest_progress
from da2ray.labels.snapshots import create_snapshot, list_snapshots, open_snapshot
from da2ray.plan.plan import list_plans
from da2ray.report.options import add_report_options, run_report
from da2ray.storage import Store, open_store
from da2ray.upkeep import (
    DEFAULT_GRACE_HOURS,
    hours,
    print_collected,
    print_repaired,
    print_verified,
    require_dataset,
    share,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    return run_command(lambda console: _dispatch(sys.argv[1:] if argv is None else argv, console))


def _dispatch(argv: Sequence[str], console: Console) -> int:
    parser = argparse.ArgumentParser(prog="da2ray", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    status_parser = commands.add_parser("status", help="what is done, what failed, how fast the last run is")
    status_parser.add_argument("--json", action="store_true", help="for machines")
    snapshots_parser = commands.add_parser("snapshots", help="versions of the dataset")
    snapshots_parser.add_argument(
        "--create", action="store_true", help="make one of what is committed now, finished or not"
    )
    verify_parser = commands.add_parser(
        "verify", help="check every live shard, the newest snapshot and the views; exit 1 if anything is wrong"
    )
    verify_parser.add_argument("--json", action="store_true", help="for machines")
    repair_parser = commands.add_parser(
        "repair", help="verify, and remove the commits of broken shards: the next run labels those again"
    )
    for command in (verify_parser, repair_parser):
        command.add_argument(
            "--sample",
            type=share,
            default=1.0,
            metavar="P",
            help="a share of the shards, such as 0.05 or 5%%; always the same ones",
        )
    gc_parser = commands.add_parser("gc", help="remove what no commit, snapshot or view names, and expired leases")
    gc_parser.add_argument(
        "--grace",
        type=hours,
        default=DEFAULT_GRACE_HOURS,
        metavar="HOURS",
        help="leave what is younger (default %(default)g); less than a shard takes only while nothing writes to the dataset",
    )
    report_parser = commands.add_parser(
        "report", help="one HTML page that needs nothing else: counts, scores, a gallery, throughput, provenance"
    )
    add_report_options(report_parser)
    for command in (repair_parser, gc_parser):
        command.add_argument("--dry-run", action="store_true", help="say what would be removed, and remove nothing")
    for command in commands.choices.values():
        command.add_argument("url", metavar="URL", help="URL or path of a dataset")
        command.add_argument("--storage-client", choices=["auto", "obstore", "fsspec"], default="auto")
    options = parser.parse_args(argv)
    if options.command == "report":
        return run_report(options, console)
    store = open_store(options.url, options.storage_client)
    if options.command == "status":
        return status(store, console, as_json=options.json)
    if options.command == "verify":
        return print_verified(store, console, sample=options.sample, as_json=options.json)
    if options.command == "repair":
        return print_repaired(store, console, sample=options.sample, dry_run=options.dry_run)
    if options.command == "gc":
        return print_collected(store, console, grace_hours=options.grace, dry_run=options.dry_run)
    return snapshots(store, console, create=options.create)


def status(store: Store, console: Console, *, as_json: bool) -> int:
    """Dataset, plans with what is committed, the newest run's progress and the newest snapshot."""
    found = describe(store)
    if as_json:
        print(json.dumps(found, indent=2))  # not by rich, which may colour it
        return 0
    made, run, snapshot = found["dataset"]["created_by"], found["run"], found["snapshot"]
    dataset = found["dataset"]
    kind = dataset["kind"] + (f" ({dataset['unit']})" if dataset["unit"] else "")
    made_by = f"{made['teacher']} {made['precision']}, fingerprint {made['fingerprint']}"
    console.print(f"{store.url}: {kind} by {made_by}; {dataset['format']} shards")
    table = Table("plan", "source", "samples", "shards", "committed", "left", box=None)
    for plan in found["plans"]:
        left = plan["shards"] - plan["committed"]
        table.add_row(
            plan["id"], plan["source"], *(f"{plan[name]:,}" for name in ("samples", "shards", "committed")), f"{left:,}"
        )
    console.print(table)
    if run:
        samples, pace = run["samples"], f"{run['images_per_second']}/s"
        if run["eta_seconds"] and run["state"] == "running":
            pace += f", ETA {duration(run['eta_seconds'])}"
        console.print(
            f"run {run['run']}: {run['state']}, {samples['done']:,} of {samples['total']:,} images, "
            f"{pace}, updated {run['updated']}"
        )
    if snapshot:
        console.print(f"snapshot {snapshot['number']} of {snapshot['created']}: {snapshot['rows']:,} rows")
    for title, counts in (("", snapshot and snapshot["by_status"]), ("  ", snapshot and snapshot["by_reason"])):
        for name, count in sorted((counts or {}).items()):
            console.print(f"  {title}{name}: {count:,}")
    if not snapshot:
        console.print("no snapshot yet: the run that finishes makes one")
    return 0


def describe(store: Store) -> dict[str, Any]:
    """What `status --json` prints: of the newest run where it is now, and not its history, which is for `da2ray report`.

    Raises:
        UserError: there is no dataset.
    """
    dataset = require_dataset(store)
    plans = [
        {
            "id": plan.id,
            "source": plan.info.source["url"],
            "samples": plan.info.samples,
            "shards": plan.info.shards,
            "committed": plan.info.shards - len(plan.remaining(store)),
        }
        for plan in list_plans(store)
    ]
    numbers = list_snapshots(store)
    snapshot = open_snapshot(store, numbers[-1]).model_dump(exclude={"parts"}) if numbers else None
    run = newest_progress(store)
    return {
        "dataset": dataset.model_dump(mode="json"),
        "plans": plans,
        "run": run and run.model_dump(mode="json", exclude={"history"}),
        "snapshot": snapshot,
    }


def snapshots(store: Store, console: Console, *, create: bool) -> int:
    """List the versions, after making one where asked."""
    dataset = require_dataset(store)
    if create:
        create_snapshot(store, lambda: [plan.id for plan in list_plans(store)], dataset.created_by.fingerprint)
    table = Table("snapshot", Column("created", overflow="fold"), "rows", "counts", "parts", box=None)
    for number in list_snapshots(store):
        found = open_snapshot(store, number)
        counts = ", ".join(f"{count:,} {name}" for name, count in sorted(found.by_status.items()))
        table.add_row(str(number), found.created, f"{found.rows:,}", counts, str(len(found.parts)))
    console.print(table)
    return 0
