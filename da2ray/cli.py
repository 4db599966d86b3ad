"""`da2ray`: look at a dataset from a terminal, and look after it.

The modules of da2ray/commands/ are imported on demand, so that each command loads only what it needs.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final, NoReturn

from rich.console import Console

from da2ray.console import did_you_mean, run_command, run_process
from da2ray.errors import Exit, UserError

COMMANDS: Final = {
    "list": "list images once, into a manifest",
    "status": "what is done, what failed, and how fast the newest run is",
    "snapshots": "list the versions of a dataset, or make one",
    "diff": "what differs between two versions, by their numbers",
    "tag": "give a version a name, so that gc keeps it",
    "verify": "check every live shard, the newest snapshot and the views",
    "repair": "let the next run label broken shards again",
    "gc": "remove what no commit, snapshot or view names",
    "report": "write one HTML page: counts, scores, a gallery, throughput",
}
"""The commands and what `da2ray --help` says about each; each is a module of da2ray/commands/."""


def script() -> NoReturn:
    """The console script `da2ray`."""
    run_process(main)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `da2ray …` with these words, by default those of this process, and return the exit code."""
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in COMMANDS:
        return import_module(f"da2ray.commands.{words[0]}").COMMAND.main(words[1:], prog=f"da2ray {words[0]}")
    return run_command(lambda console: _help(words, console))


def _help(words: Sequence[str], console: Console) -> int:
    if words and words[0] in ("-h", "--help"):
        console.print("usage: da2ray COMMAND URL [options]\n\nLook at a dataset, and look after it.\n")
        for name, text in COMMANDS.items():
            console.print(f"  {name:<10} {text}")
        console.print("\nda2ray COMMAND --help lists the options of a command.")
        return Exit.DONE
    problem = f"{words[0]} is not a command" if words else "no command given"
    like = did_you_mean(words[0], COMMANDS) if words else ""
    raise UserError(f"{problem}: choose from {', '.join(COMMANDS)}{like}\nsee da2ray --help")
