"""Schedulers rely on exit codes: after 75 the same command may succeed later, after 2 it will fail again."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayTaskError
from rich.console import Console

from da2ray.commands.options import load
from da2ray.commands.pseudolabel import PseudolabelConfig
from da2ray.errors import Exit
from da2ray.labels.commits import commit_key
from da2ray.pipeline import run
from da2ray.pipeline.prepare import prepare
from da2ray.pipeline.run import create_dataset, stored_plan
from da2ray.plan.plan import Plan
from da2ray.storage import fsspec, open_store
from tests.fault_proxy import FaultProxy, Request
from tests.jobs import Command
from tests.photos import write_crops
from tests.s3_server import S3Server


@pytest.fixture(scope="module")
def proxy(s3: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3.endpoint) as made:
        yield made


@pytest.fixture(scope="module")
def bucket(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bucket with two photographs under `photos`, and manifests of them."""
    url = s3.create_bucket()
    store = open_store(url)
    for path in write_crops(tmp_path_factory.mktemp("crops"), 2).iterdir():
        store.put(f"photos/{path.name}", path.read_bytes())
    store.put("some.csv", b"uri\nphotos/0000.jpg\n")
    store.put("some.jsonl", b'{"uri": "photos/0000.jpg"}\n')
    rows = pa.BufferOutputStream()
    pq.write_table(pa.table({"uri": ["photos/0000.jpg"]}), rows)
    store.put("some.parquet", rows.getvalue().to_pybytes())
    return url


@pytest.fixture
def label(job_without_ray: Command) -> Command:
    """Run the job with a teacher that takes no time."""
    return lambda *args: job_without_ray(*args, "--teacher", "luminance")


def planned(*args: object) -> Plan:
    """The stored plan of a command, in an output without labels."""
    console = Console(quiet=True)
    job = prepare(load(PseudolabelConfig, [str(arg) for arg in (*args, "--teacher", "luminance")]), console)
    create_dataset(job)
    return stored_plan(job, console)


@pytest.fixture
def down(proxy: FaultProxy, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Make the store fail for requests with one of these methods and this text in their target."""
    monkeypatch.setattr(fsspec, "S3_RETRIES", 0)
    monkeypatch.setenv("DA2RAY_RETRY_SECONDS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)

    def fail(part: str, *methods: str) -> None:
        def applies(request: Request) -> bool:
            return part in request.target and (not methods or request.method in methods)

        proxy.set("down")
        proxy.applies = applies

    yield fail
    proxy.set("none")
    proxy.applies = lambda _: True


@pytest.mark.parametrize("client", ["obstore", "fsspec"])
@pytest.mark.parametrize(
    ("images", "part", "methods"),
    [
        ("photos", "photos", ()),
        ("some.csv", "some.csv", ()),
        ("some.csv", "some.csv", ("GET",)),
        ("some.jsonl", "some.jsonl", ("GET",)),
        ("some.parquet", "some.parquet", ("GET",)),
        ("photos", "dataset.json", ("GET",)),
        ("photos", "dataset.json", ("PUT",)),
        ("photos", "plans", ("GET", "HEAD")),
        ("photos", "plans", ("PUT",)),
        ("photos", "commits", ()),
    ],
)
def test_a_job_that_finds_its_store_down_may_be_run_again(
    label: Command,
    down: Callable[..., None],
    proxy: FaultProxy,
    bucket: str,
    tmp_path: Path,
    client: str,
    images: str,
    part: str,
    methods: tuple[str, ...],
) -> None:
    down(part, *methods)
    options = ("--images", f"{bucket}/{images}", "--output", f"{bucket}/{tmp_path.name}", "--storage-client", client)
    code, _, message = label(*options)
    assert proxy.faults.total(), "nothing failed, so nothing was shown"
    assert code == Exit.RESUMABLE, message
    error, then = message.splitlines()
    assert error.startswith("error: ")
    assert bucket in error
    assert "the same command again" in then


@pytest.mark.parametrize("what", ["status", "verify", "snapshots", "gc"])
def test_a_command_that_finds_its_store_down_may_be_run_again(
    command: Command, down: Callable[..., None], bucket: str, what: str
) -> None:
    down(bucket.rpartition("/")[2])
    code, _, message = command(what, f"{bucket}/labels")
    assert code == Exit.RESUMABLE, message
    assert "the same command again" in message


def test_a_corrupt_commit_stays_so_and_is_named(label: Command, tmp_path: Path) -> None:
    options = ("--images", write_crops(tmp_path / "images", 2), "--output", tmp_path / "labels")
    plan = planned(*options)
    commit = commit_key(plan.id, 0)
    open_store(str(tmp_path / "labels")).put(commit, b"half a comm")
    code, _, message = label(*options)
    assert code == Exit.USAGE
    assert message.startswith(f"error: {tmp_path}/labels/{commit}")
    assert f"da2ray repair {tmp_path}/labels" in message


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (GetTimeoutError("Get timed out"), Exit.RESUMABLE, "the cluster does not answer: Get timed out\n"),
        (ActorDiedError(), Exit.RESUMABLE, "workers died"),
        # A bug that keeps a teacher from loading is not the death of a worker.
        (ActorDiedError(RayTaskError("__init__", "no such name", NameError("x"), "ray", 1, "::1")), 70, "no such name"),
    ],
)
def test_what_ray_raises_is_not_taken_for_another_trouble(
    label: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, message: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(run, "label_all", fail)
    found, out, err = label("--images", write_crops(tmp_path / "images", 2), "--output", tmp_path / "labels")
    assert found == code
    assert message in out + err
    assert "a store failed" not in err


def test_an_embedded_ray_that_a_busy_machine_does_not_start_in_time_is_resumable(
    label: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*_: object, **__: object) -> None:
        # As ray._private.node says it, seen at a load of 50 on two cores.
        raise Exception("The current node timed out during startup. This could happen because ...")  # noqa: TRY002

    monkeypatch.setattr(ray, "init", late)
    monkeypatch.setattr(os, "environ", dict(os.environ))  # `connect` sets what workers inherit
    code, _, err = label("--images", write_crops(tmp_path / "images", 2), "--output", tmp_path / "labels")
    assert code == Exit.RESUMABLE
    assert "the cluster does not answer: an embedded Ray did not start within 30 seconds" in err
    assert "run the same command again" in err
    assert "Traceback" not in err
