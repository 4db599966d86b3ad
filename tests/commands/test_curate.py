"""jobs/curate.py prints, stores and refuses the right things. One test runs it as a user does, the others in this process."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from da2ray.commands.curate import COMMAND, CurateConfig
from da2ray.commands.options import load
from da2ray.labels.reader import open_labels
from da2ray.labels.views import list_views, open_view
from da2ray.quality.curation import PLAIN_BITS, split_threshold
from da2ray.quality.truth import ErrorKind
from da2ray.storage import Store, open_store
from tests.jobs import Command
from tests.quality.snapshots import snapshot_of
from tests.s3_server import S3Server

JOB = Path(__file__).parents[2] / "jobs" / "curate.py"
COUNT = 40
ORIGINAL = 0x0F0F_3C3C_5A5A_A5A5
"""A hash with 32 bits set, like that of an image with content."""


@pytest.fixture
def curating(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the job in this process: exit code, stdout, stderr."""

    def run(*args: object) -> tuple[int, str, str]:
        argv = [str(arg) for arg in args]
        code = COMMAND.main(argv, prog="curate.py")
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


def scored(store: Store) -> None:
    """40 labelled rows in two parts. `blur` rises and `flip_p90` falls with the row; all hashes but five are far apart."""
    rng = np.random.default_rng(0)
    hashes = [int(number) for number in rng.integers(0, 2**64, COUNT, dtype=np.uint64)]
    hashes[10:13] = [ORIGINAL, ORIGINAL ^ 0b1, ORIGINAL ^ 0b11]
    hashes[20:22] = [0, 0b11]  # images of nearly one colour
    hashes[30] = None
    snapshot_of(
        store,
        {
            "blur": [float(number) for number in range(COUNT)],
            "flip_p90": [number / COUNT for number in range(COUNT, 0, -1)],
            "phash": hashes,
            "width": [100 + (number == 12) for number in range(COUNT)],
            "height": [80] * COUNT,
        },
        shards=2,
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store(str(tmp_path / "labels"))
    scored(store)
    return store


def kept_numbers(store: Store, view: str, split: str | None = None) -> list[int]:
    labels = open_labels(store.url, view=view, split=split)
    return [int(key.removesuffix(".jpg")) for key in labels.index["key"].to_pylist()]


def test_a_view_holds_the_rows_that_the_rules_keep_and_the_table_shows_what_each_removed(
    curating: Command, store: Store
) -> None:
    rules = ("--where", "blur >= 10", "flip_p90 below p90", "blur >= 10 AND blur < 38")
    code, out, err = curating("--dataset", store.url, "--view", "clean", "--preset", "none", *rules)
    assert (code, err) == (0, "")
    assert "snapshot 1: 44 rows, 40 of them labelled; views leave out the other 4" in out
    lines = {line.strip()[:7]: line.split()[-3:] for line in out.splitlines() if line.startswith(" where")}
    # p90 of flip_p90 lies between rows 3 and 4: rows 0 to 3 go, which other rules remove too.
    assert lines == {"where 1": ["10", "0", "30"], "where 2": ["4", "0", "30"], "where 3": ["12", "2", "28"]}
    assert "flip_p90 < 0.90249" in out
    assert kept_numbers(store, "clean") == list(range(10, 38))

    view = open_view(store, "clean")
    assert (view.snapshot, view.rows, view.kept, view.dedupe, view.skipped) == (1, 44, 28, None, ())
    stored = [(rule.name, rule.where, rule.removes, rule.alone) for rule in view.rules]
    assert stored[1] == ("where 2", "flip_p90 below p90", 4, 0)
    assert view.rules[1].resolved.startswith("flip_p90 < 0.902")
    assert f"kept 28 (70.0% of labelled): {view.by_split['train']} train, {view.by_split['val']} val" in out


def test_a_preset_leaves_out_rules_of_scores_that_are_not_there_and_says_so(curating: Command, store: Store) -> None:
    code, out, _ = curating("--dataset", store.url, "--view", "v", "--preset", "default")
    assert code == 0
    view = open_view(store, "v")
    assert view.skipped
    assert {rule.name for rule in view.rules}.isdisjoint(name for name, _ in view.skipped)
    for name, why in view.skipped:
        assert f"skipped rule {name}: {why}" in out
    assert view.kept == COUNT - (COUNT - len(kept_numbers(store, "v")))


def test_of_look_alikes_the_largest_stays_and_plain_images_are_no_look_alikes(curating: Command, store: Store) -> None:
    arguments = ("--dataset", store.url, "--preset", "none", "--dedupe", 4)
    code, out, _ = curating(*arguments, "--view", "all")
    assert code == 0
    assert "1 cluster of look-alikes; not compared: 2 images of nearly one colour, 1 without a hash" in out
    assert kept_numbers(store, "all") == [number for number in range(COUNT) if number not in (10, 11)]
    found = open_view(store, "all").dedupe
    assert found is not None
    assert (found.distance, found.clusters, found.removed) == (4, 1, 2)

    # A row that a rule removes does not remove its look-alikes. Of two images of one size the first key stays.
    assert curating(*arguments, "--view", "rest", "--where", "blur <> 12")[0] == 0
    assert kept_numbers(store, "rest") == [number for number in range(COUNT) if number not in (11, 12)]


def test_the_threshold_of_plain_hashes_is_half_of_what_images_have() -> None:
    assert ORIGINAL.bit_count() == 2 * PLAIN_BITS


def test_the_split_is_that_of_the_keys_hash(curating: Command, store: Store) -> None:
    code, _, _ = curating(
        "--dataset", store.url, "--view", "halves", "--preset", "none", "--val-share", 0.5, "--where", "blur > 4"
    )
    assert code == 0
    expected = [
        number
        for number in range(5, COUNT)
        if int.from_bytes(hashlib.md5(f"{number:04d}.jpg".encode(), usedforsecurity=False).digest()[:8]) < 2**63
    ]
    assert kept_numbers(store, "halves", "val") == expected
    assert kept_numbers(store, "halves", "train") == [number for number in range(5, COUNT) if number not in expected]
    assert expected[:6] == [6, 7, 8, 10, 13, 14]  # `printf 0006.jpg | md5sum`; pinned: a key never changes its split
    assert curating("--dataset", store.url, "--view", "none", "--preset", "none", "--val-share", 0)[0] == 0
    assert open_view(store, "none").by_split == {"train": COUNT, "val": 0}


def test_the_split_threshold_is_exact() -> None:
    assert split_threshold(0) == 0
    assert split_threshold(0.5) == 2**63
    assert split_threshold(0.05) == 922337203685477632  # of the float nearest 0.05, times 2^64
    assert split_threshold(2**-70) == 1


def test_a_dry_run_prints_the_same_and_stores_nothing(curating: Command, store: Store) -> None:
    arguments = ("--dataset", store.url, "--where", "blur > 20", "--dedupe", 4)
    code, dry, _ = curating(*arguments, "--dry-run")
    assert (code, list_views(store)) == (0, [])
    assert dry.endswith("nothing stored: --dry-run\n")
    code, out, _ = curating(*arguments, "--view", "v")
    assert code == 0
    assert out.splitlines()[:-1] == dry.splitlines()[:-1]
    assert list_views(store) == ["v"]


def test_the_same_command_again_is_fine_and_another_choice_needs_replace(curating: Command, store: Store) -> None:
    arguments = ("--dataset", store.url, "--view", "v", "--preset", "none", "--where")
    assert [curating(*arguments, "blur > 20")[0] for _ in range(2)] == [0, 0]
    code, _, err = curating(*arguments, "blur > 30")
    assert (code, "choose another --view name, or --replace it" in err) == (2, True)
    assert kept_numbers(store, "v") == list(range(21, COUNT))
    assert curating(*arguments, "blur > 30", "--replace")[0] == 0
    assert kept_numbers(store, "v") == list(range(31, COUNT))


def test_a_view_is_of_the_snapshot_that_was_named(curating: Command, store: Store) -> None:
    snapshot_of(store, {"blur": [0.0] * 4}, shards=4)  # two shards more
    assert curating("--dataset", store.url, "--view", "v", "--preset", "none", "--snapshot", 1)[0] == 0
    assert open_view(store, "v").snapshot == 1
    assert kept_numbers(store, "v") == list(range(COUNT))


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (["blur >= 0", "blur > 1000"], "rule where 2 (blur > 1000) removes all 40 labelled rows"),
        (
            ["blur < 5", "blur < 30", "blur >= 5"],
            "rule where 3 (blur >= 5) removes the last rows that the rules before it keep",
        ),
    ],
)
def test_a_view_of_no_row_is_an_error_that_names_the_rule(
    curating: Command, store: Store, rules: list[str], words: str
) -> None:
    arguments = ("--dataset", store.url, "--preset", "none", "--where", *rules, "--dedupe", 4)
    code, out, err = curating(*arguments, "--view", "v")
    assert (code, "kept 0" in out) == (2, True)
    assert err == f"error: no row is left, so no view is stored: {words}\n"
    assert list_views(store) == []
    assert curating(*arguments, "--dry-run")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--view is required"),
        (("--view", "v", "--error", "disparity"), "--error belongs to --calibrate"),
        (("--view", "v", "--calibration-output", "c.json"), "--calibration-output belongs to --calibrate"),
        (("--view", "v", "--calibrate", "truth"), "stores no view: leave --view out"),
        (("--calibrate", "truth", "--where", "blur > 1", "--dry-run"), "leave --dry-run, --where out"),
        (("--view", "a/b"), "a view's name has"),
        (("--view", "v", "--where", "blurr > 1"), "did you mean blur"),
        (("--view", "v", "--where", "scale_p90 < 1"), "--consistency scale"),
        (("--view", "v", "--snapshot", 7), "has no snapshot 7"),
        (("--view", "v", "--dedupe", 64), "--dedupe: must be at most 10"),
        (("--view", "v", "--preset", "harsh"), "--preset"),
        (("--view", "v", "--val-share", 1), "--val-share"),
    ],
)
def test_a_mistake_exits_2_with_two_lines_and_stores_nothing(
    curating: Command, store: Store, arguments: tuple[object, ...], words: str
) -> None:
    code, out, err = curating("--dataset", store.url, *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) <= 2
    assert list_views(store) == []


