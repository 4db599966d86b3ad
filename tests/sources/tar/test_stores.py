"""Tars in object stores and on web servers are read by ranges, and a store that fails changes nothing."""

import tarfile
from pathlib import Path

import pytest

from da2ray.errors import OutageError
from da2ray.sources import open_source
from da2ray.storage import Client, open_store
from tests.fault_proxy import FaultProxy, Mode
from tests.sources.tar.tars import read_all, read_shard, some_bodies, specs_of, tar_bytes
from tests.sources.web_server import web_server

MEMBERS = {f"{number:02d}.jpg": body for number, body in enumerate(some_bodies(20))}
TAR = tar_bytes(MEMBERS | {"inner.tar": tar_bytes(MEMBERS)}, tarfile.PAX_FORMAT)
BODIES = {"x.tar": TAR, "notes.txt": b"x"}
WANTED = {f"x.tar/{name}": body for name, body in MEMBERS.items()}


def test_ranges_of_tars_on_s3(bucket: str, client: Client) -> None:
    etag = open_store(bucket).stat("a/x.tar").etag
    for url in (f"{bucket}/a", f"{bucket}/a/*.tar", f"{bucket}/a/x.tar"):
        read = read_all(open_source(url, client), 40 * 512, concurrency=4)
        assert read.bodies == WANTED
        assert {sample.etag for sample in read.samples.values()} == {etag}
        assert {sample.member.uri for sample in read.samples.values()} == {f"{bucket}/a/x.tar"}


@pytest.mark.parametrize("mode", ["slow_down", "reset", "truncate"])
def test_a_store_that_fails_now_and_then_changes_nothing(
    bucket: str, proxy: FaultProxy, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DA2RAY_RETRY_SECONDS", "60")
    source = open_source(f"{bucket}/a")
    proxy.set(mode)
    assert read_all(source, 20 * 512, concurrency=4).bodies == WANTED


def test_a_store_that_goes_down_ends_the_reading_and_makes_no_rows(bucket: str, proxy: FaultProxy) -> None:
    source = open_source(f"{bucket}/a")
    first, *_, last = specs_of(source, 20 * 512)
    assert read_shard(source, first)[0]
    proxy.set("down")
    with pytest.raises(OutageError):
        read_shard(source, last)


def test_tars_of_a_manifest_on_web_servers_are_read_by_ranges(tmp_path: Path) -> None:
    with web_server({"/x.tar?sig=secret": TAR}) as web:
        web.etags = {"/x.tar?sig=secret": '"v1"'}
        manifest = tmp_path / "m.csv"
        manifest.write_text(f"uri,key\n{web.url}/x.tar?sig=secret,x.tar\n")
        source = open_source(str(manifest), allow=[f"http:127.0.0.1:{web.port}"])
        read = read_all(source, 9 * 512, concurrency=2)
        assert read.bodies == WANTED
        assert len(read.shards) > 5
        asked = len(web.asked)
        manifest.write_text(f"uri,key\n{web.url}/x.tar?sig=secret,x.tar\n{tmp_path}/y.tar,y.tar\n")
        refused = open_source(str(manifest))
        assert read_all(refused, 1 << 30).reasons == {"x.tar/@0": "forbidden", "y.tar/@0": "not_found"}
        assert len(web.asked) == asked
