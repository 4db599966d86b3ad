"""In the README for readers in Python the example runs, the links lead somewhere, and every field of a label is named."""

from pathlib import Path

import pytest

import da2ray
from da2ray.labels.reader import Label
from tests.labels.samples import dataset
from tests.readmes import blocks

FOLDER = Path(da2ray.__file__).parent / "labels"
README = FOLDER / "README.md"


def test_the_example_reads_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset(tmp_path / "labels", "parquet", shards=1)
    monkeypatch.chdir(tmp_path)
    (example,) = blocks(README, "python")
    exec(compile(example, "README.md", "exec"), {})  # noqa: S102 - our own documentation
    printed = capsys.readouterr().out
    assert "disparity" in printed
    assert "rejected" in printed


def test_every_field_of_a_label_is_described() -> None:
    fields = set(Label.__dataclass_fields__) | {"confidence", "metres"}
    described = README.read_text()
    assert [name for name in sorted(fields - {"mask_bits", "metric"}) if f"`{name}`" not in described] == []
