"""The runs/ folder of a dataset: for each run its configuration and how far it came. FORMAT.md describes both files.

    runs/<run>/config.json      the options of the run, without credentials; written before its first shard
    runs/<run>/progress.json    rewritten every few seconds, and a last time when the run ends

A name begins with the time at which its run began, so names sort by age. A run that ended before it wrote a file lacks it.
"""

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from pydantic import AwareDatetime, PlainSerializer, TypeAdapter

from da2ray.labels.stored import THREADS, Stored, broken, intact, read_json
from da2ray.parallel import look_ahead
from da2ray.storage import Store, redacted

_FILE: Final = re.compile(r"runs/[^/]+/(?:config|progress)\.json")
_CONFIG: Final = TypeAdapter(dict[str, Any])
_REMEDY: Final = "delete it, no label depends on it (`da2ray repair` does so too)"

# Rates are taken between neighbouring points: whole seconds would change those of a short run by half.
Moment = Annotated[AwareDatetime, PlainSerializer(lambda at: at.isoformat(timespec="milliseconds"), when_used="json")]
"""A time in UTC, in JSON as ISO 8601 with milliseconds."""


class _Counts(Stored):
    """Samples or shards of the plan.

    Attributes:
        total: in the plan.
        done: committed by this run and those before it.
        this_run: done by this run.
    """

    total: int
    done: int
    this_run: int


class SampleCounts(_Counts):
    """Samples of the plan. `exact` is False if the source did not know their number when it was planned: then `total` is an
    estimate, as is the part of `done` that earlier runs committed.
    """

    exact: bool


class ShardCounts(_Counts):
    """Shards of the plan; `in_flight` are begun and not yet committed."""

    in_flight: int


class RunProgress(Stored):
    """What progress.json holds.

    Attributes:
        state: `running`, what the run does while it stops, or how it ended: `labelled`, `stopped`, `failed`.
        by_status, by_reason, bytes_out: of this run.
        images_per_second: over the last minute.
        eta_seconds: None if the pace is not known.
        teacher_actors: heard of lately.
        teacher_busy_share: 0 to 1; None before the first micro-batch.
        history: pairs of a time and the images that this run had done by then, ascending, from its start to `updated`.
    """

    run: str
    state: str
    updated: Moment
    elapsed_seconds: float
    samples: SampleCounts
    shards: ShardCounts
    by_status: dict[str, int]
    by_reason: dict[str, int]
    bytes_out: int
    images_per_second: float
    eta_seconds: int | None
    teacher_actors: int
    teacher_busy_share: float | None
    history: tuple[tuple[Moment, int], ...]


@dataclass(frozen=True, slots=True)
class Run:
    """A run as the dataset remembers it; `config` is empty and `progress` None if the run wrote no such file."""

    name: str
    config: Mapping[str, Any]
    progress: RunProgress | None


def new_run_name() -> str:
    """A name that no other run has, such as `20261125T120000Z-3fa90c`."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def write_config(store: Store, run: str, config: Mapping[str, Any]) -> None:
    """Store a run's options as JSON; credentials in URLs are left out."""
    store.put(_config_key(run), json.dumps(redacted(config), indent=1).encode())


def write_progress(store: Store, progress: RunProgress) -> None:
    """Replace the progress of the run that `progress` names."""
    store.put(_progress_key(progress.run), progress.model_dump_json(indent=1).encode())


def read_runs(store: Store) -> list[Run]:
    """All runs of the dataset, oldest first.

    Raises:
        CorruptError: a file is not what its name says.
        OSError: the store failed.
    """
    there = _keys(store)

    def read(name: str) -> Run:
        config = _read_config(store, name) if _config_key(name) in there else {}
        progress = _read_progress(store, name) if _progress_key(name) in there else None
        return Run(name, config, progress)

    return list(look_ahead(read, sorted({key.split("/")[1] for key in there}), THREADS, "runs"))


def broken_runs(store: Store) -> dict[str, str]:
    """The files of runs that cannot be read: key -> what is wrong.

    Raises:
        OSError: the store failed.
    """

    def read(key: str) -> object:
        _, name, file = key.split("/")
        return (_read_config if file == "config.json" else _read_progress)(store, name)

    return broken(_keys(store), read, "runs")


def newest_progress(store: Store) -> RunProgress | None:
    """The progress of the newest run that wrote one; None if no run did.

    Raises:
        CorruptError: progress.json is not what its name says.
        OSError: the store failed.
    """
    names = [key.split("/")[1] for key in _keys(store) if key.endswith("/progress.json")]
    return _read_progress(store, max(names)) if names else None


def _config_key(run: str) -> str:
    return f"runs/{run}/config.json"


def _progress_key(run: str) -> str:
    return f"runs/{run}/progress.json"


def _keys(store: Store) -> set[str]:
    """The files of all runs; other files in the folder are not ours."""
    return {key for batch in store.list("runs") for key in batch["key"].to_pylist() if _FILE.fullmatch(key)}


def _read_config(store: Store, run: str) -> dict[str, Any]:
    key = _config_key(run)
    with intact(store, key, "the configuration of a run", _REMEDY):
        return _CONFIG.validate_json(store.get(key))


def _read_progress(store: Store, run: str) -> RunProgress:
    key = _progress_key(run)
    progress = read_json(store, key, RunProgress, "the progress of a run", _REMEDY)
    with intact(store, key, "the progress of this run", _REMEDY):
        if progress.run != run:
            raise ValueError(f"it is that of {progress.run}")
    return progress
