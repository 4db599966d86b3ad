"""In the README of da2ray/quality, commands parse or run and tables match the code."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from da2ray.quality.opinions import PASSES
from da2ray.quality.presets import PRESETS
from da2ray.storage import open_store
from tests.quality.snapshots import snapshot_of
from tests.readmes import ROOT, blocks, commands, parse

FILE = ROOT / "da2ray" / "quality" / "README.md"
README = FILE.read_text()
INDENTED = re.findall(r"^    (python .*)$", README, re.MULTILINE)
"""Commands that are only parsed, because they need ground truth or minutes."""
COUNT = 40


def table(header: str) -> list[list[str]]:
    """The cells of the rows below a table's header."""
    lines = README[README.index(header) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("line", INDENTED)
def test_every_command_parses(line: str) -> None:
    parse(line)


def test_the_table_of_opinions_says_what_each_costs() -> None:
    listed = {row[0].strip("`").split()[-1]: float(row[2].split(",")[0]) for row in table("| second opinion |")}
    listed["checker"] = listed.pop("NAME")
    assert listed == {name: round(passes, 2) for name, passes in PASSES.items()}


def test_the_table_of_presets_holds_their_rules() -> None:
    rows = table("| rule |")
    for column, preset in enumerate(("lenient", "default", "strict"), 1):
        listed = [row[column].strip("`") for row in rows if row[column]]
        assert listed == [rule.where for rule in PRESETS[preset]]


def test_the_table_of_modules_lists_every_module() -> None:
    listed = [name for row in table("| module |") for name in re.findall(r"`(\w+\.py)`", row[0])]
    assert sorted(listed) == sorted(path.name for path in FILE.parent.glob("*.py") if path.name != "__init__.py")


def test_views_reports_and_calibration_work_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the commands on a dataset of made-up scores. tests/test_readme.py labels photographs."""
    random = np.random.default_rng(0)
    scores = {
        "blur": np.linspace(1, 100, COUNT).tolist(),
        "flip_p90": np.linspace(0, 0.5, COUNT).tolist(),
        "phash": random.integers(0, 2**64, COUNT, np.uint64).tolist(),
    }
    snapshot_of(open_store(str(tmp_path / "scored")), scores)
    (tmp_path / "truth").mkdir()
    for number in range(COUNT):
        depth = random.uniform(1, 9, (3, 4)).astype(np.float32)
        np.save(tmp_path / "truth" / f"{number:04d}.npy", depth)
    monkeypatch.chdir(tmp_path)
    calibrate = next(line for line in INDENTED if "--calibrate" in line)
    lines = [*commands(FILE)[1:], calibrate.replace("URL", "scored").replace("TRUTH", "truth")]
    assert len(lines) == 4
    for line in lines:
        program, name, *options = shlex.split(line)
        module = name if program == "da2ray" else Path(name).stem
        assert import_module(f"da2ray.commands.{module}").COMMAND.main(options) == 0, line
    assert (tmp_path / "report.html").exists()
    for block in blocks(FILE, "python"):
        exec(compile(block, str(FILE), "exec"), {})  # noqa: S102 - our own README
