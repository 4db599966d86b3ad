"""`da2ray`: look at a dataset from a terminal."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from da2ray.console import run_command
from da2ray.errors import UserError
from da2ray.labels.dataset import open_dataset
from da2ray.labels.snapshots import create_snapshot, list_snapshots, open_snapshot
from da2ray.plan import list_plans
from da2ray.progress_text import duration
from da2ray.storage import Store, open_store


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    return run_command(lambda console: _dispatch(sys.argv[1:] if argv is None else argv, console))


def _dispatch(argv: Sequence[str], console: Console) -> int:
    parser = argparse.ArgumentParser(prog="da2ray", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    status_parser = commands.add_parser("status", help="what is done, what failed, how fast the last run is")
    status_parser.add_argument("--json", action="store_true", help="for machines")
    snapshots_parser = commands.add_parser("snapshots", help="versions of the dataset")
    snapshots_parser.add_argument("--create", action="store_true", help="make one of what is committed now, finished or not")
    for command in (status_parser, snapshots_parser):
        command.add_argument("url", metavar="URL", help="URL or path of a dataset")
        command.add_argument("--storage-client", choices=["auto", "obstore", "fsspec"], default="auto")
    options = parser.parse_args(argv)
    store = open_store(options.url, options.storage_client)
    if options.command == "status":
        return status(store, console, as_json=options.json)
    return snapshots(store, console, create=options.create)
