"""With a store that fails, in every mode, the main job makes the same dataset as an undisturbed run."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import da2ray
from da2ray.errors import Status
from da2ray.storage import Store, open_store
from tests.fault_proxy import FaultProxy, Mode, Request
from tests.jobs import Finished, RunJob, StartJob, commits_of, count_commits
from tests.photos import write_crops
from tests.s3_server import S3Server

PHOTOS = 20
SHARDS = 5


@pytest.fixture(scope="module")
def bucket(s3: S3Server, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bucket with photographs and broken files under `photos`."""
    url = s3.create_bucket()
    store = open_store(f"{url}/photos")
    broken = [photos / name for name in ("corrupt.jpg", "empty.jpg", "tiny.png")]
    crops = write_crops(tmp_path_factory.mktemp("crops"), PHOTOS - len(broken))
    for path in [*crops.iterdir(), *broken]:
        store.put(path.name, path.read_bytes())
    return url


@pytest.fixture(scope="module")
def proxy(s3: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3.endpoint) as made:
        yield made


def label(
    run_job: RunJob, bucket: str, output: str, proxy: FaultProxy, client: str = "obstore", *, fresh: bool = False
) -> Finished:
    return run_job(*command(bucket, output, client), env={"AWS_ENDPOINT_URL": proxy.endpoint}, fresh=fresh)


def command(bucket: str, output: str, client: str = "obstore") -> list[object]:
    return [
        *("--images", f"{bucket}/photos", "--output", output, "--teacher", "luminance"),
        *("--shard-size", PHOTOS // SHARDS, "--storage-client", client),
    ]


@pytest.fixture(scope="module")
def undisturbed(run_job: RunJob, bucket: str) -> Store:
    output = f"{bucket}/undisturbed"
    finished = run_job(*command(bucket, output))
    assert finished.code == 0, finished
    return open_store(output)


def assert_same_dataset(store: Store, expected: Store) -> None:
    """Shard objects byte for byte, and the index without the objects' names, which hold a random attempt id.

    Fixed: libraries, instruction set, and the labelling actor's threads (its share of the machine's cores).
    """
    found, wanted = commits_of(store), commits_of(expected)
    assert sorted(found) == sorted(wanted) == list(range(SHARDS))
    for shard, commit in wanted.items():
        assert store.get(found[shard].object) == expected.get(commit.object), f"shard {shard}"
    labels = da2ray.open_labels(store.url)
    assert labels.index.drop_columns("object").equals(da2ray.open_labels(expected.url).index.drop_columns("object"))
    assert len(labels) == PHOTOS
    assert "unreadable" not in labels.index["reason"].to_pylist()
    for each in labels:
        assert (each.depth is not None) == (each.status == Status.LABELLED)


# tests/storage/test_storage_faults.py has each mode for each call of each client. Here the modes take turns in one run.
@pytest.mark.parametrize(
    ("modes", "client"),
    [
        (("slow_down", "truncate", "stall"), "obstore"),
        (("reset", "lost", "conflict"), "obstore"),
        (("reset", "lost"), "fsspec"),
    ],
)
def test_nothing_is_lost(
    run_job: RunJob, bucket: str, undisturbed: Store, proxy: FaultProxy, modes: tuple[Mode, ...], client: str
) -> None:
    output = f"{bucket}/{'-'.join(modes)}-{client}"
    proxy.set(*modes)
    finished = label(run_job, bucket, output, proxy, client)
    assert finished.code == 0, finished
    assert min(proxy.by_mode[mode] for mode in modes) >= 2, proxy.by_mode
    assert_same_dataset(open_store(output), undisturbed)


def test_a_store_that_stays_down_ends_the_job_which_goes_on_when_it_is_back(
    run_job: RunJob, start_job: StartJob, bucket: str, undisturbed: Store, proxy: FaultProxy
) -> None:
    output = f"{bucket}/down"
    store = open_store(output)
    proxy.set("none")
    job = start_job(*command(bucket, output), env={"AWS_ENDPOINT_URL": proxy.endpoint, "DA2RAY_RETRY_SECONDS": "2"})
    job.wait_until(lambda: count_commits(store) >= 1)
    proxy.set("down")
    ended = job.wait(60)
    committed = count_commits(store)
    assert committed < SHARDS, "down too late to show anything"
    assert ended.code == 75, ended
    lines = [line for line in ended.stderr.splitlines() if "a store failed" in line or "the same command" in line]
    assert 1 <= len(lines) <= 2, ended
    assert bucket in lines[0]
    assert "the same command" in lines[-1]
    assert "Traceback" not in ended.stdout + ended.stderr, ended.stderr
    for commit in commits_of(store).values():
        assert "unreadable" not in commit.rows["reason"].to_pylist()

    proxy.set("none")
    resumed = label(run_job, bucket, output, proxy)
    assert resumed.code == 0, resumed
    assert f"resuming: {committed} of {SHARDS} shards committed" in resumed.stdout
    assert_same_dataset(store, undisturbed)


@contextmanager
def refusing(proxy: FaultProxy, refuses: Callable[[Request], tuple[int, str] | None]) -> Iterator[None]:
    proxy.refuses = refuses
    try:
        yield
    finally:
        proxy.refuses = lambda _: None


def is_image(request: Request) -> bool:
    """Whether an image is read."""
    return request.method == "GET" and "/photos/" in request.target


@pytest.mark.parametrize("refusal", [(400, "ExpiredToken"), (403, "InvalidAccessKeyId")])
def test_credentials_that_expire_end_the_job_which_goes_on_with_new_ones(
    run_job: RunJob, bucket: str, undisturbed: Store, proxy: FaultProxy, refusal: tuple[int, str]
) -> None:
    output = f"{bucket}/expired-{refusal[1]}"
    proxy.set("none")
    served = itertools.count()

    def refuses(request: Request) -> tuple[int, str] | None:
        return refusal if is_image(request) and next(served) >= PHOTOS // 2 else None

    with refusing(proxy, refuses):
        ended = label(run_job, bucket, output, proxy)
    assert ended.code == 75, ended
    assert "renew the credentials" in ended.stderr
    for commit in commits_of(open_store(output)).values():
        assert not {"forbidden", "unreadable"} & set(commit.rows["reason"].to_pylist())
    resumed = label(run_job, bucket, output, proxy)
    assert resumed.code == 0, resumed
    assert_same_dataset(open_store(output), undisturbed)


def test_access_that_is_refused_from_the_start_is_not_resumable(
    run_job: RunJob, bucket: str, proxy: FaultProxy
) -> None:
    output = f"{bucket}/refused"
    proxy.set("none")
    with refusing(proxy, lambda request: (403, "AccessDenied") if is_image(request) else None):
        ended = label(run_job, bucket, output, proxy, fresh=True)  # its workers have read nothing yet
    assert ended.code == 2, ended
    assert "check the credentials" in ended.stderr
    assert not commits_of(open_store(output))
