"""`make demo`: label photographs that packages ship with the main job, and show the result.

It runs jobs/pseudolabel.py, so it needs a clone.
"""

import subprocess
import sys
from functools import partial
from pathlib import Path

from rich.console import Console

from da2ray.commands import report
from da2ray.commands.options import Command, CommandConfig, option
from da2ray.console import run_process
from da2ray.errors import Exit, UserError

TEACHER = "depth-anything-v2-tiny"
JOB = Path(__file__).parents[2] / "jobs" / "pseudolabel.py"


class DemoConfig(CommandConfig):
    """Label photographs that packages ship, and draw each beside its depth."""

    folder: str = option("demo", "where to write the photographs, the labels and the pictures", metavar="PATH")


def demo(config: DemoConfig, console: Console) -> int:
    """Photographs -> `folder`/images -> the main job -> `folder`/labels -> `folder`/contact_sheet.png and report.html."""
    # OpenCV and others: `--help` does without them.
    from da2ray.benchmark.photos import packaged_photos  # noqa: PLC0415
    from da2ray.labels.reader import open_labels  # noqa: PLC0415
    from da2ray.report.contact_sheet import contact_sheet  # noqa: PLC0415

    folder = Path(config.folder)
    images, labels = folder / "images", folder / "labels"
    images.mkdir(parents=True, exist_ok=True)
    for name, data in packaged_photos().items():
        (images / name).write_bytes(data)
    command = [sys.executable, str(JOB), "--images", str(images), "--output", str(labels), "--teacher", TEACHER]
    command += ["--shard-size", "8", "--consistency", "flip,scale"]
    console.print(f"$ python jobs/pseudolabel.py {' '.join(command[2:])}")
    code = subprocess.run(command, check=False).returncode  # noqa: S603 - our own job
    if code:
        raise UserError(
            f"the main job ended with exit code {code}; if {labels} holds labels of another release, delete it"
        )
    shown = contact_sheet(open_labels(str(labels)), folder / "contact_sheet.png")
    page = str(folder / "report.html")
    console.print(f"\n$ da2ray report {labels} --output {page}")
    report.report(report.ReportConfig(url=str(labels), output=page), console)
    console.print(f"\n{len(shown)} photographs beside their depth: {folder / 'contact_sheet.png'}")
    console.print(f"labels, to read with da2ray.open_labels: {labels}")
    console.print(
        f"{TEACHER} is embedded: it is small and was trained on rendered worlds only. Published weights are far better."
    )
    return Exit.DONE


COMMAND = Command(DemoConfig, demo)

if __name__ == "__main__":
    run_process(partial(COMMAND.main, prog="demo"))
