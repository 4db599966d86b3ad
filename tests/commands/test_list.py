"""`da2ray list` writes a manifest that plans the same members as the URL that it lists."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from da2ray.sources import Member, members_of, open_source
from da2ray.storage import open_store
from da2ray.storage.local import LocalStore
from tests.any_key_s3 import any_key_s3
from tests.jobs import Command
from tests.storage.test_any_key import ODD


def members(url: str | Path) -> list[Member]:
    return [member for batch in open_source(url).members() for member in members_of(batch)]


def as_planned(found: list[Member]) -> list[tuple[str, str, int | None, str | None]]:
    return [(member.key, member.uri, member.size, member.etag) for member in found]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for name in ("a.jpg", "b/c.png", "b/.hidden.jpg", "d.heic", "b/ü [1] #?.jpg", "b/~x.jpg", "b/ .jpg", "empty.jpg"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(b"x" * (name != "empty.jpg"))
    return folder


def test_a_local_folder_and_its_manifest_have_the_same_members(images: Path, command: Command, tmp_path: Path) -> None:
    manifest = tmp_path / "lists" / "m.parquet"
    code, stdout, _ = command("list", images, "--output", manifest)
    assert code == 0
    assert "6 images" in stdout
    assert "passed over: 1 hidden file, 1 image of a type that is not read" in stdout
    assert as_planned(members(manifest)) == as_planned(members(images))
    assert pq.read_schema(manifest).names == ["key", "uri", "size", "etag"]
    (images / "z.jpg").write_bytes(b"z")
    assert command("list", images, "--output", manifest)[0] == 0
    assert len(members(manifest)) == 7


def test_a_prefix_of_odd_keys_and_its_manifest_have_the_same_members(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with any_key_s3({key: key.encode() for key in ODD}) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        code, _, stderr = command("list", "s3://b", "--output", tmp_path / "m.parquet")
        assert code == 0, stderr
        listed = members("s3://b")
        assert len(listed) == len(ODD)
        assert as_planned(members(tmp_path / "m.parquet")) == as_planned(listed)


def test_a_manifest_may_lie_in_an_object_store(bucket_url: str, command: Command, images: Path) -> None:
    store = open_store(f"{bucket_url}/photos")
    store.put("a.jpg", b"x")
    code, _, stderr = command("list", store.url, "--output", f"{bucket_url}/lists/m.parquet")
    assert code == 0, stderr
    assert as_planned(members(f"{bucket_url}/lists/m.parquet")) == as_planned(members(store.url))


@pytest.fixture
def bucket_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue("s3").create_bucket()
    return url


def test_what_ends_a_listing_leaves_nothing_and_an_older_manifest_as_it_was(
    images: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = tmp_path / "m.parquet"
    assert command("list", images, "--output", manifest)[0] == 0
    before = manifest.read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "put_file", interrupted)
        assert command("list", images, "--output", manifest)[0] == 75
    assert manifest.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "m.parquet"]


@pytest.mark.parametrize(
    ("url", "output", "words"),
    [
        ("{images}", "m.csv", "must end in .parquet"),
        ("{images}/b/none", "m.parquet", "no such folder"),
        ("{images}/nothing", "m.parquet", "no images under"),
        ("{images}", "s3://", "must end in .parquet"),
        ("{images}", "{images}/a.jpg/m.parquet", "cannot write"),
    ],
)
def test_what_cannot_be_listed_or_written_is_told_at_once(
    images: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, output: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (images / "nothing").mkdir()
    code, _, stderr = command("list", url.format(images=images), "--output", output.format(images=images))
    assert code == 2
    assert words in stderr
