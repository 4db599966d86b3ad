"""What the tests of stores share."""

from collections.abc import Iterator

import pytest

from tests.fault_proxy import FaultProxy
from tests.s3_server import S3Server


@pytest.fixture(scope="module")
def proxy(s3: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3.endpoint) as made:
        yield made


@pytest.fixture(scope="module")
def bucket(s3: S3Server) -> str:
    return s3.create_bucket()