def test_a_missing_dataset_and_missing_hashes_are_errors(curating: Command, tmp_path: Path) -> None:
    code, _, err = curating("--dataset", tmp_path, "--view", "v")
    assert (code, "no dataset at" in err) == (2, True)
    snapshot_of(open_store(str(tmp_path)), {"blur": [1.0, 2.0]})
    code, _, err = curating("--dataset", tmp_path, "--view", "v", "--preset", "none", "--dedupe", 4)
    assert (code, "no row has a perceptual hash" in err) == (2, True)


def test_calibrating_needs_no_view_and_stores_none(curating: Command, store: Store, tmp_path: Path) -> None:
    (tmp_path / "truth").mkdir()
    np.save(tmp_path / "truth" / "0000.npy", np.ones((80, 100), np.float32))
    code, _, err = curating("--dataset", store.url, "--calibrate", tmp_path / "truth")
    assert (code, "truth" in err) == (2, True)  # one image of 40 is too few
    assert list_views(store) == []


@pytest.mark.parametrize("error", ErrorKind)
def test_a_calibration_is_by_the_error_that_was_asked_for_and_written_where(
    curating: Command, store: Store, tmp_path: Path, error: ErrorKind
) -> None:
    (tmp_path / "truth").mkdir()
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        np.save(tmp_path / "truth" / f"{number:04d}.npy", rng.uniform(1, 9, (8, 10)).astype(np.float32))
    output = tmp_path / "found" / "calibration.json"
    arguments = ("--calibrate", tmp_path / "truth", "--error", error, "--calibration-output", output)
    code, out, _ = curating("--dataset", store.url, *arguments)
    assert (code, f"true error ({error}) of {COUNT} images" in out) == (0, True)
    found = json.loads(output.read_text())
    assert (found["kind"], len(found["errors"])) == (error, COUNT)
    assert list_views(store) == []


