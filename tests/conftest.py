"""Fixtures that several test files share, and the markers `ray` and `server`, which tests get from their fixtures."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import ray
from hypothesis import HealthCheck, settings

from da2ray.cli import main
from da2ray.commands.pseudolabel import COMMAND
from da2ray.labels.reader import Labels, open_labels
from da2ray.storage.open import Client
from tests.jobs import Command, JoinedDriver, RunJob, RunningJob, StartJob, joined, run_script
from tests.photos import write_photos
from tests.ray_head import RayHead
from tests.s3_server import S3Server
from tests.small_head import SmallHead

# A busy machine is not a fault: an example took 1 s of wall time where it takes 1 ms of CPU.
settings.register_profile("no timings", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no timings")

MARKS = {"small_head": "ray", "ray_head": "ray", "own_ray": "ray", "s3": "server"}
"""Fixture -> the marker of each test that uses it, directly or through another fixture."""


RAY_FILES = pytest.StashKey[set[Path]]()
"""The files that have a test with Ray."""
RAY = pytest.StashKey[ExitStack]()
"""What ends with this process's last test with Ray. Idle, a small head and a driver take 3 % of a core."""


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RAY] = ExitStack()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None or nextitem.path not in item.config.stash[RAY_FILES]:
        item.config.stash[RAY].close()


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests, and move the files with Ray to the front: they take longest, so short files are the last to end."""
    for item in items:
        assert isinstance(item, pytest.Function)
        for mark in {MARKS[name] for name in item.fixturenames if name in MARKS}:
            item.add_marker(mark)
    config.stash[RAY_FILES] = files = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: item.path not in files)


@pytest.fixture(autouse=True)
def no_unmarked_ray(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that starts or joins Ray without the marker `ray`, in this process or in one that it starts.

    In the test's own processes Ray fails because it cannot create its folder.
    """
    if request.node.get_closest_marker("ray"):
        yield
        return

    def no_ray(*_: object, **__: object) -> None:
        pytest.fail("a test without the marker `ray` starts Ray: use a fixture that is in `MARKS` of tests/conftest.py")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "init", no_ray)
        patch.setattr(ray, "is_initialized", lambda: False)  # other tests of this process may have joined a head
        patch.setenv("RAY_TMPDIR", "/dev/null/only-tests-with-the-marker-ray")
        yield


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


@pytest.fixture(params=["obstore", "fsspec"])
def client(request: pytest.FixtureRequest) -> Client:
    """Each client of an S3 store in turn."""
    return request.param


@pytest.fixture(scope="session")
def small_head(s3: S3Server, pytestconfig: pytest.Config) -> SmallHead:
    """A Ray node that the drivers of all tests of this process join. Its workers have the environment of `s3`."""
    head = SmallHead()
    pytestconfig.stash[RAY].callback(head.close)
    return head


@pytest.fixture(scope="module")  # idle, it takes 6 % of a core
def ray_head(s3: S3Server) -> Iterator[RayHead]:
    """A Ray head with a job server, as `ray start` makes it. Its workers have the environment of `s3`."""
    head = RayHead()
    yield head
    head.close()


@pytest.fixture(scope="session")
def own_ray() -> None:
    """Mark a test that starts its own Ray. A comment in the test says why it does not join `small_head`."""


@pytest.fixture(scope="session")
def run_job(small_head: SmallHead, pytestconfig: pytest.Config) -> RunJob:
    """A function that runs the main job to its end in this process, on `small_head`: `JoinedDriver.run`."""
    driver = JoinedDriver(small_head.driver_env)
    pytestconfig.stash[RAY].callback(driver.leave)
    return driver.run


@pytest.fixture(scope="session")
def start_job(small_head: SmallHead) -> StartJob:
    """A function that starts the main job as a process on `small_head`, with `env` added for driver and workers."""
    return lambda *args, env=None: RunningJob(*args, env=joined(small_head.driver_env, env))


@pytest.fixture(scope="session")
def run_alone(own_ray: None) -> RunJob:
    """A function that runs the main job to its end as a process with its own Ray, with `env` added for driver and workers."""
    return run_script


@pytest.fixture(scope="session")
def start_alone(own_ray: None) -> StartJob:
    """A function that starts the main job as a process with its own Ray, with `env` added for driver and workers."""
    return RunningJob


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small photographs and broken files (`tests.photos.REASONS`). Tests must not change it."""
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def luminance_labels(run_job: RunJob, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Labels:
    """Labels of `photos` from a run of the job: Parquet, local, shards of 4. Tests must not change them."""
    output = tmp_path_factory.mktemp("luminance")
    # Waves of two shards: tests compare these labels with those of runs that have a single wave.
    finished = run_job(
        *("--images", photos, "--output", output, "--teacher", "luminance", "--shard-size", 4, "--wave-size", 2)
    )
    assert finished.code == 0, finished
    return open_labels(str(output))


@pytest.fixture
def job_without_ray(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """A function that runs the main job in this process without Ray, and returns exit code, stdout and stderr."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def run(*args: object) -> tuple[int, str, str]:
        argv = list(map(str, args))
        code = COMMAND.main(argv, prog="pseudolabel.py")
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """A function that runs `da2ray …` in this process, and returns exit code, stdout and stderr."""

    def run(*args: object) -> tuple[int, str, str]:
        code = main([str(arg) for arg in args])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run
