"""The number of GETs that a file over an object costs. test_storage.py checks its bytes for each backend."""

import os
from pathlib import Path

import pytest

from da2ray.storage import StoreFile, open_store


def test_a_file_read_in_order_costs_a_get_for_each_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(100_000)
    store = open_store(str(tmp_path))
    store.put("f", data)
    ranges: list[tuple[int, int]] = []
    get_range = type(store).get_range
    monkeypatch.setattr(
        type(store),
        "get_range",
        lambda self, key, offset, length: ranges.append((offset, length)) or get_range(self, key, offset, length),
    )
    in_order = StoreFile(store, "f", block=30_000)
    assert b"".join(iter(lambda: in_order.read(1000), b"")) == data
    assert ranges == [(0, 30_000), (30_000, 30_000), (60_000, 30_000), (90_000, 10_000)]
    ranges.clear()
    footer_first = StoreFile(store, "f", block=30_000)
    footer_first.seek(-8, 2)
    assert footer_first.read(8) == data[-8:]
    footer_first.seek(50_000)
    assert footer_first.read(40_000) == data[50_000:90_000]
    assert ranges == [(99_992, 8), (50_000, 30_000), (80_000, 20_000)]
    ranges.clear()
    assert StoreFile(store, "f", block=30_000).read() == data
    assert ranges == [(0, 100_000)]