def test_where_is_one_rule_a_word_and_commas_are_its_own(tmp_path: Path) -> None:
    needed = ["--dataset", "d", "--view", "v"]
    config = load(CurateConfig, [*needed, "--where", "least(blur, 3) > 1", "b < 2", "--where", "c > 3"])
    assert config.where == ["least(blur, 3) > 1", "b < 2", "c > 3"]
    (tmp_path / "job.yaml").write_text('where: "least(blur, 3) > 1"\n')
    assert load(CurateConfig, [*needed, "--config", str(tmp_path / "job.yaml")]).where == ["least(blur, 3) > 1"]


@pytest.mark.parametrize("client", ["obstore", "fsspec"])
def test_as_a_user_runs_it_on_s3(s3: S3Server, client: str) -> None:
    store = open_store(s3.create_bucket(f"curate-{client}") + "/labels")
    scored(store)
    command = [sys.executable, str(JOB), "--dataset", store.url, "--storage-client", client, "--preset", "none"]
    rules = ["--view", "clean", "--where", "blur > 20", "--dedupe", "4"]
    ended = subprocess.run([*command, *rules], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.search(r"where 1 +blur > 20 +21 +21 +19", ended.stdout)
    assert kept_numbers(store, "clean") == list(range(21, COUNT))
    ended = subprocess.run([*command, "--where", "nosuch"], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
