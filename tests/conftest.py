"""Fixtures that several test files share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from da2ray.cli import main
from da2ray.commands.pseudolabel import COMMAND
from da2ray.labels.reader import Labels, open_labels
from tests.jobs import Command, run_job
from tests.photos import write_photos
from tests.ray_head import RayHead
from tests.s3_server import S3Server


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """A real S3 server, with its address and credentials in the environment for the session."""
    server = S3Server()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AWS_PROFILE", raising=False)
        patch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        patch.delenv("AWS_SESSION_TOKEN", raising=False)
        for name, value in server.env.items():
            patch.setenv(name, value)
        yield server
    server.close()


@pytest.fixture(scope="session")
def ray_head(s3: S3Server) -> Iterator[RayHead]:
    """A small Ray cluster."""
    head = RayHead()
    yield head
    head.close()


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small photographs and broken files, `tests.photos.REASONS`; not to be changed."""
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def luminance_labels(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Labels:
    """Labels of `photos` by a run of the job, Parquet, local, shards of 4; not to be changed. Starts Ray."""
    output = tmp_path_factory.mktemp("luminance")
    # Two shards an execution: what other runs make in one wave must equal what this one makes in several.
    finished = run_job(
        *("--images", photos, "--output", output, "--teacher", "luminance", "--shard-size", 4, "--wave-size", 2)
    )
    assert finished.code == 0, finished
    return open_labels(str(output))


@pytest.fixture
def job_without_ray(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the main job's own code in this process, as far as it comes without Ray: exit code, stdout, stderr."""

    def no_ray(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", no_ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def run(*args: object) -> tuple[int, str, str]:
        argv = list(map(str, args))
        code = COMMAND.main(argv, prog="pseudolabel.py")
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `da2ray …` in this process: exit code, stdout, stderr."""

    def run(*args: object) -> tuple[int, str, str]:
        code = main([str(arg) for arg in args])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run
