"""An object that cannot be read fails its sample; a store that is down fails no sample, and ends the reading."""

import errno
from pathlib import Path

import pytest

from da2ray.errors import NothingReadError, OutageError, Reason, SampleError
from da2ray.sources import Member
from da2ray.sources.fetch import fetch
from da2ray.storage.open import Client
from tests.fault_proxy import FaultProxy, Mode, Request

BODIES = {f"{number}.jpg": f"image {number}".encode() for number in range(8)}


def members(root: str) -> list[Member]:
    return [Member(name, f"{root}/a/{name}", None, None) for name in BODIES]


@pytest.mark.parametrize("mode", ["down", "refused"])
@pytest.mark.parametrize("read_before", [0, 2])
def test_a_store_that_is_down_ends_the_reading(
    bucket: str, proxy: FaultProxy, client: Client, mode: Mode, read_before: int
) -> None:
    reading = fetch(members(bucket), 1, client)
    assert [next(reading).body for _ in range(read_before)] == list(BODIES.values())[:read_before]
    asked: list[str] = []
    proxy.applies = lambda request: asked.append(request.target) or True
    proxy.set(mode)
    with pytest.raises(OutageError, match=bucket) as caught:
        next(reading)
    assert isinstance(caught.value, NothingReadError) == (read_before == 0)
    assert "\n" not in str(caught.value)
    if mode == "down":
        read_again = {target.partition("?")[0].rpartition("/")[2] for target in asked} - {f"{read_before}.jpg"}
        assert read_again == ({f"{read_before - 1}.jpg"} if read_before else set())


def test_a_bucket_that_is_gone_is_an_outage_and_one_that_never_was_is_its_samples_trouble(
    bucket: str, proxy: FaultProxy, client: Client
) -> None:
    gone = ["/never-made/"]
    proxy.refuses = lambda request: (404, "NoSuchBucket") if request.target.startswith(tuple(gone)) else None
    never = [Member(f"never/{name}", f"s3://never-made/{name}", None, None) for name in "ab"]
    with pytest.raises(NothingReadError, match="NoSuchBucket"):
        list(fetch(never, 1, client))
    reading = fetch([*members(bucket)[:2], *never, *members(bucket)[2:]], 1, client)
    read = [next(reading).body for _ in range(4)]
    assert [getattr(body, "reason", body) for body in read] == [*list(BODIES.values())[:2], *[Reason.NOT_FOUND] * 2]
    gone.append(f"/{bucket.removeprefix('s3://')}/")
    with pytest.raises(OutageError, match="NoSuchBucket"):
        list(reading)


def test_threads_that_fail_at_the_same_time_ask_once(bucket: str, proxy: FaultProxy, client: Client) -> None:
    assert next(fetch(members(bucket)[:1], 1, client)).body == BODIES["0.jpg"]
    probes: list[str] = []
    proxy.applies = lambda request: probes.append(request.target) or True
    proxy.set("down")
    with pytest.raises(OutageError):
        list(fetch(members(bucket)[1:], 7, client))
    alone = len(probes)
    assert 0 < sum("0.jpg" in target for target in probes) < alone / 2


def test_one_object_that_cannot_be_read_is_its_own_trouble(bucket: str, proxy: FaultProxy, client: Client) -> None:
    proxy.applies = lambda request: request.target.endswith("3.jpg")
    proxy.set("down")
    read = {sample.member.key: sample.body for sample in fetch(members(bucket), 8, client)}
    error = read.pop("3.jpg")
    assert isinstance(error, SampleError)
    assert error.reason is Reason.UNREADABLE
    assert read == {name: body for name, body in BODIES.items() if name != "3.jpg"}


def test_what_an_outage_delayed_is_read_once_it_is_over(bucket: str, proxy: FaultProxy, client: Client) -> None:
    assert next(fetch(members(bucket)[:1], 1, client)).body == BODIES["0.jpg"]
    over = False

    def until_asked(request: Request) -> bool:
        nonlocal over
        over = over or "0.jpg" in request.target
        return not over

    proxy.applies = until_asked
    proxy.set("down")
    read = {sample.member.key: sample.body for sample in fetch(members(bucket)[1:], 8, client)}
    assert {"0.jpg": BODIES["0.jpg"], **read} == BODIES


def test_a_web_server_that_is_gone_is_its_samples_trouble(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(b"image")
    uris = ["http://127.0.0.1:9/0.jpg", str(tmp_path / "1.jpg")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DA2RAY_RETRY_SECONDS", "1")
        bodies = [sample.body for sample in fetch([Member(uri, uri) for uri in uris], 2)]
    assert isinstance(bodies[0], SampleError)
    assert (bodies[0].reason, bodies[1]) == (Reason.UNREADABLE, b"image")


@pytest.mark.parametrize(("broken", "ends"), [("both", True), ("file", False)])
def test_a_mount_that_is_gone_is_an_outage_and_a_bad_sector_is_not(
    broken: str, ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "1.jpg"
    path.write_bytes(b"image")
    real = Path.stat

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "open", fails)
    monkeypatch.setattr(Path, "stat", lambda self, **how: fails() if broken == "both" else real(self, **how))
    reading = fetch([Member("1.jpg", str(path), None, None)], 1)
    if ends:
        with pytest.raises(OutageError, match="Input/output error") as caught:
            list(reading)
        assert str(path) in str(caught.value), (
            "the message names the image, not the file that was looked for to be sure"
        )
        return
    (sample,) = reading
    assert isinstance(sample.body, SampleError)
    assert sample.body.reason is Reason.UNREADABLE


def test_a_folder_that_has_lost_all_files_is_an_outage_and_one_file_that_is_gone_is_not(tmp_path: Path) -> None:
    paths = []
    for name, body in BODIES.items():
        (tmp_path / name).write_bytes(body)
        paths.append(Member(name, str(tmp_path / name), len(body), None))
    reading = fetch(paths, 1)
    assert [next(reading).body for _ in range(2)] == list(BODIES.values())[:2]
    (tmp_path / "0.jpg").unlink()
    (tmp_path / "2.jpg").unlink()
    gone = next(reading).body
    assert isinstance(gone, SampleError)
    assert gone.reason is Reason.NOT_FOUND
    assert next(reading).body == BODIES["3.jpg"]
    for path in tmp_path.iterdir():  # as if the disk were not mounted any more
        path.unlink()
    with pytest.raises(OutageError, match="is the disk still mounted"):
        next(reading)


def test_a_process_that_has_read_no_file_takes_a_file_that_is_gone_for_gone(tmp_path: Path) -> None:
    (gone,) = fetch([Member("a", str(tmp_path / "a.jpg"), None, None)], 1)
    assert isinstance(gone.body, SampleError)
    assert gone.body.reason is Reason.NOT_FOUND
