"""The files in runs/ read back as written, a missing file leaves its part empty, and errors name damaged files."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from da2ray.errors import CorruptError
from da2ray.labels.runs import (
    RunProgress,
    SampleCounts,
    ShardCounts,
    new_run_name,
    newest_progress,
    read_runs,
    write_config,
    write_progress,
)
from da2ray.storage import Store, open_store

START = datetime(2026, 11, 25, 12, 0, 0, 250_000, tzinfo=UTC)
OLD, NEW = "20261125T120000Z-bbbbbb", "20261126T120000Z-aaaaaa"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def progress(run: str) -> RunProgress:
    end = START + timedelta(seconds=30)
    return RunProgress(
        run=run,
        state="labelled",
        updated=end,
        elapsed_seconds=30.0,
        samples=SampleCounts(total=10, exact=True, done=10, this_run=6),
        shards=ShardCounts(total=2, done=2, this_run=1, in_flight=0),
        by_status={"failed": 1, "labelled": 5},
        by_reason={"truncated": 1},
        bytes_out=1234,
        images_per_second=0.2,
        eta_seconds=None,
        teacher_actors=1,
        teacher_busy_share=0.5,
        history=((START, 0), (end, 6)),
    )


def test_what_a_run_writes_is_read_back_oldest_first(store: Store) -> None:
    for name in (NEW, OLD):
        write_config(store, name, {"teacher": "luminance"})
        write_progress(store, progress(name))
    assert [(run.name, run.config, run.progress) for run in read_runs(store)] == [
        (name, {"teacher": "luminance"}, progress(name)) for name in (OLD, NEW)
    ]
    assert newest_progress(store) == progress(NEW)


def test_a_run_that_ended_early_has_what_it_wrote(store: Store) -> None:
    assert (read_runs(store), newest_progress(store)) == ([], None)
    write_progress(store, progress(OLD))
    write_config(store, NEW, {"teacher": "luminance"})
    old, new = read_runs(store)
    assert (old.config, new.progress) == ({}, None)
    assert newest_progress(store) == progress(OLD)


def test_a_configuration_is_stored_without_its_credentials(store: Store) -> None:
    write_config(store, OLD, {"images": "https://user:secret@host/list.csv?sig=secret", "weights": ["s3://a/b"]})
    assert read_runs(store)[0].config == {"images": "https://host/list.csv", "weights": ["s3://a/b"]}


def test_times_keep_their_milliseconds_and_zone_in_json(store: Store, tmp_path: Path) -> None:
    write_progress(store, progress(OLD))
    stored = json.loads((tmp_path / "runs" / OLD / "progress.json").read_text())
    assert stored["updated"] == "2026-11-25T12:00:30.250+00:00"
    assert stored["history"][0] == ["2026-11-25T12:00:00.250+00:00", 0]


@pytest.mark.parametrize("file", ["config", "progress"])
def test_a_damaged_file_is_named(store: Store, file: str) -> None:
    store.put(f"runs/{OLD}/{file}.json", b'{"run": ')
    with pytest.raises(CorruptError, match=rf"runs/{OLD}/{file}\.json is not the"):
        read_runs(store)


def test_names_of_runs_sort_by_age_and_differ() -> None:
    assert new_run_name() != new_run_name()
    assert f"{datetime.now(UTC) - timedelta(days=1):%Y%m%dT%H%M%SZ}-ffffff" < new_run_name()
