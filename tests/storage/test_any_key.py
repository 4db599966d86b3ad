"""S3 takes any text for a key. Each object is listed once, under its own key, and read as itself, or it is refused."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from da2ray.errors import Reason, SampleError
from da2ray.labels.reader import open_labels
from da2ray.sources import MemberSource, members_of, open_source
from da2ray.storage import Store, open_store, split_uri
from tests.any_key_s3 import AnyKeyS3, any_key_s3
from tests.jobs import Command, RunJob
from tests.photos import write_crops

ODD = [
    "p/a.jpg", "p//a.jpg", "p/a.jpg/", "p/a.jpg//", "p///a.jpg", "/p/a.jpg", "//p/a.jpg", "a.jpg/", "p/./a.jpg", "p/x/../a.jpg",
    "p/../a.jpg", "p/\x01a.jpg", "p/a\n.jpg", "p/\x7fa.jpg", "p/a?versionId=1.jpg", "p/a.jpg?versionId=1/b.jpg", "p/%2Fa.jpg",
    "p/a%.jpg", "p/ a.jpg", "p/a.jpg /b.jpg", "p/\\a.jpg", "p/<a>&'\".jpg", "p/\u2028a.jpg", "p/a#b.jpg", "p/[a]*.jpg",
    "p/+a.jpg",
]  # fmt: skip
"""Keys of images, most of which some client or URL library takes for another key."""


@pytest.fixture
def store_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[AnyKeyS3]:
    monkeypatch.setenv("DA2RAY_RETRY_SECONDS", "1")
    with any_key_s3({}) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield server


def keys(store: Store, prefix: str = "") -> list[str]:
    return [key for batch in store.list(prefix) for key in batch["key"].to_pylist()]


@pytest.mark.parametrize("client", ["auto", "obstore", "fsspec"])
@pytest.mark.parametrize("folder", ["", "p", "p/x/..", "/p"])
def test_every_object_is_listed_once_and_read_as_itself(store_s3: AnyKeyS3, client: str, folder: str) -> None:
    store_s3.objects |= {key: key.encode() for key in ODD}
    store = open_store(f"s3://b/{folder}", client)
    below = f"{folder}/" if folder else ""
    assert keys(store) == sorted((key.removeprefix(below) for key in ODD if key.startswith(below)), key=str.encode)
    for key in keys(store):
        body = (below + key).encode()
        if key.startswith("../"):
            with pytest.raises(ValueError, match="not a key"):
                store.get(key)
            continue
        assert (store.get(key), store.stat(key).size) == (body, len(body))
        assert store.get_range(key, 1, 3) == body[1:4]
    odd = [key for key in keys(store) if not key.startswith("../")]
    store.delete(odd[1:])
    assert store_s3.objects.keys() >= {below + odd[0]}
    assert not store_s3.objects.keys() & {below + key for key in odd[1:]}


def test_an_object_of_no_bytes_that_stands_for_a_folder_is_not_listed(store_s3: AnyKeyS3) -> None:
    store_s3.objects |= {"p/": b"", "p/IMG_1.JPG/": b"", "p/IMG_1.JPG/t.jpg": b"x", "p/empty.jpg": b""}
    assert keys(open_store("s3://b/p")) == ["IMG_1.JPG/t.jpg", "empty.jpg"]


@pytest.mark.parametrize("client", ["auto", "fsspec"])
def test_a_prefix_of_odd_keys_is_a_source_of_all_of_them(store_s3: AnyKeyS3, client: str) -> None:
    store_s3.objects |= {key: key.encode() for key in ODD}
    source = open_source("s3://b", client)
    assert isinstance(source, MemberSource)
    members = [member for batch in source.members() for member in members_of(batch)]
    assert sorted(member.key for member in members) == sorted(ODD)
    assert [sample.body for sample in source.fetch(members, 4)] == [member.key.encode() for member in members]
    for member in members:
        assert split_uri(member.uri) == ("s3://b", member.key)


def test_a_manifest_reads_the_object_that_it_names_and_no_other(store_s3: AnyKeyS3, tmp_path: Path) -> None:
    store_s3.objects |= {"a.jpg": b"another", "x/a.jpg": b"another"}
    for uri in ("s3://b/a.jpg/", "s3://b//a.jpg", "s3://b/x/../a.jpg", "s3://b/./a.jpg", "s3://b/x//a.jpg"):
        (tmp_path / "m.csv").write_text(f"uri\n{uri}\n")
        source = open_source(tmp_path / "m.csv")
        (sample,) = source.fetch([member for batch in source.members() for member in members_of(batch)], 1)
        assert isinstance(sample.body, SampleError), uri
        assert sample.body.reason in {Reason.NOT_FOUND, Reason.UNREADABLE}


part = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=4) | st.sampled_from(
    ["", ".", "..", "a.jpg"]
)


@given(names=st.sets(st.lists(part, min_size=1, max_size=4).map("/".join).filter(bool), min_size=1, max_size=6))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_keys_are_read_as_themselves_or_refused(store_s3: AnyKeyS3, names: set[str]) -> None:
    store_s3.objects.clear()
    store_s3.objects |= {name: name.encode() for name in names}
    for client in ("auto", "fsspec"):
        store = open_store("s3://b", client)
        assert keys(store) == sorted(names, key=str.encode)
        for name in names:
            try:
                assert store.get(name) == name.encode()
            except ValueError:
                assert ".." in name.split("/")


def test_a_run_over_odd_keys_comes_to_an_end(
    store_s3: AnyKeyS3, run_job: RunJob, command: Command, tmp_path: Path
) -> None:
    photo = next(write_crops(tmp_path / "photos", 1).iterdir()).read_bytes()
    store_s3.objects |= dict.fromkeys(["p/a.jpg", "p//a.jpg", "p/a.jpg/", "p/x/../../../a.jpg", "/p/b.jpg"], photo)
    options = ("--images", "s3://b", "--output", tmp_path / "labels", "--teacher", "luminance")
    for _ in range(2):
        finished = run_job(*options, env=store_s3.env)
        assert finished.code == 0, finished
        rows = open_labels(tmp_path / "labels").index
        assert {row["key"]: row["reason"] for row in rows.to_pylist()} == {
            "p/a.jpg": None, "p//a.jpg": None, "p/a.jpg/": None, "/p/b.jpg": None, "p/x/../../../a.jpg": "unreadable",
        }  # fmt: skip
        for what in ("verify", "repair"):
            code, _, said = command(what, tmp_path / "labels")
            assert code == 0, said
