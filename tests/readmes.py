"""Checks that a README beside the code is true without running it: its commands parse and its links lead to files."""

import re
import shlex
from importlib import import_module
from pathlib import Path

from da2ray.cli import COMMANDS
from da2ray.commands.options import CommandConfig, load

ROOT = Path(__file__).parents[1]


def blocks(readme: Path, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", readme.read_text(), re.DOTALL | re.MULTILINE)


def commands(readme: Path) -> list[str]:
    """The lines of the shell blocks."""
    return [line for block in blocks(readme, "sh") for line in block.splitlines() if line]


def parse(command: str) -> CommandConfig:
    """The configuration of `python jobs/X.py …` or `da2ray X …`, parsed as the command does it."""
    program, name, *options = shlex.split(command)
    if program == "da2ray":
        assert name in COMMANDS
    else:
        assert program == "python"
        assert (ROOT / name).is_file()
    return load(import_module(f"da2ray.commands.{Path(name).stem}").COMMAND.config, options)


def broken_links(readme: Path) -> list[str]:
    """The targets of relative links that do not exist."""
    targets = re.findall(r"\]\(([^)#]+)", readme.read_text())
    return [target for target in targets if "://" not in target and not (readme.parent / target).exists()]
