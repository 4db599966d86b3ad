"""Every command of the README runs as it is written, in the order of the README."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from da2ray.storage import open_store
from da2ray.teachers.depth_anything.configs import VITS
from da2ray.teachers.depth_anything.teacher import random_state
from tests.ray_head import BIN, RayHead
from tests.readmes import ROOT, blocks
from tests.s3_server import S3Server

README = ROOT / "README.md"
BLOCKS = blocks(README, "sh")
SERVER = "python -m tests.s3_server"
TIMEOUT_S = 240


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, photos: Path, s3: S3Server) -> Path:
    """What a reader has: a clone, a folder `photos`, the same photos in a bucket of that name, and weights beside the clone.

    The weights lie outside the clone because `ray job submit` uploads the whole folder, up to 100 MiB.
    """
    folder = tmp_path_factory.mktemp("reader") / "clone"
    folder.mkdir()
    for name in ("jobs", "da2ray", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "README.md"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(photos, folder / "photos")
    torch.save(random_state(VITS), folder.parent / "depth_anything_v2_vits.pth")
    bucket = open_store(s3.create_bucket("bucket"))
    for path in photos.iterdir():
        bucket.put(f"photos/{path.name}", path.read_bytes())
    return folder


@pytest.fixture(scope="module")
def environment(ray_head: RayHead, s3: S3Server) -> dict[str, str]:
    return os.environ | s3.env | {"PATH": f"{BIN}:{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0", **ray_head.env}


@pytest.mark.timeout(len(BLOCKS) * TIMEOUT_S)
def test_every_command_of_the_readme_works_in_its_order(
    clone: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for block in BLOCKS:
        if block.strip() == SERVER:
            serve(clone, environment)
        else:
            run("\n".join(adapted(line, environment["RAY_ADDRESS"]) for line in block.splitlines()), clone, environment)
    monkeypatch.chdir(clone)
    for block in blocks(README, "python"):  # they read the labels that the commands wrote
        exec(compile(block, "README.md", "exec"), {})  # noqa: S102 - our own README


def adapted(line: str, address: str) -> str:
    """The line, changed so that it can run beside other tests on this machine."""
    if line.startswith(("make ", "pip install ")):
        # This suite, tests/commands/test_demo.py and CI run these. Here a dry run of make and pip is enough.
        return line.replace("make ", "make --dry-run ").replace("install ", "install --dry-run --no-deps ")
    if line in ("ray start --head", "ray stop"):
        return ":"  # the fixture `ray_head` runs the same command; `ray stop` would end every Ray on the machine
    return line.replace("http://127.0.0.1:8265", address)


def serve(clone: Path, environment: dict[str, str]) -> None:
    """Start the server as a reader would, wait for the variables that it prints, and end it with Ctrl-C."""
    with subprocess.Popen(
        [BIN / "python", *SERVER.split()[1:]], cwd=clone, env=environment, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            assert any("AWS_ENDPOINT_URL" in line for line in server.stdout)
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)


def run(script: str, clone: Path, environment: dict[str, str]) -> None:
    if "ray job submit" not in script:  # on a laptop: with its own Ray
        environment = {name: value for name, value in environment.items() if not name.startswith("RAY_A")}
    ended = subprocess.run(
        ["bash", "-ec", script],
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    output = f"$ {script}\n{ended.stdout[-3000:]}{ended.stderr[-3000:]}"
    assert ended.returncode == 0, output
    assert "Traceback" not in ended.stderr, output
