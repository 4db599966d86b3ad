"""The reference of the commands matches the code: commands parse, options and exit codes exist, links lead to files."""

import re
from pathlib import Path

import pytest
import yaml

from da2ray.cli import COMMANDS
from da2ray.commands.options import load
from da2ray.commands.pseudolabel import PseudolabelConfig
from da2ray.commands.refresh import RefreshConfig
from da2ray.errors import Exit
from tests.readmes import ROOT, blocks, broken_links, commands, parse

README = ROOT / "da2ray" / "commands" / "README.md"
TEXT = README.read_text()


@pytest.mark.parametrize("command", commands(README))
def test_every_command_parses(command: str) -> None:
    parse(command)


def test_every_command_is_in_the_table_with_the_purpose_that_help_shows() -> None:
    for name, purpose in COMMANDS.items():
        assert f"| `da2ray {name} URL` | {purpose} |" in TEXT
    for job in (ROOT / "jobs").glob("*.py"):
        assert f"| `python jobs/{job.name}` | " in TEXT


def test_every_option_exists() -> None:
    named = re.findall(r"--([a-z-]+)", "\n".join(line.split("|")[1] for line in TEXT.splitlines() if "| `--" in line))
    assert named
    assert {option.replace("-", "_") for option in named} <= {
        *PseudolabelConfig.model_fields,
        *RefreshConfig.model_fields,
    }


def test_the_table_of_exit_codes_is_that_of_the_code() -> None:
    table = TEXT.partition("| code | meaning |\n|---|---|\n")[2].partition("\n\n")[0]
    assert table == "\n".join(f"| {code.value} | {code.meaning} |" for code in Exit)


def test_the_file_of_options_is_one(tmp_path: Path) -> None:
    (text,) = blocks(README, "yaml")
    assert yaml.safe_load(text)
    file = tmp_path / "job.yaml"
    file.write_text(text)
    assert str(load(PseudolabelConfig, ["--config", str(file)]).actors) == "1:8"


def test_every_link_leads_to_a_file() -> None:
    assert set(broken_links(README)) <= {"../quality/README.md", "../sources/README.md"}
