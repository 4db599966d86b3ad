"""Refused credentials are not the images' fault: they make no rows, and the run ends with the right exit code."""

import pickle
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from da2ray.errors import Exit, NothingReadError, OutageError, Reason, SampleError, UserError
from da2ray.pipeline.stages import evidence
from da2ray.pipeline.stages.evidence import read_with_evidence
from da2ray.sources import Member
from da2ray.sources.base import Cut, Place, Sample
from da2ray.sources.fetch import fetch
from da2ray.sources.outage import Evidence
from da2ray.sources.prefix import PrefixSource
from da2ray.storage import fsspec, open_store
from da2ray.storage.open import Client
from tests.fault_proxy import FaultProxy, Request

BODIES = {f"{number}.jpg": f"image {number}".encode() for number in range(10)}
EXPIRED = [
    (400, "ExpiredToken"),
    (400, "TokenRefreshRequired"),
    (400, "InvalidToken"),
    (401, "Unauthorized"),
    (403, "InvalidAccessKeyId"),
    (403, "SignatureDoesNotMatch"),
    (403, "RequestTimeTooSkewed"),
    (403, "AccessDenied"),
]
FEW = [(400, "ExpiredToken"), (403, "AccessDenied")]
Body = bytes | SampleError


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsspec, "S3_RETRIES", 0)
    monkeypatch.setattr(evidence, "LATE_S", 0.1)


def members(root: str, names: list[str] | None = None) -> list[Member]:
    return [Member(name, f"{root}/a/{name}", None, None) for name in names or list(BODIES)]


def bodies(bucket: str, client: Client, concurrency: int = 2) -> dict[str, Body]:
    return {sample.member.key: sample.body for sample in fetch(members(bucket), concurrency, client)}


def asks_for(*names: str) -> Callable[[Request], bool]:
    return lambda request: request.method == "GET" and request.target.partition("?")[0].endswith(names)


def images(request: Request) -> bool:
    return request.method == "GET" and ".jpg" in request.target


ROLE = {"AWS_ROLE_ARN": "arn:aws:iam::1:role/reader", "AWS_WEB_IDENTITY_TOKEN_FILE": "/nowhere/token"}


PROGRAM = {"AWS_CONFIG_FILE": "config"}
"""A file that names a program whose answer is not credentials."""


