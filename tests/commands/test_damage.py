"""Stored state that is empty, cut off or foreign: each command goes on without it, or exits 2 and names the object and a remedy;
`verify` reports it, and after `repair` and what its messages say nothing is wrong.
"""

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from da2ray.commands.curate import COMMAND as CURATE
from da2ray.commands.options import load
from da2ray.commands.pseudolabel import COMMAND as PSEUDOLABEL
from da2ray.commands.pseudolabel import PseudolabelConfig
from da2ray.errors import CorruptError, Exit, UserError
from da2ray.labels.commits import commit_shard
from da2ray.labels.kept_rows import KEPT
from da2ray.labels.leases import Leases
from da2ray.labels.reader import open_labels
from da2ray.labels.runs import write_config, write_progress
from da2ray.labels.schema import INDEX
from da2ray.labels.shards.formats import build_shard
from da2ray.labels.snapshots import create_snapshot, open_snapshot
from da2ray.labels.views import View, write_view
from da2ray.pipeline.prepare import prepare
from da2ray.pipeline.run import create_dataset, stored_plan
from da2ray.plan.plan import Plan
from da2ray.storage import Store, open_store
from tests.jobs import Command
from tests.labels.samples import content
from tests.labels.test_runs import progress
from tests.photos import write_photos

RUN = "20261125T120000Z-bbbbbb"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A dataset with every kind of object, all shards of its plan committed, and the arguments of its job."""
    photos = write_photos(tmp_path_factory.mktemp("photos"))
    output = tmp_path_factory.mktemp("whole") / "labels"
    argv = ["--images", str(photos), "--output", str(output), "--teacher", "luminance", "--shard-size", "4"]
    console = Console(quiet=True)
    job = prepare(load(PseudolabelConfig, argv), console)
    create_dataset(job)
    plan = stored_plan(job, console)
    commit(job.store, plan, job.fingerprint, 0)
    create_snapshot(job.store, [plan.id], job.fingerprint)
    for shard in range(1, len(plan)):
        commit(job.store, plan, job.fingerprint, shard)
    snapshot = create_snapshot(job.store, [plan.id], job.fingerprint)
    write_config(job.store, RUN, {"teacher": "luminance"})
    write_progress(job.store, progress(RUN))
    leases = Leases(job.store, plan.id, RUN, 60)
    assert leases.take([0]) is None
    leases.release()
    kept = pa.table([pa.array([0]), pa.array(["k"]), pa.array(["train"])], schema=KEPT)
    write_view(job.store, View(name="clean", created="", snapshot=2, rows=snapshot.rows, rules=(), val_share=0), kept)
    return output, argv


def commit(store: Store, plan: Plan, fingerprint: str, shard: int) -> None:
    keys = [f"{shard}-{number}.jpg" for number in range(plan.sizes()[shard])]
    rows, qs, _ = content(keys, plan=plan.id, shard=shard)
    rows = rows.set_column(
        rows.schema.get_field_index("fingerprint"), INDEX.field("fingerprint"), pa.array([fingerprint] * len(rows))
    )
    commit_shard(store, plan.id, shard, build_shard(rows, qs, "parquet"), fingerprint)


@pytest.fixture
def store(whole: tuple[Path, list[str]], tmp_path: Path) -> Store:
    shutil.copytree(whole[0], tmp_path / "labels")
    return open_store(str(tmp_path / "labels"))


@pytest.fixture
def arguments(whole: tuple[Path, list[str]], store: Store) -> list[str]:
    """The arguments of the job whose dataset `store` is."""
    argv = list(whole[1])
    argv[argv.index("--output") + 1] = store.url
    return argv


KINDS = {
    "plan": "plans/*.parquet",
    "config": "runs/*/config.json",
    "progress": "runs/*/progress.json",
    "lease": "leases/*/*.json",
    "older snapshot": "snapshots/000001.json",
    "snapshot": "snapshots/000002.json",
    "view": "views/clean.json",
    "list of a view": "views/clean-*.parquet",
    "part": "index/*.parquet",
    "commit": "commits/*/00000000.parquet",
    "dataset": "dataset.json",
}


def foreign_parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [1, 2]}, metadata={"da2ray": b"[1]"}), sink)
    return sink.getvalue().to_pybytes()


def another_shape(data: bytes) -> bytes:
    """JSON, or Parquet with metadata, that opens and is something else."""
    return foreign_parquet() if data[:4] == b"PAR1" else b'{"format_version": 1, "number": "two", "history": {}}'


def wrong_types(data: bytes) -> bytes:
    """JSON whose values are all of another type."""
    if data[:4] == b"PAR1":
        return foreign_parquet()[:-9] + b"\xff" * 9
    return json.dumps({name: [None] for name in json.loads(data)} | {"format_version": 1}).encode()


DAMAGE = {
    "empty": lambda _: b"",
    "cut in half": lambda data: data[: len(data) // 2],
    "100 bytes short": lambda data: data[:-100],
    "foreign bytes": lambda _: bytes(range(256)) * 3,
    "null": lambda _: b"null",
    "deeply nested": lambda _: b"[" * 100_000,
    "another shape": another_shape,
    "wrong types": wrong_types,
}


def damaged(store: Store, pattern: str, damage: str) -> list[str]:
    """Damage all objects of a kind; return their keys."""
    root = Path(store.url)
    paths = sorted(root.glob(pattern))
    assert paths
    for path in paths:
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
    return [str(path.relative_to(root)) for path in paths]


def opening_error(store: Store, view: str | None) -> CorruptError | UserError | None:
    try:
        list(open_labels(store.url, view=view))
    except (CorruptError, UserError) as error:
        return error
    return None


def endings(
    store: Store, arguments: list[str], command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[tuple[str, int, str]]:
    """Each command that reads stored state, its exit code, and what it prints."""
    for words in (
        ["status", store.url],
        ["status", store.url, "--json"],
        ["snapshots", store.url],
        ["report", store.url, "--output", str(tmp_path / "report.html")],
        ["verify", store.url],
        ["repair", store.url, "--dry-run"],
        ["gc", store.url, "--grace", "0", "--dry-run"],
        ["snapshots", store.url, "--create"],
    ):
        code, said, err = command(*words)
        yield " ".join(words), code, said + err
    for name, run, argv in (
        ("dry run", PSEUDOLABEL, [*arguments, "--dry-run"]),
        ("retry", PSEUDOLABEL, [*arguments, "--retry-failed", "--dry-run"]),
        ("rerun", PSEUDOLABEL, arguments),
        ("curate", CURATE, ["--dataset", store.url, "--view", "other"]),
    ):
        code = run.main(argv, prog=name)
        said = capsys.readouterr()
        yield name, code, said.out + said.err


def test_the_whole_dataset_has_nothing_wrong(
    store: Store, arguments: list[str], command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name, code, said in endings(store, arguments, command, capsys, tmp_path):
        if name == "retry":
            assert (code, "samples that failed" in said) == (2, True)
        else:
            assert code == 0, (name, said)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", KINDS)
def test_each_command_goes_on_or_names_the_object_and_the_remedy(
    store: Store,
    arguments: list[str],
    command: Command,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    kind: str,
    damage: str,
) -> None:
    if kind == "config" and damage in ("another shape", "wrong types"):
        pytest.skip("any JSON object can be the configuration of a run")
    keys = damaged(store, KINDS[kind], damage)
    for name, code, said in endings(store, arguments, command, capsys, tmp_path):
        assert code in (0, 1, 2), (name, said)
        if name.startswith(("verify", "repair")):
            assert code == (2 if kind == "dataset" else 1) or "repair" in name, said
            assert all(key in said.replace("\n", "") for key in keys), (name, said)
        elif code and "samples that failed" not in said:
            assert any(key in said for key in keys), (name, said)
            assert any(word in said for word in ("delete", "restore", "repair", "again", "choose")), (name, said)
    for view in (None, "clean"):
        if (error := opening_error(store, view)) is not None:
            assert any(key in str(error) for key in keys)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "dataset"])
def test_what_repair_says_mends_all_that_can_be_mended(
    store: Store, arguments: list[str], command: Command, kind: str
) -> None:
    keys = damaged(store, KINDS[kind], "cut in half")
    code, said, _ = command("repair", store.url)
    if kind in ("config", "progress", "lease", "part"):
        assert code == 0, said
    if kind in ("plan", "older snapshot", "snapshot", "view"):
        assert (code, "delete" in said) == (1, True), said
        store.delete(keys)
    if kind == "list of a view":
        assert (code, "views are broken" in said) == (1, True)
        store.delete(["views/clean.json"])
    if kind == "snapshot":
        store.delete(["views/clean.json"])
        assert command("snapshots", store.url, "--create")[0] == 0
    if kind in ("plan", "commit"):
        assert kind == "commit" or PSEUDOLABEL.main(arguments, prog="job") == Exit.DONE
    code, said, _ = command("verify", store.url)
    assert code == 0, said


@pytest.mark.parametrize(
    "key",
    [
        *(
            "plans/foreign.parquet",
            "plans/notes.txt",
            "plans/sub/0123456789abcdef.parquet",
            "runs/x.json",
            "runs/x/y.json",
        ),
        *("snapshots/1.json", "snapshots/copy of 000001.json", "snapshots/٣.json", "snapshots/0000001.json"),
        *("views/no view.json", "views/notes.txt", "leases/x", "index/x.parquet", "commits/x", "commits/p/x.parquet"),
        *(
            "commits/p/0000000001.parquet",
            "shards/x",
            "plans/.DS_Store",
            "notes.txt",
            "snapshots/999999999999999999999.json",
        ),
    ],
)
def test_a_file_of_another_name_is_passed_over_and_reported(
    store: Store, arguments: list[str], command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path, key: str
) -> None:
    store.put(key, b"nothing of ours")
    for name, code, said in endings(store, arguments, command, capsys, tmp_path):
        assert code == (2 if name == "retry" else 0), (name, said)
        if name.startswith("verify") and "/" in key:
            assert "1 file not named by da2ray" in said


def test_a_copy_under_another_name_is_not_taken_for_the_object(store: Store, command: Command) -> None:
    (plan,) = Path(store.url, "plans").iterdir()
    copies = {
        "snapshots/000007.json": store.get("snapshots/000002.json"),
        f"plans/{'0' * 16}.parquet": plan.read_bytes(),
        "views/other.json": store.get("views/clean.json"),
        "runs/20300101T000000Z-aaaaaa/progress.json": store.get(f"runs/{RUN}/progress.json"),
        f"commits/{plan.stem}/00000099.parquet": store.get(f"commits/{plan.stem}/00000000.parquet"),
    }
    for key, data in copies.items():
        store.put(key, data)
    code, said, _ = command("verify", store.url, "--json")
    assert code == 1
    assert {found["object"] for found in json.loads(said)["findings"]} == set(copies)
    code, _, err = command("status", store.url)
    assert (code, f"plans/{'0' * 16}.parquet" in err) == (2, True)


def test_a_damaged_page_of_a_plan_is_found(store: Store, command: Command) -> None:
    (path,) = Path(store.url, "plans").iterdir()
    data = bytearray(path.read_bytes())
    (shard,) = Plan(store, path.stem).shards([1])
    data[shard.offset + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptError, match="the specification of shard 1 has another checksum"):
        shard.spec(store)
    code, said, _ = command("verify", store.url)
    assert (code, f"plans/{path.name}" in said) == (1, True)


def test_a_lease_of_wrong_values_binds_nobody(store: Store) -> None:
    (path,) = Path(store.url, "leases").glob("*/*.json")
    whole = json.loads(path.read_bytes())
    later = datetime.now(UTC) + timedelta(days=1)
    for change in ({"expires": later.replace(tzinfo=None).isoformat()}, {"holder": {**whole["holder"], "pid": 10**30}}):
        path.write_text(json.dumps(whole | {"expires": later.isoformat(), "released": False} | change))
        assert Leases(store, path.parent.name, "other", 60).take([0]) is None
        for taken in path.parent.iterdir():
            if taken != path:
                taken.unlink()


def test_a_snapshot_names_only_parts(store: Store) -> None:
    values = json.loads(store.get("snapshots/000002.json"))
    for name in ("../dataset", "", "x" * 32, 5):
        values["parts"][0]["name"] = name
        store.put("snapshots/000002.json", json.dumps(values).encode())
        with pytest.raises(CorruptError, match=r"snapshots/000002\.json is not a snapshot"):
            open_snapshot(store)
