"""Whatever a file holds, it gets one row, in bounded time and memory, and the job goes on."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

import da2ray
from da2ray.errors import Reason, SampleError, Status
from da2ray.images.decode import DecodeMode, Limits, admit, decode_pixels, read_header
from da2ray.pipeline.stages.arena import Arena
from da2ray.pipeline.stages.decoding import Decoding
from da2ray.pipeline.stages.reading import Reading
from da2ray.plan.plan import make_plan
from da2ray.sources import open_source
from da2ray.storage import open_store
from da2ray.teachers.depth_anything.size import OfficialSize
from tests.fuzz import write_fuzz
from tests.jobs import Finished, RunningJob, StartJob

FILES, SEED, SHARD = 2000, 0, 256
FILE_SECONDS = 5.0
"""CPU time of the slowest file: 188 megapixels that a header of 2 kB declares take 1.4 s."""
BYTES_A_PIXEL = 20
"""The most memory that a decoder may take for a declared pixel: 18 for WebP (see `Limits.max_pixels`), and noise."""
FILE_BYTES = 64 << 20
"""The memory that any file may take besides: a TIFF of any size may have tiles of 4 megapixels, each with its buffers."""
JOB_BYTES = (5 << 30) + (os.cpu_count() or 1) * (300 << 20)
"""Peak of all processes of a job. Measured: 3.3 GB on 2 cores. Ray and torch take 1.4 GB of them with next to no input. Two
copies of a shard with 300 MB of pixels, label buffers and the object store take the rest. A bomb's pixels would be 10.8 GB."""
ALLOWED = set(Reason) - {
    *(Reason.CRASHED, Reason.TIMEOUT, Reason.OUT_OF_MEMORY, Reason.TEACHER_ERROR, Reason.NON_FINITE),
    *(Reason.NOT_FOUND, Reason.FORBIDDEN, Reason.UNREADABLE, Reason.GONE),
}
"""The reasons that a file can have if it exists and can be read."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz")
    names = write_fuzz(path, FILES, SEED)
    assert len(names) == len(set(names)) == FILES
    assert names == sorted(names)
    return path


def check_reasons(statuses: Counter[str], reasons: Counter[str]) -> None:
    """Check that the files cover every class that a file can have, and that many of them are still whole."""
    assert set(statuses) == set(Status)
    assert set(map(Reason, reasons)) == ALLOWED
    assert statuses[Status.LABELLED] > FILES // 4
    assert reasons[Reason.CORRUPT] > FILES // 10 < reasons[Reason.TRUNCATED]


def test_the_same_seed_gives_the_same_files(folder: Path, tmp_path: Path) -> None:
    # Fixed: this machine's encoders.
    again = write_fuzz(tmp_path, 700, SEED)
    assert again == sorted(path.name for path in folder.iterdir())[:700]
    assert all((tmp_path / name).read_bytes() == (folder / name).read_bytes() for name in again)
    other = write_fuzz(tmp_path / "other", 700, SEED + 1)
    assert again != other


# ------------------------------------------------------------------------------------------------------- one by one


def measure(folder: Path) -> None:
    """Decode each file both ways, and print a line of JSON for each: the outcome, the CPU time and the peak memory."""
    size_rule, limits = OfficialSize(), Limits()
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        for mode in DecodeMode:
            declared, outcome = 0, "pixels"
            before = _rewind_peak()
            start = time.process_time()
            try:
                header = read_header(data)
                size = admit(header, size_rule, limits)
                declared = header.width * header.height
                pixels = decode_pixels(data, header, size, mode)
                assert pixels.dtype == np.uint8
                assert pixels.ndim == 3
                if mode is DecodeMode.EXACT:
                    assert pixels.shape == (header.height, header.width, 3)
                del pixels
            except SampleError as error:
                outcome = error.reason.value
            seconds = time.process_time() - start
            line = {"file": path.name, "mode": mode, "outcome": outcome, "declared": declared}
            print(json.dumps(line | {"seconds": seconds, "bytes": _memory("VmHWM") - before}), flush=True)


def _rewind_peak() -> int:
    """Make the kernel begin a new peak, and return the memory that is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(name: str) -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) << 10


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_each_file_gives_pixels_or_its_reason_in_bounded_time_and_memory(folder: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", f"from tests.pipeline.test_fuzz import *; measure(Path({str(folder)!r}))"],
        # Memory that malloc keeps for later would hide how much the next file takes.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    lines = [json.loads(line) for line in finished.stdout.splitlines()]
    assert finished.returncode == 0, (lines[-1:], finished.stderr[-2000:])
    assert len(lines) == 2 * FILES
    slow = [one for one in lines if one["seconds"] > FILE_SECONDS]
    large = [one for one in lines if one["bytes"] > one["declared"] * BYTES_A_PIXEL + FILE_BYTES]
    assert not slow + large
    for mode in DecodeMode:
        outcomes = Counter(one["outcome"] for one in lines if one["mode"] == mode)
        check_reasons(
            Counter(Reason(o).status if o != "pixels" else Status.LABELLED for o in outcomes.elements()),
            Counter({outcome: count for outcome, count in outcomes.items() if outcome != "pixels"}),
        )


def test_a_read_task_gives_every_file_its_row(folder: Path, tmp_path: Path) -> None:
    source = open_source(str(folder))
    store = open_store(str(tmp_path))
    plan = make_plan(source, store, shard_size=SHARD, limit=None, fingerprint="f")
    reading = Reading(source, OfficialSize(), Limits(), Decoding(DecodeMode.SCALED), batch_size=16)
    arena, seen = Arena(), []
    for shard in plan.shards(np.arange(len(plan))):
        block = reading.read(shard.number, shard.spec(store), arena)
        samples = [sample for row in block["samples"].to_pylist() for sample in row]
        seen += sorted(samples, key=lambda sample: sample["row"])
    assert [sample["key"] for sample in seen] == sorted(path.name for path in folder.iterdir())
    check_reasons(
        Counter(sample["status"] for sample in seen), Counter(sample["reason"] for sample in seen if sample["reason"])
    )


# --------------------------------------------------------------------------------------------------------- the job


def test_the_job_labels_every_good_file_and_gives_a_reason_for_each_other_one(
    start_alone: StartJob, folder: Path, tmp_path: Path
) -> None:
    # Its own Ray, because the peak counts all processes of the job, the object store among them.
    job = start_alone(
        *("--images", folder, "--output", tmp_path / "labels", "--teacher", "luminance", "--shard-size", SHARD)
    )
    finished, peak = run_and_measure(job)
    assert finished.code == 0, finished
    assert peak < JOB_BYTES
    labels = da2ray.open_labels(str(tmp_path / "labels"))
    rows = labels.index.to_pylist()
    assert [row["key"] for row in rows] == sorted(path.name for path in folder.iterdir())
    reasons = Counter(row["reason"] for row in rows if row["reason"])
    check_reasons(Counter(row["status"] for row in rows), reasons)
    for row, label in zip(rows, labels, strict=True):
        assert row["status"] == (Reason(row["reason"]).status if row["reason"] else Status.LABELLED)
        assert (label.depth is None) == bool(row["reason"])
        assert bool(row["message"]) == bool(row["reason"])
        if label.depth is not None:
            assert label.depth.shape == (row["network_height"], row["network_width"])
            assert np.isfinite(label.depth).all()


def run_and_measure(job: RunningJob) -> tuple[Finished, int]:
    """How the job ended, and the peak memory of it and all processes that it started. Shared pages count once."""
    driver, peak = psutil.Process(job._process.pid), 0
    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(job.wait)
        while not ending.done():
            peak = max(peak, sum(_shares(driver)))
            time.sleep(0.2)
        return ending.result(), peak


def _shares(driver: psutil.Process) -> Iterator[int]:
    try:
        processes = [driver, *driver.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in processes:
        try:
            yield process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
