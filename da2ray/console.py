"""What every command shares: a console, and mistakes of the user as one or two lines and exit code 2."""

import contextlib
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from da2ray.errors import Exit, UnavailableError, UserError
from da2ray.storage import printable

ERROR_CHARS = 1000
PIPE_WIDTH = 1000
"""Columns where stdout is no terminal: a table that is cut to 80 would hide what `grep` looks for."""

LINE_SECONDS = 10.0

OnProgress = Callable[[int, int], None]
"""Called with how much is done, and of how much."""


def run_command(command: Callable[[Console], int]) -> int:
    """Run a command with a console on stdout and return its exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        width = None if sys.stdout.isatty() else PIPE_WIDTH
        # Keys and messages are the users': what looks like markup or an emoji in them is none.
        return command(Console(highlight=False, soft_wrap=True, width=width, markup=False, emoji=False))
    except BrokenPipeError:  # `da2ray status URL | head`
        sys.stderr.close()
        return Exit.DONE
    except (UserError, OSError) as error:  # of a store: no such bucket, no permission, not reachable
        print("error:", _lines(error), file=sys.stderr)
        if not isinstance(error, UnavailableError):
            return Exit.USAGE
        print("run the same command again when the store answers", file=sys.stderr)
        return Exit.RESUMABLE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return Exit.RESUMABLE
    except Exception:  # noqa: BLE001 - a bug, or a cluster that broke; not to be taken for failed samples
        traceback.print_exc()
        return Exit.BROKEN


def _lines(error: Exception) -> str:
    """Its lines as a terminal may show them: others may have written the names in it."""
    return "\n".join(printable(line, ERROR_CHARS) for line in str(error).splitlines())


class Ticker:
    """Says how far some long work is, every ten seconds at most, and nothing where it is done before."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said = time.monotonic()

    def tick(self, text: str) -> None:
        if time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            self._console.print(text)


@contextlib.contextmanager
def progress(what: str, unit: str) -> Iterator[OnProgress]:
    """How far `what` is, on stderr, which leaves stdout to the result: a bar on a terminal, lines elsewhere."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        said = Ticker(console)
        yield lambda done, total: said.tick(f"{what}: {done:,} of {total:,} {unit}")
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def number(count: int, *, exact: bool) -> str:
    """A count of images, or an estimate, which says that it is one: "1,234" or "about 1,234"."""
    return f"{count:,}" if exact else f"about {count:,}"


def duration(seconds: float) -> str:
    """The two largest units: 93784 -> "1d 2h"; 3723 -> "1h 2m"; 65 -> "1m 5s"."""
    whole = int(seconds)
    parts = [(whole // 86400, "d"), (whole % 86400 // 3600, "h"), (whole % 3600 // 60, "m"), (whole % 60, "s")]
    first = next((index for index, (value, _) in enumerate(parts) if value), len(parts) - 1)
    return " ".join(f"{value}{unit}" for value, unit in parts[first : first + 2])