@pytest.mark.parametrize("variables", [{"AWS_ACCESS_KEY_ID": "half"}, ROLE, PROGRAM], ids=["half", "role", "program"])
def test_credentials_that_cannot_be_had_fail_no_sample(
    bucket: str,
    client: Client,
    variables: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    (tmp_path / "config").write_text("[default]\ncredential_process = echo {}\n")
    monkeypatch.chdir(tmp_path)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    source = PrefixSource(bucket, client)
    with pytest.raises(UserError, match=r"token|AWS_SECRET_ACCESS_KEY|Version"):
        read_with_evidence(lambda: list(fetch(members(bucket), 1, client)), source, list, lambda _: False)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("refusal", EXPIRED)
def test_credentials_that_expire_end_the_reading_and_fail_no_sample(
    bucket: str, proxy: FaultProxy, client: Client, refusal: tuple[int, str]
) -> None:
    served = count()
    proxy.refuses = lambda request: refusal if images(request) and next(served) >= 4 else None
    read: list[Sample] = []
    with pytest.raises(OutageError, match=f"(?s){bucket}.*renew the credentials") as caught:
        read += fetch(members(bucket), 2, client)
    assert [sample.body for sample in read] == list(BODIES.values())[: len(read)]
    assert "\n" not in str(caught.value)
    assert Exit.of(caught.value) is Exit.RESUMABLE


@pytest.mark.parametrize("concurrency", [1, 16])
@pytest.mark.parametrize("refusal", FEW)
def test_access_that_was_never_given_fails_no_sample(
    bucket: str, proxy: FaultProxy, client: Client, refusal: tuple[int, str], concurrency: int
) -> None:
    proxy.refuses = lambda request: refusal if images(request) else None
    with pytest.raises(NothingReadError, match=bucket) as caught:
        bodies(bucket, client, concurrency)
    assert isinstance(caught.value.cause, PermissionError)
    assert pickle.loads(pickle.dumps(caught.value)).root == bucket  # noqa: S301


@pytest.mark.parametrize("refusal", [*FEW, (400, "InvalidArgument"), (503, "SlowDown")])
@pytest.mark.parametrize("names", [("0.jpg",), ("9.jpg",), ("0.jpg", "1.jpg", "8.jpg")])
def test_what_is_refused_for_one_object_is_its_row(
    bucket: str, proxy: FaultProxy, client: Client, refusal: tuple[int, str], names: tuple[str, ...]
) -> None:
    refused = asks_for(*names)
    proxy.refuses = lambda request: refusal if refused(request) else None
    read = bodies(bucket, client, concurrency=4)
    assert list(read) == list(BODIES)
    for name in names:
        error = read.pop(name)
        assert isinstance(error, SampleError)
        own = (400, "InvalidArgument"), (503, "SlowDown")
        assert error.reason is (Reason.UNREADABLE if refusal in own else Reason.FORBIDDEN)
    assert read == {name: body for name, body in BODIES.items() if name not in names}


def test_credentials_that_expire_between_two_answers_are_not_covered_by_the_earlier_one(
    bucket: str, proxy: FaultProxy, client: Client
) -> None:
    """One object is forbidden, which the object before proves; then all are: that proof is too old."""
    expired = False

    def refuses(request: Request) -> tuple[int, str] | None:
        nonlocal expired
        expired = expired or asks_for("3.jpg")(request)
        return (403, "AccessDenied") if images(request) and (expired or asks_for("1.jpg")(request)) else None

    proxy.refuses = refuses
    reading = fetch(members(bucket), 1, client)
    assert [isinstance(next(reading).body, SampleError) for _ in range(3)] == [False, True, False]
    with pytest.raises(OutageError):
        next(reading)


def test_an_object_that_was_deleted_since_proves_nothing(bucket: str, proxy: FaultProxy, client: Client) -> None:
    """Everything is refused, and the last object that was read is gone: a 404 is not an answer that access works."""
    store = open_store(bucket)
    store.put("a/gone.jpg", b"gone")
    names = ["0.jpg", "gone.jpg", "2.jpg"]
    reading = fetch(members(bucket, names), 1, client)
    assert [next(reading).body for _ in range(2)] == [BODIES["0.jpg"], b"gone"]
    store.delete(["a/gone.jpg"])
    proxy.refuses = lambda request: (403, "AccessDenied") if asks_for("0.jpg", "2.jpg")(request) else None
    with pytest.raises(OutageError):
        next(reading)


@pytest.mark.parametrize("refusal", [(403, "AccessDenied"), (503, "SlowDown"), (400, "ExpiredToken")])
def test_a_shard_whose_objects_are_all_refused_is_judged_by_other_shards(
    bucket: str, proxy: FaultProxy, client: Client, refusal: tuple[int, str]
) -> None:
    mine = ["1.jpg", "2.jpg"]
    refused = asks_for(*mine)
    proxy.refuses = lambda request: refusal if refused(request) else None
    read = shard(bucket, client, mine, others=["1.jpg", "7.jpg"])
    assert all(isinstance(body, SampleError) for body in read)


@pytest.mark.parametrize(
    ("refusal", "was_readable", "ends"),
    [
        ((403, "AccessDenied"), False, UserError),
        ((403, "AccessDenied"), True, OutageError),
        ((400, "ExpiredToken"), False, UserError),
        ((400, "ExpiredToken"), True, OutageError),
        ((503, "SlowDown"), False, OutageError),
        ((501, "NotImplemented"), True, UserError),
    ],
)
def test_a_process_that_can_read_nothing_ends_the_run_by_what_the_run_could(
    bucket: str,
    proxy: FaultProxy,
    client: Client,
    refusal: tuple[int, str],
    was_readable: bool,
    ends: type[Exception],
) -> None:
    proxy.refuses = lambda request: refusal if images(request) else None
    with pytest.raises(ends, match=bucket):
        shard(bucket, client, ["1.jpg"], others=["7.jpg"], was_readable=was_readable)


def shard(bucket: str, client: Client, mine: list[str], others: list[str], *, was_readable: bool = False) -> list[Body]:
    """The bodies of a shard as a read task gets them."""
    source = PrefixSource(f"{bucket}/a", client)
    (all_of_them,) = source.shards(Cut(shard_size=len(BODIES), shard_bytes=1 << 20))
    spec = all_of_them["spec"][0].as_py()

    def chosen(names: list[str]) -> bytes:
        return source.select([(spec, [Place(list(BODIES).index(name)) for name in names])])

    return read_with_evidence(
        lambda: [sample.body for sample in source.read(chosen(mine), concurrency=4)],
        source,
        lambda: [chosen([name]) for name in others],
        lambda scheme: was_readable and scheme == "s3",
    )


def test_the_first_object_of_a_scheme_is_told_once(bucket: str, client: Client, no_evidence: Evidence) -> None:
    told: list[str] = []
    no_evidence.on_first = told.append
    for _ in range(2):
        bodies(bucket, client)
    assert told == ["s3"]


def test_a_listing_that_is_refused_later_may_be_tried_again(bucket: str, proxy: FaultProxy, client: Client) -> None:
    source = PrefixSource(f"{bucket}/a", client)
    proxy.refuses = lambda _: (400, "ExpiredToken")
    with pytest.raises(UserError, match="ExpiredToken"):
        list(source.members())
    proxy.refuses = lambda _: None
    assert next(source.members()).num_rows == len(BODIES)
    proxy.refuses = lambda _: (400, "ExpiredToken")
    with pytest.raises(OutageError, match="renew the credentials"):
        list(source.members())
