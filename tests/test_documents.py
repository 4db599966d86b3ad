"""In every Markdown file, links lead somewhere and commands parse with the options that exist."""

from pathlib import Path

import pytest

from da2ray.errors import UserError
from tests.readmes import DOCUMENTS, ROOT, broken_links, check, commands

documents = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


@documents
def test_every_command_is_one_that_can_be_typed(document: Path) -> None:
    for command in commands(document):
        check(command)


@documents
def test_every_link_leads_somewhere(document: Path) -> None:
    assert broken_links(document) == []


def test_the_readme_fits_in_140_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 140


def test_a_command_that_does_not_exist_is_noticed() -> None:
    with pytest.raises(AssertionError):
        check("da2ray publish labels")
    with pytest.raises(UserError, match="--shard-sise"):
        check("python jobs/pseudolabel.py --images a --output b --shard-sise 4")


def test_a_link_to_a_missing_heading_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# One `two`\n[fine](#one-two) [not](#three) [gone](b.md)\n")
    assert broken_links(tmp_path / "a.md") == ["#three", "b.md"]
