"""What the tests of sources share."""

import pytest

from da2ray.pipeline.stages import evidence
from da2ray.sources import fetch, outage
from da2ray.sources.outage import Evidence


@pytest.fixture(autouse=True)
def no_evidence(monkeypatch: pytest.MonkeyPatch) -> Evidence:
    """A process that has read nothing yet."""
    fresh = Evidence()
    for module in (outage, fetch, evidence):
        monkeypatch.setattr(module, "EVIDENCE", fresh)
    return fresh
