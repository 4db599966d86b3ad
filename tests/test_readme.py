"""Every command of the README runs as it is written, in the order in which a reader comes to it."""

import os
import re
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
from tests.s3_server import S3Server

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
TIMEOUT_S = 240


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, photos: Path, s3: S3Server) -> Path:
    """What a reader has: a clone, a folder `photos`, the same photos in a bucket of that name, and weights beside the clone.

    Not in it: `ray job submit` sends what is there along, up to 100 MiB.
    """
    folder = tmp_path_factory.mktemp("reader") / "clone"
    folder.mkdir()
    for name in ("jobs", "da2ray", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "README.md"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(photos, folder / "photos")
    torch.save(random_state(VITS), folder.parent / "depth_anything_v2_vits.pth")
    (folder / "mymod.py").write_text(next(block for block in blocks("python") if "class MyTeacher" in block))
    bucket = open_store(s3.create_bucket("bucket"))
    for path in photos.iterdir():
        bucket.put(f"photos/{path.name}", path.read_bytes())
    return folder


@pytest.fixture(scope="module")
def environment(ray_head: RayHead, s3: S3Server) -> dict[str, str]:
    return os.environ | s3.env | {"PATH": f"{BIN}:{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0", **ray_head.env}


@pytest.mark.timeout(len(COMMANDS) * TIMEOUT_S)
def test_every_command_of_the_readme_works_in_its_order(
    clone: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in COMMANDS:
        run(command, clone, environment)
    monkeypatch.chdir(clone)
    for block in blocks("python"):  # they read what the commands made
        exec(compile(block, "README.md", "exec"), {})  # noqa: S102 - our own README


def serve(command: str, clone: Path, environment: dict[str, str]) -> None:
    """Start a server as a reader would, wait for what it says, and end it with Ctrl-C."""
    with subprocess.Popen(
        [BIN / "python", *command.split()[1:]], cwd=clone, env=environment, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            assert any("AWS_ENDPOINT_URL" in line for line in server.stdout)
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)


def run(command: str, clone: Path, environment: dict[str, str]) -> None:
    if command == "python -m tests.s3_server":
        serve(command, clone, environment)
        return
    if command.startswith(("make ", "pip install ")):
        # What these do is what this suite, `tests/test_demo.py` and CI do; here: make and pip know how.
        command = command.replace("make ", "make --dry-run ").replace("install ", "install --dry-run --no-deps ")
    if not command.startswith("ray "):
        environment = {name: value for name, value in environment.items() if not name.startswith("RAY_A")}
    ended = subprocess.run(  # noqa: S602 - as a reader's shell would
        command,
        shell=True,
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    said = f"$ {command}\n{ended.stdout[-3000:]}{ended.stderr[-3000:]}"
    assert ended.returncode == 0, said
    assert "Traceback" not in ended.stderr, said


def test_the_readme_shows_the_options_that_there_are() -> None:
    from da2ray.commands.pseudolabel import PseudolabelConfig

    known = {"--" + name.replace("_", "-") for name in PseudolabelConfig.model_fields} | {"--config", "--help"}
    table = README[README.index("| option | meaning |") : README.index("Exit codes:")]
    named = set(
        re.findall(r"(--[a-z][a-z-]+)", "\n".join(line.split("|")[1] for line in table.splitlines() if "|" in line))
    )
    assert named <= known


def test_the_picture_of_the_readme_is_there() -> None:
    for target in re.findall(r"!?\[[^\]]*\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
