"""Invariant 8: only pipeline/ray_data, pipeline/control, their main flow and the student's trainer import ray."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent.parent / "da2ray"

WITH_RAY = {
    "pipeline/run.py",
    "pipeline/prepare.py",  # asks the cluster for its GPUs
    "pipeline/dry_run.py",  # prints what `prepare` found
    "benchmark/plain_ray.py",  # the plain Ray Data script to which da2ray is compared
}
"""Files outside the two folders that may need Ray."""

WITHOUT_RAY = [
    *(f"pipeline/{name}" for name in ("stages", "control/actors.py", "control/budget.py", "control/history.py")),
    *("images", "labels", "plan", "quality", "sources", "storage", "teachers"),
]
"""Folders and files whose modules must be importable on a machine without Ray."""

IMPORT_EACH = """
import importlib, json, multiprocessing, sys, traceback

sys.modules["ray"] = None  # `import ray` raises ModuleNotFoundError
import duckdb, numpy, pyarrow.parquet, torch, zarr  # once for all parts, as they take longest

def errors(names):
    try:
        for name in names:
            importlib.import_module(name)
    except BaseException:
        return traceback.format_exc()

assert not any(name.startswith("da2ray") for name in sys.modules)
with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:  # a process each
    print(json.dumps(pool.map(errors, json.loads(sys.argv[1]), chunksize=1)))
"""


def modules(part: str) -> list[str]:
    """The names of the modules of a folder or file."""
    path = PACKAGE / part
    files = [path] if path.suffix else sorted(path.rglob("*.py"))
    names = [".".join(["da2ray", *file.relative_to(PACKAGE).with_suffix("").parts]) for file in files]
    return [name.removesuffix(".__init__") for name in names]


def imports(file: Path) -> set[str]:
    """The top-level packages that a file imports, at any depth of its code."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def test_ray_is_imported_in_its_two_folders_and_the_main_flow_only() -> None:
    files = {file.relative_to(PACKAGE).as_posix() for file in PACKAGE.rglob("*.py") if "ray" in imports(file)}
    elsewhere = {file for file in files if not file.startswith(("pipeline/ray_data/", "pipeline/control/"))}
    assert elsewhere <= WITH_RAY


def test_the_pipeline_takes_nothing_but_the_options_of_the_main_job_from_the_commands() -> None:
    taken = {
        (node.module, alias.name)
        for file in (PACKAGE / "pipeline").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("da2ray.commands")
        for alias in node.names
    }
    assert taken == {("da2ray.commands.pseudolabel", "PseudolabelConfig")}


@pytest.fixture(scope="module")
def import_errors() -> dict[str, str | None]:
    """The traceback of importing the modules of each part, in a process of its own that has no Ray; None if they import."""
    parts = [modules(part) for part in WITHOUT_RAY]
    assert all(parts)
    command = [sys.executable, "-c", IMPORT_EACH, json.dumps(parts)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return dict(zip(WITHOUT_RAY, json.loads(finished.stdout), strict=True))


@pytest.mark.parametrize("part", WITHOUT_RAY)
def test_a_part_is_importable_where_ray_is_not_installed(import_errors: dict[str, str | None], part: str) -> None:
    assert import_errors[part] is None, import_errors[part]


def test_the_driver_of_a_job_does_without_torch() -> None:
    """Importing torch takes 1.5 s of CPU, and only the label stage needs it."""
    code = "import sys, da2ray.pipeline.run; sys.exit('torch' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert finished.returncode == 0, finished.stderr
