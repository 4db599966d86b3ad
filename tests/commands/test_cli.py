"""`da2ray status` and `da2ray snapshots` show what a dataset holds."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from da2ray.cli import COMMANDS, main
from da2ray.labels.commits import commit_key
from da2ray.labels.reader import Labels
from da2ray.labels.snapshots import list_snapshots, open_snapshot
from da2ray.storage import open_store
from tests.jobs import Command
from tests.photos import REASONS

LABELLED = sum(reason is None for reason in REASONS.values())


@pytest.fixture
def dataset(luminance_labels: Labels, tmp_path: Path) -> Path:
    """A copy of a finished run's dataset, which tests may change."""
    return Path(shutil.copytree(luminance_labels.store.url, tmp_path / "labels"))


def test_status_tells_plans_run_snapshot_and_reasons(command: Command, dataset: Path) -> None:
    code, out, _ = command("status", dataset)
    assert code == 0
    assert f"{dataset}: disparity by luminance fp32, fingerprint " in out
    (plan,) = [line.split() for line in out.splitlines() if "/photos" in line]
    assert plan[2:] == [str(len(REASONS)), "3", "3", "0"]  # samples, shards, committed, left
    assert f"labelled, {len(REASONS)} of {len(REASONS)} images" in out
    assert re.search(rf"snapshot 1 of [-0-9]+T[0-9]+:[0-9]+:[0-9]+\+00:00: {len(REASONS)} rows", out)
    for count in (f"labelled: {LABELLED}", "failed: 4", "rejected: 1", "truncated: 1", "too_small: 1"):
        assert count in out


def test_status_as_json_is_json_and_nothing_else(command: Command, dataset: Path) -> None:
    code, out, err = command("status", "--json", dataset)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["dataset"]["created_by"]["teacher"] == "luminance"
    assert [(plan["samples"], plan["shards"], plan["committed"]) for plan in found["plans"]] == [(len(REASONS), 3, 3)]
    assert found["run"]["state"] == "labelled"
    assert "history" not in found["run"]
    assert found["snapshot"]["number"] == 1
    assert found["snapshot"]["by_status"] == {"failed": 4, "labelled": LABELLED, "rejected": 1}


def test_status_of_a_dataset_that_is_not_finished_tells_what_is_left(command: Command, dataset: Path) -> None:
    shutil.rmtree(dataset / "snapshots")
    (plan,) = [path.stem for path in (dataset / "plans").iterdir()]
    (dataset / commit_key(plan, 1)).unlink()
    code, out, _ = command("status", dataset)
    assert code == 0
    assert [line.split()[2:] for line in out.splitlines() if "/photos" in line] == [[str(len(REASONS)), "3", "2", "1"]]
    assert "no snapshot yet" in out
    assert json.loads(command("status", "--json", dataset)[1])["snapshot"] is None


def test_snapshots_are_listed_and_made_of_what_is_committed_now(command: Command, dataset: Path) -> None:
    store = open_store(str(dataset))
    code, out, _ = command("snapshots", dataset)
    assert code == 0
    assert f"4 failed, {LABELLED} labelled, 1 rejected" in out
    assert not re.search(r"\d\.\d", out), "times to the second"

    assert command("snapshots", "--create", dataset)[0] == 0
    assert list_snapshots(store) == [1], "nothing changed, so there is nothing to make"

    (plan,) = [path.stem for path in (dataset / "plans").iterdir()]
    (dataset / commit_key(plan, 0)).unlink()
    code, out, _ = command("snapshots", dataset, "--create")
    assert code == 0
    assert list_snapshots(store) == [1, 2]
    assert open_snapshot(store, 2).rows == len(REASONS) - 4
    assert len([line for line in out.splitlines() if line.split()[0] in "12"]) == 2


@pytest.mark.parametrize("name", ["status", "snapshots"])
def test_a_place_without_dataset_is_exit_2_and_one_line(command: Command, tmp_path: Path, name: str) -> None:
    code, out, err = command(name, tmp_path / "nothing")
    assert code == 2
    assert out == ""
    assert err.startswith(f"error: no dataset at {tmp_path / 'nothing'}")
    assert len(err.splitlines()) <= 2


def test_a_command_that_does_not_exist_is_exit_2_and_help_lists_those_that_do(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("paint") == (
        2, "", f"error: paint is not a command: choose from {', '.join(COMMANDS)}\nsee da2ray --help\n"
    )  # fmt: skip
    assert command("statsu")[2].splitlines()[0].endswith("; did you mean status?")
    assert command()[0] == 2
    monkeypatch.setattr(sys, "argv", ["da2ray", "--help"])
    assert main() == 0
    out = capsys.readouterr().out
    for name, purpose in COMMANDS.items():
        assert f"{name:<10} {purpose}" in out
        with pytest.raises(SystemExit) as ended:
            command(name, "--help")
        assert ended.value.code == 0
        usage = capsys.readouterr().out.splitlines()[0]
        assert usage.startswith(f"usage: da2ray {name} URL ")
        assert usage.endswith("[options]")


def test_the_url_stands_before_or_after_the_options(command: Command, dataset: Path) -> None:
    first = command("status", dataset, "--json", "--storage-client", "fsspec")
    assert first[0] == 0
    assert command("status", "--json", dataset, "--storage-client", "fsspec") == first
    assert command("status", "--json", "--storage-client", "fsspec", dataset) == first
    assert command("status", "--json") == (2, "", "error: URL is required\n")
    code, _, err = command("status", dataset, dataset)
    assert (code, "unrecognized arguments" in err) == (2, True)
