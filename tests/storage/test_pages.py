"""A parallel listing gives what a serial one gives, whatever the store makes of its order and of "start after"."""

import random
import threading
import time
from bisect import bisect_right
from collections.abc import Sequence

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from da2ray.errors import StoreError
from da2ray.storage import objects
from da2ray.storage.base import listing
from da2ray.storage.pages import Page, list_pages
from tests.any_key_s3 import any_key_s3


class Pages:
    """A listing of `keys` in pages, as `list_pages` asks for them.

    Args:
        after: what the store makes of "start after": "honoured", "ignored", "inclusive" or "refused".
        delay: seconds that a request takes, times a random share.
    """

    def __init__(
        self, keys: Sequence[str], size: int, after: str = "honoured", seed: int = 0, delay: float = 0
    ) -> None:
        self.keys, self.size, self.after, self.delay = keys, size, after, delay
        self.asked = self.most = self._now = 0
        self._lock = threading.Lock()
        self._random = random.Random(seed)  # noqa: S311
        self.ordered = list(keys) == sorted(keys)

    def __call__(self, after: str | None, token: str | None) -> Page:
        with self._lock:
            self.asked += 1
            self._now += 1
            self.most = max(self.most, self._now)
            wait = self._random.random() * self.delay
            empty = self._random.random() < 0.1
        time.sleep(wait)
        with self._lock:
            self._now -= 1
        if after is not None and self.after == "refused":
            raise StoreError("start after is not served")
        begin = int(token) if token else self._begin(after)
        keys = self.keys[begin : begin + (0 if empty else self.size)]
        more = begin + len(keys) < len(self.keys)
        rows = listing(list(keys), [len(key) for key in keys], [None] * len(keys))
        return Page(keys, rows, str(begin + len(keys)) if more else None)

    def _begin(self, after: str | None) -> int:
        if after is None or self.after == "ignored":
            return 0
        if self.ordered:
            place = bisect_right(self.keys, after)
        else:  # A store with an order of its own begins behind the last key that it puts before the text.
            place = next(
                (place for place, key in enumerate(self.keys) if key.replace("-", "~") > after.replace("-", "~")), 10**9
            )
        return place - (self.after == "inclusive" and 0 < place <= len(self.keys))


def listed(pages: Pages, prefix: str = "", requests: int = 8) -> list[str]:
    return [key for rows in list_pages(pages, prefix, requests) for key in rows["key"].to_pylist()]


key = st.one_of(
    st.integers(0, 3000).map("img_{:07d}.jpg".format),
    st.text("0123456789abcdef", min_size=2, max_size=4).map("a/{}/x.jpg".format),
    st.text("ab-/.\u00fc\ud7ff\ue000\U0010ffff", max_size=6).map("a{}".format),
)


@given(
    keys=st.sets(key, max_size=120),
    size=st.integers(1, 7),
    after=st.sampled_from(["honoured", "honoured", "honoured", "ignored", "inclusive", "refused"]),
    requests=st.integers(1, 9),
    seed=st.integers(0, 99),
    slow=st.booleans(),
)
@settings(max_examples=150, deadline=None)
@example(keys={f"{number:04d}" for number in range(500)}, size=3, after="honoured", requests=8, seed=0, slow=True)
def test_a_parallel_listing_is_the_serial_one(
    keys: set[str], size: int, after: str, requests: int, seed: int, slow: bool
) -> None:
    in_order = sorted(keys)
    pages = Pages(in_order, size, after, seed, delay=0.0005 if slow else 0)
    assert listed(pages, requests=requests) == in_order
    assert pages.most <= requests + 1


@given(keys=st.sets(key, max_size=120), size=st.integers(1, 7), seed=st.integers(0, 99), shuffled=st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_store_with_an_order_of_its_own_is_listed_whole(keys: set[str], size: int, seed: int, shuffled: bool) -> None:
    own_order = sorted(keys, key=lambda key: key.replace("-", "~"))
    if shuffled:
        random.Random(seed).shuffle(own_order)  # noqa: S311
    assert listed(Pages(own_order, size, seed=seed)) == own_order


@pytest.mark.parametrize("names", ["img_{:08d}.jpg", "{:05x}/{:x}.jpg", "a/b/c/2024-{:07d}"])
def test_a_long_listing_is_asked_for_in_parallel_and_little_is_asked_twice(names: str) -> None:
    keys = sorted(names.format(number * 7919 % 1_000_003, number) for number in range(60_000))
    pages = Pages(keys, 100, delay=0.004)
    pages._random.random = lambda: 0.5  # type: ignore[method-assign] - no empty pages
    assert listed(pages, requests=8) == keys
    assert pages.most == 8
    assert pages.asked < 1.35 * len(keys) / 100


def test_an_error_is_raised_behind_the_keys_before_it() -> None:
    keys = [f"{number:04d}" for number in range(400)]
    pages = Pages(keys, 4)

    def ask(after: str | None, token: str | None) -> Page:
        page = pages(after, token)
        if "0200" in page.keys:
            raise StoreError("broken")
        return page

    seen: list[str] = []
    with pytest.raises(StoreError, match="broken"):
        seen.extend(key for rows in list_pages(ask, "", 8) for key in rows["key"].to_pylist())
    assert seen == keys[: len(seen)]


def test_a_short_listing_is_not_probed() -> None:
    pages = Pages([f"{number:04d}" for number in range(8)], 4)
    pages._random.random = lambda: 0.5  # type: ignore[method-assign]
    assert len(listed(pages)) == 8
    assert pages.asked == 2


def test_a_listing_that_is_left_early_asks_for_no_more() -> None:
    pages = Pages([f"{number:06d}" for number in range(100_000)], 10, delay=0.001)
    rows = list_pages(pages, "", 8)
    assert isinstance(next(rows), pa.RecordBatch)
    rows.close()
    time.sleep(0.05)
    asked = pages.asked
    time.sleep(0.1)
    assert pages.asked == asked


def test_obstores_listing_in_parallel_is_the_serial_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With S3 in Google's place: obstore sends both the same requests."""
    monkeypatch.setattr(objects, "LIST_PAGE", 4)
    with any_key_s3({f"p/{number * 37 % 400:03d}/a.jpg": b"x" for number in range(300)} | {"q": b"y"}) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        in_order = sorted(key.removeprefix("p/") for key in server.objects if key != "q")
        store = objects.ObjectStore("s3://b/p")
        assert [key for rows in store.list() for key in rows["key"].to_pylist()] == in_order
        assert any("start-after" in target for _, target in server.asked)
        assert [key for rows in store.list("0") for key in rows["key"].to_pylist()] == []
        assert [rows.num_rows for rows in store.list("007")] == [1]
