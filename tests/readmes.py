"""Check a Markdown file without running it: its commands parse, and its links lead to files and headings."""

import re
import shlex
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from da2ray.cli import COMMANDS
from da2ray.commands.options import CommandConfig, load

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted((*ROOT.glob("*.md"), *(ROOT / "cluster").glob("*.md"), *(ROOT / "da2ray").rglob("*.md")))
SYSTEM = {"docker", "kubectl", "export", "pip", "apt-get"}
"""Programs of others, whose options are not checked."""


def blocks(readme: Path, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", readme.read_text(), re.DOTALL | re.MULTILINE)


def commands(readme: Path) -> list[str]:
    """The lines of the shell blocks, with continued lines joined."""
    lines = (line for block in blocks(readme, "sh") for line in block.replace("\\\n", " ").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def parse(command: str) -> CommandConfig:
    """The configuration of `python jobs/X.py …` or `da2ray X …`, parsed as the command parses it."""
    program, name, *options = shlex.split(command, comments=True)
    if program == "da2ray":
        assert name in COMMANDS, name
    else:
        assert program == "python", program
        assert (ROOT / name).is_file(), name
    return load(import_module(f"da2ray.commands.{Path(name).stem}").COMMAND.config, options)


def check(command: str) -> None:
    """Raise if a program, file, target, module or option in this command does not exist."""
    program, *words = shlex.split(command, comments=True)
    if program == "ray":
        if "--" in words:
            check(shlex.join(words[words.index("--") + 1 :]))
    elif program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words) <= set(targets), command
    elif words[:1] == ["-m"]:
        assert find_spec(words[1]), command
    elif program in SYSTEM:
        assert all((ROOT / word).exists() for word in words if word.startswith("cluster/")), command
    elif "--help" not in words:
        parse(command)


def broken_links(readme: Path) -> list[str]:
    """The relative links whose file or heading does not exist."""
    text = re.sub(r"^```.*?^```", "", readme.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not _leads_somewhere(readme, target)]


def _leads_somewhere(readme: Path, target: str) -> bool:
    if "://" in target:
        return True
    path, _, anchor = target.partition("#")
    linked = readme.parent / path if path else readme
    return linked.exists() and (not anchor or anchor in _anchors(linked.read_text()))


def _anchors(text: str) -> set[str]:
    """The anchors that a code host makes of headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
