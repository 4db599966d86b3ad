"""`make demo`: label photographs that packages ship with the main job, and show what came out."""

import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from da2ray.benchmark.photos import packaged_photos
from da2ray.console import run_command
from da2ray.errors import UserError
from da2ray.labels.reader import open_labels
from da2ray.report.command import report
from da2ray.report.contact_sheet import contact_sheet
from da2ray.report.options import DEFAULT_GALLERY

TEACHER = "depth-anything-v2-tiny"
JOB = Path(__file__).parents[2] / "jobs" / "pseudolabel.py"


def demo(console: Console, folder: Path) -> int:
    """Photographs -> `folder`/images -> the main job -> `folder`/labels -> `folder`/contact_sheet.png and report.html."""
    images, labels = folder / "images", folder / "labels"
    images.mkdir(parents=True, exist_ok=True)
    for name, data in packaged_photos().items():
        (images / name).write_bytes(data)
    command = [sys.executable, str(JOB), "--images", str(images), "--output", str(labels), "--teacher", TEACHER]
    command += ["--shard-size", "8", "--consistency", "flip,scale"]
    console.print(f"$ python jobs/pseudolabel.py {' '.join(command[2:])}")
    code = subprocess.run(command, check=False).returncode  # noqa: S603 - our own job
    if code:
        raise UserError(f"the main job ended with exit code {code}; labels of another release in {labels}? delete it")
    shown = contact_sheet(open_labels(str(labels)), folder / "contact_sheet.png")
    console.print(f"\n$ da2ray report {labels} --output {folder / 'report.html'}")
    report(str(labels), str(folder / "report.html"), console, gallery=DEFAULT_GALLERY)
    console.print(f"\n{len(shown)} photographs beside their depth: {folder / 'contact_sheet.png'}")
    console.print(f"labels, to be read with da2ray.open_labels: {labels}")
    console.print(
        f"{TEACHER} is embedded: small, and it has seen rendered worlds only. Published weights see far better."
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda console: demo(console, Path(os.environ.get("DA2RAY_DEMO", "demo")))))
