"""One dataset and its page, shared by all report tests of a process."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from da2ray.cli import main
from tests.report.sample import write_dataset


@dataclass(frozen=True)
class Page:
    """A dataset and the page that `da2ray report` made of it."""

    dataset: Path
    path: Path

    @property
    def html(self) -> str:
        return self.path.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The shared dataset and page. Tests must not change them."""
    folder = tmp_path_factory.mktemp("report")
    dataset = write_dataset(folder)
    assert main(["report", str(dataset), "--output", str(folder / "report.html")]) == 0
    return Page(dataset, folder / "report.html")
