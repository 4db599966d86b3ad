"""A decoding process of its own gives the same pixels, and its death or sleep costs one image."""

import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from da2ray.errors import Reason, SampleError
from da2ray.images.decode import DecodeMode, decode_pixels, read_header
from da2ray.pipeline.stages import isolation
from da2ray.pipeline.stages.isolation import IsolatedAccess, within
from da2ray.sources.base import Member
from tests.photos import REASONS

POISON = Path(__file__).parents[2] / "poison"
SIZE = (518, 518)


@pytest.fixture
def access(monkeypatch: pytest.MonkeyPatch) -> Iterator[IsolatedAccess]:
    monkeypatch.syspath_prepend(str(POISON))
    access = IsolatedAccess(timeout=3)
    yield access
    access.close()


def decode(access: IsolatedAccess, data: bytes) -> np.ndarray:
    return access.decode(data, read_header(data), SIZE, DecodeMode.EXACT)


def test_pixels_and_errors_are_those_of_decoding_here(access: IsolatedAccess, photos: Path) -> None:
    for name, reason in REASONS.items():
        data = (photos / name).read_bytes()
        if reason is None:
            expected = decode_pixels(data, read_header(data), SIZE, DecodeMode.EXACT)
            np.testing.assert_array_equal(decode(access, data), expected)
        elif reason in {Reason.CORRUPT, Reason.TRUNCATED}:
            with pytest.raises(SampleError) as caught:
                decode(access, data)
            assert caught.value.reason is reason


@pytest.mark.parametrize(("what", "reason"), [("segfault", Reason.CRASHED), ("lock", Reason.TIMEOUT)])
def test_a_process_that_dies_or_hangs_is_replaced(
    access: IsolatedAccess, photos: Path, what: str, reason: Reason
) -> None:
    good = (photos / "astronaut.jpg").read_bytes()
    expected = decode(access, good)
    with pytest.raises(SampleError) as caught:
        decode(access, good + b"POISON:" + what.encode())
    assert caught.value.reason is reason
    np.testing.assert_array_equal(decode(access, good), expected)


def test_no_process_is_left_behind(photos: Path) -> None:
    access = IsolatedAccess(timeout=3)
    decode(access, (photos / "astronaut.jpg").read_bytes())
    process = access._process
    assert isinstance(process, subprocess.Popen)
    access.close()
    assert process.poll() is not None


@pytest.mark.parametrize("trouble", ["kill -9 $$", "exec sleep 60"])
def test_a_process_that_does_not_start_is_started_again(
    access: IsolatedAccess, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    python, tried = tmp_path / "python", tmp_path / "tried"
    first = f"if [ ! -e {tried} ]; then touch {tried}; {trouble}; fi"
    python.write_text(f'#!/bin/sh\n{first}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(isolation, "START_SECONDS", 10)
    data = (photos / "astronaut.jpg").read_bytes()
    expected = decode_pixels(data, read_header(data), SIZE, DecodeMode.EXACT)
    np.testing.assert_array_equal(decode(access, data), expected)
    assert tried.exists()


def test_where_no_process_starts_no_image_is_to_blame(
    access: IsolatedAccess, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(BaseException):
        pass

    def end_process() -> None:
        raise Ended

    monkeypatch.setattr(isolation, "end_process", end_process)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(Ended):
        decode(access, (photos / "astronaut.jpg").read_bytes())


def test_a_body_that_does_not_come_is_a_timeout_and_the_next_one_is_read(
    access: IsolatedAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "FETCH_SECONDS", 0.2)

    class Slow:
        def fetch(self, members: Iterable[Member], _concurrency: int) -> Iterator[tuple[Member, bytes]]:
            for member in members:
                if member.key == "slow":
                    time.sleep(1)
                yield member, b"body"

    members = [Member(key, key, None, None) for key in ("a", "slow", "b")]
    fetched = [body for _, body in access.fetch(Slow(), members)]
    assert (fetched[0], fetched[2]) == (b"body", b"body")
    assert fetched[1].reason is Reason.TIMEOUT


def test_within_gives_back_results_and_errors() -> None:
    assert within(5, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 / 0)
    with pytest.raises(TimeoutError):
        within(0.05, lambda: time.sleep(0.5))
