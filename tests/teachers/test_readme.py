"""The teachers' README names the teachers, licences and extras that exist, its commands parse, and its own teacher labels."""

import re
import sys
import tomllib
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from da2ray.teachers import custom, metric3d, registry, unidepth
from da2ray.teachers.base import LoadOptions, PixelBatch
from tests.readmes import ROOT, blocks

FILE = ROOT / "da2ray" / "teachers" / "README.md"
README = FILE.read_text()


def table(header: str) -> list[list[str]]:
    """The cells of the rows below a table's header."""
    lines = README[README.index(header) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def names(cell: str) -> set[str]:
    """The names in a cell, with `{a,b}` written out, and `-base` after `depth-anything-v2-small` completed."""
    found: list[str] = []
    for name in re.findall(r"`([^`]+)`", cell):
        whole = found[0].rpartition("-")[0] + name if name.startswith("-") else name
        parts = [part.split(",") for part in re.split(r"[{}]", whole)] if "{" in whole else [[whole]]
        found += ["".join(chosen) for chosen in product(*parts)]
    return set(found)


def test_the_table_of_teachers_names_every_teacher() -> None:
    listed = {name for row in table("| `--teacher` | depth |") for name in names(row[0])}
    assert set(registry.names()) <= listed
    variants = {f"metric3d:{name}" for name in metric3d.WEIGHTS} | {f"unidepth:{name}" for name in unidepth.VARIANTS}
    prefixed = {f"{family}:{name}" for family in ("metric3d", "unidepth") for name in listed}
    assert variants <= listed | prefixed
    for family in (*registry.FAMILIES.values(), registry.OWN):
        assert family.form.split(":")[0] in README


def test_the_table_of_licences_says_what_the_registry_says() -> None:
    listed = {
        name: row[0].strip("*").split(":")[0] for row in table("| licence of the weights |") for name in names(row[1])
    }
    for name in registry.names():
        licence = registry.resolve(name).licence
        expected = "that of the weights you give" if licence == registry.UNRELEASED else licence
        assert listed[name] == expected
    assert listed["metric3d:…"] == metric3d.LICENCE
    assert listed["unidepth:…"] == unidepth.LICENCE


def test_the_extras_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"pip install '\.\[(\w+)\]'", README)
    assert sorted(named) == sorted(family.extra for family in registry.FAMILIES.values() if family.extra)
    assert set(named) <= set(extras)


def test_the_readmes_own_teacher_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (tmp_path / "readme_teacher.py").write_text(blocks(FILE, "python")[0])
    spec = custom.spec("readme_teacher:MyTeacher", {})
    pixels = np.random.default_rng(0).integers(0, 256, 60 * 80 * 3, dtype=np.uint8)
    batch = PixelBatch(torch.from_numpy(pixels), [(60, 80)], spec.size_rule(60, 80))
    assert spec.load(LoadOptions()).predict(batch).depth.shape == (1, *batch.size)
