"""`da2ray verify`, `repair` and `gc` print their findings and actions, and exit accordingly."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from da2ray.labels.commits import read_commit
from da2ray.labels.kept_rows import KEPT
from da2ray.labels.reader import open_labels
from da2ray.labels.snapshots import open_snapshot, snapshot_key
from da2ray.labels.views import View, write_view
from da2ray.storage import Store, open_store
from tests.jobs import Command
from tests.labels.samples import SHARDS, label


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store(str(tmp_path / "labels [1]"))  # brackets are markup to the library that prints
    label(store, "parquet")
    return store


def test_verify_repair_run_and_verify_again(command: Command, store: Store) -> None:
    code, out, err = command("verify", store.url)
    assert (code, err) == (0, "")
    assert out.startswith("4 of 4 shards and 1 of 1 part of the newest snapshot's index checked")
    assert out.endswith("nothing is wrong\n")
    assert command("repair", store.url)[:2] == (0, out)

    gone = read_commit(store, "p", 2).object
    store.delete([gone])
    code, out, _ = command("verify", store.url)
    assert code == 1
    assert [line.split()[:4] for line in out.splitlines() if "shards/" in line] == [["p", "2", gone, "object_missing"]]
    assert f"da2ray repair {store.url}" in out

    code, out, _ = command("repair", store.url, "--dry-run")
    assert (code, "would remove 1 commit:" in out) == (0, True)
    code, out, _ = command("repair", store.url)
    assert code == 0
    assert gone in out
    for line in ("removed 1 commit:", "stay broken in these: 1", "next: run the same job again"):
        assert line in out
    assert label(store, "parquet") == [2]
    assert command("verify", store.url)[0] == 0


def test_a_broken_part_and_a_broken_snapshot(command: Command, store: Store) -> None:
    (part,) = open_snapshot(store).parts
    store.put(part.key, b"broken")
    assert f"{part.key} " in command("verify", store.url)[1]
    assert "would write 1 part of the index again" in command("repair", "--dry-run", store.url)[1]
    code, out, _ = command("repair", store.url)
    assert (code, "wrote 1 part of the index again" in out) == (0, True)
    assert command("verify", store.url)[0] == 0

    store.put(snapshot_key(1), b"broken")
    assert command("verify", store.url)[0] == 1
    code, out, _ = command("repair", store.url)
    assert (code, "cannot be repaired" in out) == (1, True)
    code, _, err = command("gc", store.url)
    assert (code, snapshot_key(1) in err) == (2, True)


def test_a_broken_view_is_reported_with_exit_1_until_it_is_made_again(command: Command, store: Store) -> None:
    row = pa.table([pa.array([0]), pa.array(["k"]), pa.array(["train"])], schema=KEPT)
    snapshot = open_snapshot(store)
    made = View(name="clean", created="", snapshot=snapshot.number, rows=snapshot.rows, rules=(), val_share=0)
    made = write_view(store, made, row)
    assert "index checked, 1 view, " in command("verify", store.url)[1]
    store.delete([made.object])
    code, out, _ = command("verify", store.url)
    assert (code, "views/clean.json" in out, made.object in out) == (1, True, True)
    code, out, _ = command("repair", store.url)
    assert (code, "with jobs/curate.py --replace or delete its JSON: clean" in out) == (1, True)
    write_view(store, made, row)
    assert command("verify", store.url)[0] == 0


def test_verify_as_json_is_json_and_nothing_else(
    command: Command, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = read_commit(store, "p", 0).object
    store.put(key, store.get(key)[:-1])
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # shows progress as a bar on stderr
    code, out, err = command("verify", "--json", store.url)
    assert code == 1
    assert "verify" in err
    found = json.loads(out)
    assert (found["shards"], found["shards_checked"], found["parts"]) == (SHARDS, SHARDS, 1)
    (finding,) = found["findings"]
    assert {name: finding[name] for name in ("plan", "shard", "object", "what", "snapshot")} == {
        "plan": "p", "shard": 0, "object": key, "what": "size", "snapshot": None,
    }  # fmt: skip


def test_a_sample_is_a_share(command: Command, store: Store) -> None:
    assert command("verify", store.url, "--sample", "50%")[1].startswith("2 of 4 shards")
    assert command("verify", store.url, "--sample", "0.01")[1].startswith("1 of 4 shards")
    for bad in ("0", "2", "200%", "some", "nan"):
        code, _, err = command("verify", store.url, "--sample", bad)
        assert code == 2
        assert err == f"error: --sample: must be above 0 and at most 1, such as 0.05 or 5%; got '{bad}'\n"


def test_gc_counts_by_folder(command: Command, store: Store) -> None:
    orphan = f"shards/p/00000001-{'0' * 16}.parquet"
    store.put(orphan, b"12345")
    code, out, _ = command("gc", store.url)
    assert code == 0
    assert "kept 1 object (5 bytes) that no commit names, younger than --grace 24 hours" in out
    os.utime(Path(store.url) / orphan, (0, 0))

    def rows(out: str) -> list[list[str]]:
        return [line.split() for line in out.splitlines()[1:] if line.split()[-1] != "0"]

    code, out, _ = command("gc", "--dry-run", store.url)
    assert (code, rows(out)) == (0, [["shards", "1", "5"]])
    assert "would remove" in out
    assert command("gc", store.url, "--grace", "0.5")[1].splitlines()[1].split() == ["shards", "1", "5"]
    assert rows(command("gc", store.url, "--grace", "0")[1]) == []
    assert len(open_labels(store.url)) == SHARDS * 7
    for bad in ("-1", "inf", "nan", "soon"):
        code, _, err = command("gc", store.url, f"--grace={bad}")
        assert (code, "--grace: must be" in err) == (2, True)


@pytest.mark.parametrize("name", ["verify", "repair", "gc"])
def test_a_place_without_dataset_is_exit_2_and_one_line(command: Command, tmp_path: Path, name: str) -> None:
    code, out, err = command(name, tmp_path / "nothing")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: no dataset at {tmp_path / 'nothing'}")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("name", ["verify", "repair", "gc"])
def test_a_store_that_cannot_be_reached_is_exit_2_and_no_finding(
    command: Command, store: Store, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def refuse(*_: object) -> bytes:
        raise PermissionError(f"{store.url}: permission denied")

    monkeypatch.setattr(type(store), "get", refuse)
    code, out, err = command(name, store.url)
    assert (code, out) == (2, "")
    assert "permission denied" in err


HEAVY = {
    "status": "ray torch cv2",
    "snapshots": "ray torch cv2",
    "verify": "ray torch cv2",
    "repair": "ray torch cv2",
    "gc": "ray torch cv2",
    "report": "ray torch cv2",
    "curate": "ray torch cv2",
    "demo": "ray torch cv2",
    "train_teacher": "ray torch cv2",
    "pseudolabel": "ray torch",
    "benchmark": "ray torch",
}


@pytest.mark.parametrize(("name", "heavy"), HEAVY.items())
def test_reading_options_does_without_heavy_packages(name: str, heavy: str) -> None:
    code = f"import sys, da2ray.commands.{name} as m; sys.exit(' '.join(set('{heavy}'.split()) & sys.modules.keys()))"
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ended.stderr.strip() == ""


@pytest.mark.parametrize("name", ["status", "verify"])
def test_looking_at_a_dataset_does_without_heavy_packages(store: Store, name: str) -> None:
    code = (
        f"import sys, da2ray.cli; da2ray.cli.main(['{name}', {store.url!r}]); "
        "sys.exit(' '.join({'ray', 'torch', 'cv2'} & sys.modules.keys()))"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ended.stderr.strip() == ""


def test_the_list_of_commands_does_without_numpy_and_pyarrow() -> None:
    code = (
        "import sys, da2ray.cli; da2ray.cli.main(['-h']); sys.exit(' '.join({'numpy', 'pyarrow'} & sys.modules.keys()))"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ended.stderr.strip() == ""
