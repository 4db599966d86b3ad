"""A separate decoding process gives the same pixels. If it dies or hangs, one image fails."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from da2ray.errors import OutageError, Reason, SampleError
from da2ray.images.decode import DecodeMode, decode_pixels, read_header
from da2ray.pipeline.stages import isolation
from da2ray.pipeline.stages.isolation import IsolatedAccess, within
from da2ray.sources import Cut, Sample
from tests.photos import REASONS
from tests.sources.packs import PackSource, write_packs

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


class Slow(PackSource):
    """A source whose second sample takes a second to read, every time."""

    def read(self, spec: bytes, *, concurrency: int, skip: int = 0) -> Iterator[Sample]:
        assert concurrency == 1, "a late read must be that of the sample that was asked for"
        for row, sample in enumerate(super().read(spec, concurrency=concurrency, skip=skip), start=skip):
            if row == 1:
                time.sleep(1)
            yield sample


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(isolation, "FETCH_SECONDS", 0.2)
    return write_packs(tmp_path / "packs", [4])


def spec_of(source: PackSource) -> bytes:
    (batch,) = source.shards(Cut(10, 1 << 40))
    return batch["spec"][0].as_py()


def test_a_sample_that_does_not_come_is_a_timeout_and_the_next_one_is_read(access: IsolatedAccess, slow: Path) -> None:
    source = Slow(str(slow), knows_members=True)
    samples = list(access.read(source, spec_of(source)))
    assert [sample.member.key for sample in samples] == [f"000.pack/{row}" for row in range(4)]
    bodies = [sample.body for sample in samples]
    assert [bodies[row] for row in (0, 2, 3)] == [bytes([0, row]) * 40 for row in (0, 2, 3)]
    assert isinstance(bodies[1], SampleError)
    assert bodies[1].reason is Reason.TIMEOUT


def test_a_late_sample_that_the_source_cannot_name_ends_the_run_and_fails_no_image(
    access: IsolatedAccess, slow: Path
) -> None:
    source = Slow(str(slow), knows_members=False)
    samples = access.read(source, spec_of(source))
    assert next(samples).member.key == "000.pack/0"
    with pytest.raises(OutageError, match="not known"):
        next(samples)


def test_within_gives_back_results_and_errors() -> None:
    assert within(5, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 / 0)
    with pytest.raises(TimeoutError):
        within(0.05, lambda: time.sleep(0.5))
