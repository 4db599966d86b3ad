"""What a listing passes over is counted, and a broken link or a folder without permission never ends it."""

import json
import os
import subprocess
import sys
from pathlib import Path

from da2ray.errors import Reason, SampleError
from da2ray.labels.dataset import create_or_open
from da2ray.plan.plan import make_plan
from da2ray.sources import members_of, open_source
from da2ray.storage import open_store
from tests.jobs import Command
from tests.labels.samples import info


def test_links_hidden_files_and_other_types(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.jpg", "b.heic", "c.AVIF", ".d.jpg", "notes.txt"):
        (folder / name).write_bytes(b"x")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "self").symlink_to(".")
    (folder / "gone.jpg").symlink_to("../annex/gone")
    source = open_source(str(folder))
    members = [member for batch in source.members() for member in members_of(batch)]
    assert [member.key for member in members] == ["a.jpg", "gone.jpg"]
    (gone,) = source.fetch(members[1:], 1)
    assert isinstance(gone.body, SampleError)
    assert gone.body.reason is Reason.NOT_FOUND
    plan = make_plan(source, open_store(str(tmp_path / "out")), shard_size=4, limit=None, fingerprint="")
    assert plan.info.passed_over == {"link_loops": 2, "hidden_files": 1, "other_image_types": 2}


def test_people_are_told_what_was_passed_over(job_without_ray: Command, tmp_path: Path) -> None:
    images, command = tmp_path / "images", ["--output", tmp_path / "labels", "--teacher", "luminance", "--dry-run"]
    images.mkdir()
    for name in ("b.heic", "c.heic", ".d.jpg"):
        (images / name).write_bytes(b"x")
    code, _, stderr = job_without_ray("--images", images, *command)
    assert code == 2
    assert "passed over: 1 hidden file, 2 images of types that are not read" in stderr
    (images / "a.jpg").write_bytes(b"x")
    code, stdout, _ = job_without_ray("--images", images, *command)
    assert code == 0
    assert "passed over 1 hidden file, 2 images of types that are not read" in stdout


def test_status_knows_what_a_plan_passed_over(command: Command, tmp_path: Path) -> None:
    images, output = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    for name in ("a.jpg", "b.heic"):
        (images / name).write_bytes(b"x")
    store = open_store(str(output))
    make_plan(open_source(str(images)), store, shard_size=4, limit=None, fingerprint="f")
    create_or_open(store, info())
    assert "passed over: 1 image of a type that is not read" in command("status", output)[1]
    (plan,) = json.loads(command("status", output, "--json")[1])["plans"]
    assert plan["passed_over"] == {"other_image_types": 1}


def test_a_folder_without_permission(tmp_path: Path) -> None:
    for name in ("closed", "unsearchable", "open"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(b"x")
    (tmp_path / "closed").chmod(0)
    (tmp_path / "unsearchable").chmod(0o444)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):  # noqa: S108 - so that another user may search them
            folder.chmod(folder.stat().st_mode | 0o755)
    code = (
        "import os, sys; from da2ray.storage.local import LocalStore; import pyarrow\n"
        "if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "store = LocalStore(sys.argv[1])\n"
        "print([key for batch in store.list() for key in batch['key'].to_pylist()], dict(store.passed_over))"
    )
    ended = subprocess.run([sys.executable, "-c", code, tmp_path], check=False, capture_output=True, text=True)
    for name in ("closed", "unsearchable"):
        (tmp_path / name).chmod(0o755)
    assert ended.stdout.strip() == "['open/a.jpg'] {'closed_folders': 2}", ended.stderr
    assert os.path.lexists(tmp_path / "closed" / "a.jpg")
