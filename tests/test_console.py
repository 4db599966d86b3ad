"""What all commands share: the end of their process, counts with their nouns, times, and questions about unknown words."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from da2ray.console import counted, did_you_mean, to_seconds


@pytest.mark.parametrize(
    ("count", "exact", "text"),
    [
        (0, True, "0 shards"),
        (1, True, "1 shard"),
        (2, True, "2 shards"),
        (3200, True, "3,200 shards"),
        (1, False, "about 1 shard"),
    ],
)
def test_a_count_has_its_noun_in_the_right_number(count: int, exact: bool, text: str) -> None:
    assert counted(count, "shard", exact=exact) == text


@pytest.mark.parametrize("moment", ["2026-11-28T06:07:08.123456+00:00", "2026-11-28T06:07:08+00:00"])
def test_a_time_is_shown_to_the_second(moment: str) -> None:
    assert to_seconds(moment) == "2026-11-28T06:07:08+00:00"


def test_an_unknown_word_is_compared_with_the_known_ones() -> None:
    assert did_you_mean("--teach", ["--teacher", "--output"]) == "; did you mean --teacher?"
    assert did_you_mean("--zzz", ["--teacher", "--output"]) == ""
    assert did_you_mean("", ["--teacher"]) == ""


ENDING = """
import atexit, sys
from da2ray.console import run_process

class Last:
    def __del__(self):
        print("Python is torn down", file=sys.__stderr__)

sys.modules["last"] = Last()

def main():
    atexit.register(print, "an exit handler")
    print("the result")
    {end}

run_process(main)
"""


@pytest.mark.parametrize(
    ("end", "code", "errors"),
    [
        ("return 75", 75, ""),
        ("return 0", 0, ""),
        ("raise SystemExit(2)", 2, ""),
        ("raise SystemExit", 0, ""),
        ("raise ValueError('a bug')", 1, "ValueError: a bug"),
    ],
)
def test_a_process_ends_with_its_code_after_exit_handlers_and_before_python_is_torn_down(
    end: str, code: int, errors: str
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", ENDING.format(end=end)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout) == (code, "the result\nan exit handler\n")
    assert errors in ended.stderr
    assert ("Python is torn down" in ended.stderr) == bool(errors), "only a bug ends the usual way"


def test_a_reader_that_is_gone_changes_no_exit_code() -> None:
    shell = f"{sys.executable} -c 'from da2ray.console import run_process; run_process(lambda: print(1) or 3)'"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    ended = subprocess.run(["bash", "-c", f"{shell} | true; exit ${{PIPESTATUS[0]}}"], env=env, timeout=60, check=False)
    assert ended.returncode == 3


def test_every_script_ends_its_process_so() -> None:
    root = Path(__file__).parents[1]
    for script in (root / "jobs").glob("*.py"):
        assert re.search(r"^    run_process\(", script.read_text(), re.MULTILINE), script
    assert 'da2ray = "da2ray.cli:script"' in (root / "pyproject.toml").read_text()
