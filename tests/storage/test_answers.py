"""Both clients classify a store's answers alike: unavailable if waiting may help, a permission error if access is refused, else
rejected at once.
"""

import time
from collections.abc import Callable, Iterator

import pytest

from da2ray.errors import Exit, RejectedError, UnavailableError, UserError
from da2ray.labels.dataset import create_or_open
from da2ray.storage import Store, aws, fsspec, open_store
from da2ray.storage.open import Client
from tests.fault_proxy import FaultProxy
from tests.labels.test_dataset import info

Answer = tuple[int, str]
LASTING: list[Answer] = [
    (501, "NotImplemented"),
    (400, "InvalidArgument"),
    (400, "InvalidRequest"),
    (405, "MethodNotAllowed"),
    (301, "PermanentRedirect"),
    (400, "AuthorizationHeaderMalformed"),
    (400, "IllegalLocationConstraintException"),
    (507, "InsufficientStorage"),
    (413, "EntityTooLarge"),
]
PASSING: list[Answer] = [
    (500, "InternalError"),
    (503, "SlowDown"),
    (502, "BadGateway"),
    (504, "GatewayTimeout"),
    (429, "TooManyRequests"),
    (400, "RequestTimeout"),
]
REFUSED: list[Answer] = [
    (400, "ExpiredToken"),
    (401, "Unauthorized"),
    (403, "RequestTimeTooSkewed"),
    (403, "AccessDenied"),
]


@pytest.fixture
def refused_store(
    bucket: str, proxy: FaultProxy, client: Client, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Answer], Store]]:
    """A store that gives one answer to every request."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    monkeypatch.setattr(fsspec, "S3_RETRIES", 0)

    def opened(answer: Answer, retry_s: float = 20) -> Store:
        proxy.refuses = lambda _: answer
        return open_store(f"{bucket}/labels", client, retry_s)

    yield opened
    proxy.refuses = lambda _: None


def calls(store: Store) -> list[Callable[[], object]]:
    return [
        lambda: store.get("k"),
        lambda: store.get_range("k", 0, 1),
        lambda: store.put("k", b"x"),
        lambda: store.create("k", b"x"),
        lambda: next(store.list(), None),
    ]


@pytest.mark.parametrize("answer", [*LASTING, *REFUSED])
def test_what_waiting_cannot_mend_is_told_at_once_with_its_cause(
    refused_store: Callable[..., Store], answer: Answer
) -> None:
    store = refused_store(answer)
    kind = PermissionError if answer in REFUSED else RejectedError
    began = time.monotonic()
    for call in calls(store):
        with pytest.raises(kind, match=f"(?s){store.url}.*({answer[1]}|region)") as caught:
            call()
        assert Exit.of(caught.value) is Exit.USAGE
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("answer", PASSING)
def test_what_waiting_can_mend_is_unavailable(refused_store: Callable[..., Store], answer: Answer) -> None:
    for call in calls(refused_store(answer, retry_s=0)):
        with pytest.raises(UnavailableError, match=f"{answer[1]}|no answer in time"):
            call()


@pytest.mark.parametrize("answer", [(301, "PermanentRedirect"), (400, "AuthorizationHeaderMalformed")])
def test_a_wrong_region_says_what_to_set(refused_store: Callable[..., Store], answer: Answer) -> None:
    with pytest.raises(RejectedError, match="AWS_REGION"):
        refused_store(answer).get("k")


def test_a_panic_of_obstore_is_an_error_of_the_store(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make obstore panic. Its class of panics is a BaseException, which `except Exception` does not catch."""
    monkeypatch.setattr(aws, "_checked_endpoint", lambda _, url: url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9")
    with pytest.raises(RejectedError, match=bucket) as caught:
        open_store(bucket, "obstore", 0).get("k")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("answer", [(501, "NotImplemented"), (400, "InvalidArgument"), (405, "MethodNotAllowed")])
def test_a_store_without_conditional_create_cannot_hold_a_dataset(
    bucket: str, proxy: FaultProxy, client: Client, monkeypatch: pytest.MonkeyPatch, answer: Answer
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    proxy.refuses = lambda request: answer if request.creates else None
    try:
        with pytest.raises(UserError, match=f"(?s){answer[1]}.*conditional creates"):
            create_or_open(open_store(f"{bucket}/{client}", client, 20), info())
    finally:
        proxy.refuses = lambda _: None
