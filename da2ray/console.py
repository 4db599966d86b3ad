"""What all commands share: a console, progress, and the end of a command as an exit code."""

import atexit
import contextlib
import difflib
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn

from rich.console import Console

from da2ray.errors import Exit

ERROR_CHARS = 1000
"""Characters that a line of an error message may have."""
PIPE_WIDTH = 1000
"""Columns if stdout is not a terminal. A table that is cut to 80 would hide what `grep` looks for."""

LINE_SECONDS = 10.0

OnProgress = Callable[[int, int], None]
"""Called with how much is done, and how much there is."""


def run_process(main: Callable[[], int]) -> NoReturn:
    """Run `main` as all of a process: exit with the code that it returns.

    The process ends after Python's exit handlers, and before Python itself is torn down. Threads of obstore's runtime and of
    Ray's core live on until then. One that wakes in a Python that is being torn down aborts the process: exit code 134 after
    a complete run (a submitted job and `da2ray verify` on busy machines; pyo3-async-runtimes#40, ray#18899).
    """
    codes: list[int] = []

    def leave() -> None:
        if codes:  # else an exception ends the process, and Python has its traceback to print
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):  # the reader is gone, or the stream is closed
                    stream.flush()
            os._exit(codes[0])

    atexit.register(leave)  # the first handler that is registered is the last that runs
    try:
        codes.append(main())
    except SystemExit as ended:  # `--help`
        codes.append(ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1)
        raise
    sys.exit(codes[0])


def run_command(command: Callable[[Console], int]) -> int:
    """Run a command with a console on stdout and return its exit code.

    An error that ends it goes to stderr: as one or two lines, or with its traceback if it is a bug.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C
    try:
        width = None if sys.stdout.isatty() else PIPE_WIDTH
        # Keys and messages come from users: nothing in them is markup or an emoji.
        return command(Console(highlight=False, soft_wrap=True, width=width, markup=False, emoji=False))
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - a command ends here
        code = Exit.of(error)
        _explain(error, code)
        return code


def _explain(error: BaseException, code: Exit) -> None:
    if isinstance(error, BrokenPipeError):
        sys.stderr.close()
    elif code is Exit.BROKEN:
        traceback.print_exc()
    else:
        print("interrupted" if isinstance(error, KeyboardInterrupt) else f"error: {_lines(error)}", file=sys.stderr)
        if code is Exit.RESUMABLE:
            print("run the same command again to go on", file=sys.stderr)


def _lines(error: BaseException) -> str:
    """The error's lines as a terminal may show them: others may have written the names in them."""
    from da2ray.storage import printable  # noqa: PLC0415 - numpy and pyarrow: `da2ray --help` does without them

    return "\n".join(printable(line, ERROR_CHARS) for line in str(error).splitlines())


class Ticker:
    """Prints how far long work is, at most every ten seconds. Work that is done earlier prints nothing."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = self._printed = time.monotonic()

    def count(self, what: str, done: int, noun: str) -> None:
        """`tick` with a count and the rate since the beginning: "listing photos: 1,234,000 images, 98,000 a second"."""
        rate = done / max(time.monotonic() - self._began, 1e-9)
        self.tick(f"{what}: {counted(done, noun)}, {rate:,.0f} a second")

    def tick(self, text: str) -> None:
        if time.monotonic() - self._printed >= LINE_SECONDS:
            self._printed = time.monotonic()
            self._console.print(text)


@contextlib.contextmanager
def progress(what: str, unit: str) -> Iterator[OnProgress]:
    """Show on stderr how far `what` is, as a bar on a terminal and as lines elsewhere. Stdout is for the result."""
    # Late, as most commands show no progress.
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        ticker = Ticker(console)
        yield lambda done, total: ticker.tick(f"{what}: {done:,} of {total:,} {unit}")
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def number(count: int, *, exact: bool) -> str:
    """A count of images, or an estimate, which says that it is one: "1,234" or "about 1,234"."""
    return f"{count:,}" if exact else f"about {count:,}"


def counted(count: int, noun: str, *, exact: bool = True) -> str:
    """A count and its noun in the singular or plural: "1 shard", "3,200 shards", "about 1,000 images"."""
    return f"{number(count, exact=exact)} {noun}{'' if count == 1 else 's'}"


def to_seconds(moment: str) -> str:
    """A time in ISO 8601 without its fraction of a second."""
    return re.sub(r"\.\d+", "", moment)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question to add to a message about an unknown word: "; did you mean --teacher?". Empty if no known word is like it."""
    return "".join(f"; did you mean {like}?" for like in difflib.get_close_matches(word, list(known), n=1))


def duration(seconds: float) -> str:
    """The two largest units: 93784 -> "1d 2h"; 3723 -> "1h 2m"; 65 -> "1m 5s"."""
    whole = int(seconds)
    parts = [(whole // 86400, "d"), (whole % 86400 // 3600, "h"), (whole % 3600 // 60, "m"), (whole % 60, "s")]
    first = next((index for index, (value, _) in enumerate(parts) if value), len(parts) - 1)
    return " ".join(f"{value}{unit}" for value, unit in parts[first : first + 2])
