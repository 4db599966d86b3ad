"""The demo and a smoke test on each supported Python that this machine has, with the newest packages: `make pythons`.

Each Python gets an environment below scratch/pythons/, without constraints.txt, and the run ends with a table of what passed. It
is not part of CI: on Linux, PyPI's torch is a CUDA build, 5 GB in each environment. `make pythons TORCH=torch==2.13.0` installs
that torch instead of the newest; a PyTorch index that has CPU builds can be given through PIP_INDEX_URL or PIP_EXTRA_INDEX_URL.

This script runs on any Python 3 and imports nothing that must be installed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("3.11", "3.12", "3.13")
SHOWN = ("torch", "ray", "numpy", "pyarrow", "zarr", "pydantic", "pillow")
INSTALL_SECONDS = 1800
TEST_SECONDS = 900


@dataclass
class Result:
    """The result for a Python: the packages it got, and for each step "passed" or how it failed."""

    version: str
    packages: dict
    steps: dict


def find(version: str) -> "str | None":
    """An interpreter of this version: on PATH, else one of pyenv's. None if there is no such interpreter."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True)]
    for candidate in filter(None, candidates):
        # pyenv has a shim for each version that it knows; shims of versions that are not selected do not run.
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        asked = subprocess.run([str(candidate), "-c", code], capture_output=True, text=True, check=False)
        if asked.stdout.strip() == version:
            return str(candidate)
    return None


def check(version: str, interpreter: str, torch: str, *, keep: bool) -> Result:
    """Create the environment, run the demo and the smoke test in it, and remove it."""
    folder = ROOT / "scratch" / "pythons" / version
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    python = str(folder / "venv" / "bin" / "python")
    result = Result(version, {}, {})
    steps = {
        "venv": ([interpreter, "-m", "venv", str(folder / "venv")], INSTALL_SECONDS),
        "torch": ([python, "-m", "pip", "install", "--quiet", torch], INSTALL_SECONDS),
        "packages": ([python, "-m", "pip", "install", "--quiet", "--editable", f"{ROOT}[demo]"], INSTALL_SECONDS),
        "demo": ([python, "-m", "da2ray.commands.demo", "--folder", str(folder / "demo")], TEST_SECONDS),
        "smoke": ([python, "-m", "tests.smoke", str(folder / "smoke")], TEST_SECONDS),
    }
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    for name, (command, seconds) in steps.items():
        print(f"\n== Python {version}: {name}: {' '.join(command)}", flush=True)
        began = time.monotonic()
        try:
            subprocess.run(command, cwd=ROOT, env=environment, timeout=seconds, check=True)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            result.steps[name] = f"FAILED ({error})"
            break
        result.steps[name] = f"passed in {time.monotonic() - began:.0f} s"
        if name == "packages":
            listed = subprocess.run(
                [python, "-m", "pip", "list", "--format", "json"], capture_output=True, text=True, check=True
            )
            versions = {each["name"]: each["version"] for each in json.loads(listed.stdout)}
            result.packages = {package: versions.get(package) for package in SHOWN}
    if not keep:
        shutil.rmtree(folder)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", default="torch", metavar="REQUIREMENT", help="what pip installs as torch")
    parser.add_argument("--only", nargs="+", default=VERSIONS, choices=VERSIONS, metavar="3.X")
    parser.add_argument("--keep", action="store_true", help="leave the environments in scratch/pythons/")
    options = parser.parse_args()
    found = {version: find(version) for version in options.only}
    results = [
        check(version, interpreter, options.torch, keep=options.keep)
        for version, interpreter in found.items()
        if interpreter
    ]
    print()
    for version in options.only:
        if found[version] is None:
            print(f"Python {version}: not on this machine")
    for result in results:
        packages = ", ".join(f"{name} {version}" for name, version in result.packages.items())
        print(f"Python {result.version}: {packages}")
        for name, outcome in result.steps.items():
            print(f"  {name}: {outcome}")
    return 0 if results and all(result.steps.get("smoke", "").startswith("passed") for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
