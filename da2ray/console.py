"""What every command shares: a console, and mistakes of the user as one or two lines and exit code 2."""

import signal
import sys
import traceback
from collections.abc import Callable
from enum import IntEnum

from rich.console import Console

from da2ray.errors import UserError


class Exit(IntEnum):
    """Exit codes that schedulers build on (design.md), and 70 for what is none of them."""

    DONE = 0
    TOO_MANY_FAILED = 1
    USAGE = 2
    BROKEN = 70
    RESUMABLE = 75


PIPE_WIDTH = 1000
"""Columns where stdout is no terminal: a table that is cut to 80 would hide what `grep` looks for."""


def run_command(command: Callable[[Console], int]) -> int:
    """Run a command with a console on stdout and return its exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        width = None if sys.stdout.isatty() else PIPE_WIDTH
        return command(Console(highlight=False, soft_wrap=True, width=width))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return Exit.USAGE
    except BrokenPipeError:  # `da2ray status URL | head`
        sys.stderr.close()
        return Exit.DONE
    except OSError as error:  # of a store: no such bucket, no permission, not reachable
        print(f"error: {error}", file=sys.stderr)
        return Exit.USAGE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return Exit.RESUMABLE
    except Exception:  # noqa: BLE001 - a bug, or a cluster that broke; not to be taken for failed samples
        traceback.print_exc()
        return Exit.BROKEN


def duration(seconds: float) -> str:
    """The two largest units: 93784 -> "1d 2h"; 3723 -> "1h 2m"; 65 -> "1m 5s"."""
    whole = int(seconds)
    parts = [(whole // 86400, "d"), (whole % 86400 // 3600, "h"), (whole % 3600 // 60, "m"), (whole % 60, "s")]
    first = next((index for index, (value, _) in enumerate(parts) if value), len(parts) - 1)
    return " ".join(f"{value}{unit}" for value, unit in parts[first : first + 2])
