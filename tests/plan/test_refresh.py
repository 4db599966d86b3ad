"""A refreshed dataset equals one that is labelled from scratch, whatever changed and whoever was killed. Without Ray."""

import contextlib
import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

import da2ray
from da2ray.commands.refresh import COMMAND as REFRESH
from da2ray.labels.commits import list_all_commits
from da2ray.labels.snapshots import list_snapshots, open_snapshot
from da2ray.labels.upkeep.garbage import collect
from da2ray.labels.upkeep.verify import verify
from da2ray.plan.plan import list_plans
from da2ray.storage import Store, open_store
from tests.jobs import Command
from tests.refreshing import Content, Here, Killed, content_of, install, killed_at, picture

ROOT = Path(__file__).parents[2]
BROKEN = b"not an image"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    return install(monkeypatch)


Refresh = Callable[..., tuple[int, str, str]]


@pytest.fixture
def refresh(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refresh:
    def run(*options: object) -> tuple[int, str, str]:
        code = REFRESH.main(["--output", str(tmp_path / "labels"), *map(str, options)], prog="refresh.py")
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


class World:
    """A folder of images, and what a dataset of them must say."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = 1_000_000_000

    def write(self, key: str, data: bytes) -> None:
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.touch(key)

    def touch(self, key: str) -> None:
        self.clock += 1
        os.utime(self.folder / key, (self.clock, self.clock))

    def change(self, chance: random.Random, day: int) -> None:
        """Do one of the things that happen to a bucket."""
        keys, fresh = self.keys(), f"{chance.randrange(4)}/day{day}-{chance.randrange(99)}.png"
        key = chance.choice(keys)
        what = chance.choice(["new", "new", "change", "touch", "delete", "move", "break", "copy"])
        if what == "new":
            self.write(fresh, picture(chance.randrange(40)))
        elif what == "change":
            self.write(key, picture(chance.randrange(40)))
        elif what == "touch":
            self.touch(key)
        elif what == "delete" and len(keys) > 8:
            (self.folder / key).unlink()
        elif what == "move":
            (self.folder / fresh).parent.mkdir(exist_ok=True)
            (self.folder / key).rename(self.folder / fresh)
        elif what == "break":
            self.write(key, BROKEN)
        elif what == "copy":
            self.write(fresh, (self.folder / key).read_bytes())

    def keys(self) -> list[str]:
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*.png"))

    def expected(self, labels_of: dict[str, tuple[str | None, str | None]]) -> Content:
        found = {}
        for key in self.keys():
            sha256 = hashlib.sha256((self.folder / key).read_bytes()).hexdigest()
            found[key] = (sha256, *labels_of[sha256])
        return found


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path / "images")
    for number in range(12):
        made.write(f"{number % 3}/{number:02d}.png", picture(number))
    made.write("broken.png", BROKEN)
    return made


@pytest.fixture
def first(here: Here, world: World, tmp_path: Path, job_without_ray: Command) -> Store:
    """The dataset of the first images, in shards of 5."""
    label(job_without_ray, world.folder, tmp_path / "labels")
    return open_store(str(tmp_path / "labels"))


def label(job: Command, images: Path, output: Path) -> str:
    code, out, error = job("--images", images, "--output", output, "--teacher", "luminance", "--shard-size", 5)
    assert code == 0, error
    return out


def whole(store: Store) -> None:
    assert verify(store, "parquet").findings == []


@pytest.fixture
def labels_of(
    here: Here, job_without_ray: Command, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[str | None, str | None]]:
    """The label of each image that the tests have, from scratch: hash of the file -> reason, hash of the depth."""
    folder = tmp_path_factory.mktemp("every")
    every = World(folder / "images")
    for number in range(40):
        every.write(f"{number:02d}.png", picture(number))
    every.write("broken.png", BROKEN)
    label(job_without_ray, every.folder, folder / "labels")
    return {sha256: (reason, depth) for sha256, reason, depth in content_of(folder / "labels").values()}


def test_nothing_to_do_makes_no_snapshot_reads_no_index_and_says_one_line(
    first: Store, refresh: Refresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    for name in ("get", "get_range", "stat"):
        method = getattr(type(first), name)
        monkeypatch.setattr(
            type(first),
            name,
            lambda store, key, *args, _method=method: (reads.append(key), _method(store, key, *args))[1],
        )
    code, out, error = refresh()
    assert (code, error) == (0, "")
    assert out.count("\n") == 1
    assert "nothing to do" in out
    assert not [key for key in reads if key.startswith("index/")]
    assert list_snapshots(first) == [1]


def test_nothing_to_do_is_found_without_ray(first: Store) -> None:
    code = (
        "import sys; sys.modules['ray'] = None; sys.modules['torch'] = None\n"
        "from da2ray.commands.refresh import COMMAND; sys.exit(COMMAND.main(sys.argv[1:]))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code, "--output", first.url], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert finished.returncode == 0, finished.stderr


def change_one_of_each_kind(world: World) -> None:
    """Move an image, delete one, give one other bytes, give one another time, and add one."""
    (world.folder / "0/00.png").rename(world.folder / "9-moved.png")
    (world.folder / "1/01.png").unlink()
    world.write("0/03.png", picture(20))
    world.touch("2/02.png")
    world.write("new/a.png", picture(21))


def test_new_changed_gone_and_moved_images_are_told_and_only_what_is_new_is_labelled(
    first: Store, here: Here, world: World, refresh: Refresh, labels_of: dict[str, tuple[str | None, str | None]]
) -> None:
    change_one_of_each_kind(world)
    before = here.asked
    code, out, _ = refresh("--dry-run")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()[2:6]] == [
        ["new", "1"],
        ["changed", "2"],
        ["gone", "1"],
        ["moved", "1"],
    ]
    assert list_snapshots(first) == [1]
    assert len(list_plans(first)) == 1

    code, out, error = refresh()
    assert code == 0, error
    assert here.asked - before == 2, "equal bytes keep their label, and the teacher is not asked"
    assert content_of(first.url) == world.expected(labels_of)
    whole(first)
    snapshot = open_snapshot(first)
    assert (snapshot.number, snapshot.parent) == (2, 1)
    assert content_of(first.url).keys() == set(world.keys())
    assert len(da2ray.open_labels(first.url, 1)) == 13, "an older snapshot never changes"
    assert refresh()[1].startswith("nothing to do")


def test_snapshots_show_what_changed_and_diff_which_images(
    first: Store, world: World, refresh: Refresh, command: Command
) -> None:
    change_one_of_each_kind(world)
    assert refresh()[0] == 0
    assert open_snapshot(first).changes == {"new": 2, "gone": 2, "changed": 2}
    assert command("tag", first.url, "release", 1)[0] == 0
    code, out, _ = command("snapshots", first.url)
    assert code == 0
    assert [line.split()[-1] for line in out.splitlines()[1:3]] == ["release", "2"]

    def counts(old: int, new: int) -> dict[str, list[str]]:
        code, out, _ = command("diff", first.url, old, new)
        assert code == 0
        return {line[:15].strip(): line[15:].split() for line in out.splitlines()[2:]}

    found = counts(1, 2)
    assert found["new"] == ["2", "9-moved.png", "new/a.png"]
    assert found["gone"] == ["2", "0/00.png", "1/01.png"]
    assert (found["changed"], found["kept"]) == (["1", "0/03.png"], ["1", "2/02.png"])
    assert (found["relabelled"], found["labelled again"]) == (["0"], ["0"])
    assert counts(2, 1)["new"] == found["gone"]
    assert all(kind == ["0"] for kind in counts(2, 2).values())
    for words in (("tag", first.url, "a/b"), ("tag", first.url, "x", 9), ("diff", first.url, 1, 9)):
        assert command(*words)[0] == 2


def test_gc_keeps_the_snapshots_that_are_asked_for_and_no_label_that_none_has(
    first: Store, here: Here, world: World, refresh: Refresh, command: Command
) -> None:
    def shards() -> set[str]:
        return {key for batch in first.list("shards") for key in batch["key"].to_pylist()}

    for day in range(4):
        for key in sorted(path.relative_to(world.folder).as_posix() for path in (world.folder / "0").iterdir()):
            world.write(key, picture(20 + day))
        assert refresh()[0] == 0
    (world.folder / "0/00.png").rename(world.folder / "moved.png")
    assert refresh()[0] == 0
    assert list_snapshots(first) == [1, 2, 3, 4, 5, 6]
    assert command("tag", first.url, "release", 2)[0] == 0
    before, wanted = shards(), {number: content_of_snapshot(first, number) for number in (2, 5, 6)}
    assert command("gc", first.url, "--grace", 0, "--keep", 2, "--older-than", 1)[0] == 0
    assert list_snapshots(first) == [1, 2, 3, 4, 5, 6]
    assert command("gc", first.url, "--grace", 0, "--keep", 2, "--dry-run")[0] == 0
    assert shards() == before
    assert command("gc", first.url, "--grace", 0, "--keep", 2)[0] == 0
    assert list_snapshots(first) == [2, 5, 6]
    assert len(before - shards()) == 2, "the labels of days 1 and 2"
    assert {number: content_of_snapshot(first, number) for number in (2, 5, 6)} == wanted
    whole(first)
    asked = here.asked
    assert refresh()[1].startswith("nothing to do")
    assert here.asked == asked, "commits stay, so no shard is labelled again"
    assert command("gc", first.url, "--older-than", 1)[0] == 2


def content_of_snapshot(store: Store, number: int) -> dict[str, float | None]:
    labels = da2ray.open_labels(store.url, number)
    return {label.key: None if label.depth is None else float(label.depth.sum()) for label in labels}


def test_an_image_that_could_not_be_read_is_read_again_when_it_changes(
    first: Store, world: World, refresh: Refresh, labels_of: dict[str, tuple[str | None, str | None]]
) -> None:
    assert content_of(first.url)["broken.png"][1] == "not_an_image"
    world.write("broken.png", picture(22))
    world.write("0/00.png", BROKEN)
    assert refresh()[0] == 0
    assert content_of(first.url) == world.expected(labels_of)
    assert open_snapshot(first).by_reason == {"not_an_image": 1}


def test_too_many_gone_images_change_nothing(first: Store, world: World, refresh: Refresh) -> None:
    for key in world.keys()[:2]:
        (world.folder / key).unlink()
    code, out, _ = refresh()
    assert code == 1
    assert "--max-gone" in out
    assert list_snapshots(first) == [1]
    assert len(list_plans(first)) == 1
    (world.folder / world.keys()[0]).rename(world.folder / "0/moved.png")  # a moved image does not count
    assert refresh("--max-gone", "20%")[0] == 0
    assert content_of(first.url).keys() == set(world.keys())


@pytest.mark.skipif(os.getuid() == 0, reason="root may read every folder")
def test_images_below_a_folder_that_cannot_be_listed_stay_by_mode(first: Store, world: World, refresh: Refresh) -> None:
    (world.folder / "1").chmod(0)
    try:
        assert refresh()[0] == 0
    finally:
        (world.folder / "1").chmod(0o755)
    assert content_of(first.url).keys() == set(world.keys())


def test_images_below_what_a_listing_skipped_stay(first: Store, world: World, refresh: Refresh) -> None:
    """A folder that becomes a link to the one above is a loop: it is skipped, and what was below it is not known."""
    (world.folder / "1").rename(world.folder.parent / "elsewhere")
    (world.folder / "1").symlink_to(world.folder)
    code, out, _ = refresh()
    assert code == 0
    assert "4 images stay" in out or "nothing to do" in out
    assert len(da2ray.open_labels(first.url)) == 13


def test_a_refresh_that_is_killed_at_any_write_goes_on_to_the_same_snapshot(
    first: Store,
    here: Here,
    world: World,
    refresh: Refresh,
    labels_of: dict[str, tuple[str | None, str | None]],
) -> None:
    for number in range(7):
        world.write(f"new/{number}.png", picture(20 + number))
    (world.folder / "0/00.png").rename(world.folder / "9-moved.png")
    (world.folder / "1/01.png").unlink()
    kills = 0
    for write in range(60):
        with killed_at(write % 9, after=bool(write % 2)):
            try:
                code = refresh()[0]
            except Killed:
                kills += 1
                continue
        assert code == 0
        break
    assert kills >= 6
    assert content_of(first.url) == world.expected(labels_of)
    assert list_snapshots(first) == [1, 2]
    assert len(list_plans(first)) == 2
    whole(first)
    assert len(here.shards) == len(set(here.shards)) + sum(here.shards.count(shard) - 1 for shard in set(here.shards))


def test_a_refresh_beside_another_one_makes_one_result(
    first: Store,
    here: Here,
    world: World,
    refresh: Refresh,
    monkeypatch: pytest.MonkeyPatch,
    labels_of: dict[str, tuple[str | None, str | None]],
) -> None:
    """The other one starts while the first has compared and not planned yet, and sees one image more."""
    from da2ray.pipeline import run

    world.write("new/a.png", picture(20))
    other: list[str] = []
    stored_plan = run.stored_plan

    def overtaken(*args: object) -> object:
        monkeypatch.setattr(run, "stored_plan", stored_plan)
        world.write("new/b.png", picture(21))
        code, out, _ = refresh()
        assert code == 0
        other.append(out)
        return stored_plan(*args)

    monkeypatch.setattr(run, "stored_plan", overtaken)
    code, out, error = refresh()
    assert code == 0, error
    assert other
    assert content_of(first.url) == world.expected(labels_of)
    assert list_snapshots(first) == [1, 2]
    assert len(here.shards) == len(set(here.shards)), "each shard once"
    assert "nothing to do" in out, "it compares once more"
    whole(first)


@pytest.mark.slow
def test_a_month_of_refreshes_gives_what_labelling_from_scratch_gives(
    first: Store, world: World, refresh: Refresh, labels_of: dict[str, tuple[str | None, str | None]]
) -> None:
    chance = random.Random(7)  # noqa: S311 - not for secrets
    for day in range(30):
        for _ in range(chance.randint(0, 3)):
            world.change(chance, day)
        for _ in range(chance.randint(0, 2)):
            with killed_at(chance.randrange(7), after=chance.random() < 0.5), contextlib.suppress(Killed):
                refresh("--max-gone", "1")
        code, _, error = refresh("--max-gone", "1")
        assert code == 0, error
        assert content_of(first.url) == world.expected(labels_of), day
    numbers = list_snapshots(first)
    assert len(numbers) > 15
    whole(first)
    assert len(list_all_commits(first)) == len(list_plans(first))
    collect(first, timedelta(0), dry_run=False)
    for number in numbers:
        for each in da2ray.open_labels(first.url, number):
            assert (each.depth is not None) == (each.status == "labelled")


def test_a_manifest_with_columns_of_other_names_is_read_as_it_was_labelled(
    here: Here, world: World, refresh: Refresh, job_without_ray: Command, tmp_path: Path
) -> None:
    manifest = tmp_path / "m.csv"

    def write(keys: list[str]) -> None:
        rows = (f"n{number},{world.folder / key}" for number, key in enumerate(keys))
        manifest.write_text("\n".join(["name,where", *rows]))

    keys = world.keys()
    write(keys[:6])
    options = ("--teacher", "luminance", "--image-column", "where", "--key-column", "name")
    assert job_without_ray("--images", manifest, "--output", tmp_path / "labels", *options)[0] == 0
    assert refresh()[1].startswith("nothing to do")
    write(keys[:8])
    before = here.asked
    code, _, error = refresh()
    assert code == 0, error
    assert here.asked - before == 2
    assert da2ray.open_labels(str(tmp_path / "labels")).index["key"].to_pylist() == [f"n{n}" for n in range(8)]
