"""What the tests of sources share."""

from collections.abc import Iterator

import pytest

from da2ray.pipeline.stages import evidence
from da2ray.sources import fetch, outage
from da2ray.sources.outage import Evidence
from da2ray.storage import open_store
from tests.fault_proxy import FaultProxy
from tests.s3_server import S3Server


@pytest.fixture(autouse=True)
def no_evidence(monkeypatch: pytest.MonkeyPatch) -> Evidence:
    """A process that has read nothing yet."""
    fresh = Evidence()
    for module in (outage, fetch, evidence):
        monkeypatch.setattr(module, "EVIDENCE", fresh)
    return fresh


@pytest.fixture(scope="module")
def bucket(s3: S3Server, request: pytest.FixtureRequest) -> str:
    """A bucket with the objects that the test file's `BODIES` lists, below `a`."""
    url = s3.create_bucket()
    store = open_store(url)
    for name, body in request.module.BODIES.items():
        store.put(f"a/{name}", body)
    return url


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy before the server; clients give up after a second."""
    monkeypatch.setattr(outage, "PROBE_RETRY_S", 0.5)
    monkeypatch.setenv("DA2RAY_RETRY_SECONDS", "1")
    with FaultProxy(s3.endpoint) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.endpoint)
        yield made
