"""Every Markdown file is true: its links lead somewhere, and its commands parse with the options that exist."""

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from da2ray.cli import COMMANDS
from da2ray.commands.options import load

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("*.md"), *(ROOT / "cluster").glob("*.md"), *(ROOT / "da2ray").rglob("*.md"))
)
SYSTEM = {"docker", "kubectl", "export", "pip", "apt-get"}
"""Programs whose options are not ours to check."""


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command in the `sh` blocks of a document."""
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def check(words: list[str]) -> None:
    """Raise if a command cannot be what somebody should type."""
    program, *rest = words
    if program == "ray":
        if "--" in rest:
            check(rest[rest.index("--") + 1 :])
    elif program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(rest) <= set(targets), rest
    elif program == "da2ray":
        assert rest[0] in COMMANDS, rest
        parse(rest[0], rest[1:])
    elif program.endswith("python") and rest[0] == "-m":
        assert find_spec(rest[1]), rest
    elif program.endswith("python"):
        script = ROOT / rest[0]
        assert script.is_file(), script
        parse(script.stem, rest[1:])
    else:
        assert program in SYSTEM, words
        for word in rest:
            assert not word.startswith("cluster/") or (ROOT / word).exists(), word


def parse(command: str, argv: list[str]) -> None:
    model = import_module(f"da2ray.commands.{command}").COMMAND.config
    if "--help" not in argv:
        load(model, argv, prog=command)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_parses(document: str) -> None:
    for words in commands((ROOT / document).read_text()):
        check(words)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_somewhere(document: str) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / document).read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"!?\[[^\]]*\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (ROOT / document).parent / path if path else ROOT / document
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked.read_text()), target


def anchors(text: str) -> set[str]:
    """The anchors that a code host makes of headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-") for heading in headings}


def test_the_readme_fits_in_140_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 140


def test_a_command_that_does_not_exist_is_noticed() -> None:
    with pytest.raises(AssertionError):
        check(["da2ray", "publish", "labels"])
    with pytest.raises(Exception, match="--shard-sise"):
        check(["python", "jobs/pseudolabel.py", "--images", "a", "--output", "b", "--shard-sise", "4"])
