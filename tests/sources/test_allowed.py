"""A manifest's URIs reach only what the user allowed. No other scheme, host, redirect or name gets around that."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from da2ray.errors import Reason, SampleError, UserError
from da2ray.sources import Member, MemberSource, members_of, open_source
from da2ray.sources.allowed import Allowed, is_private
from da2ray.sources.fetch import fetch
from tests.s3_server import S3Server
from tests.sources.web_server import web_server

LOCAL, REMOTE, WEB = "/data/m.csv", "s3://bucket/folder/m.csv", "https://images.example/m.csv"


@pytest.fixture(autouse=True)
def _no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep clients from waiting for hosts that do not exist."""
    monkeypatch.setenv("DA2RAY_RETRY_SECONDS", "0")


def write_manifest(path: Path, uris: Sequence[str]) -> str:
    path.write_text("".join(json.dumps({"uri": uri}) + "\n" for uri in uris))
    return str(path)


def one(source: MemberSource, uri: str) -> bytes | SampleError:
    (sample,) = source.fetch([Member("k", uri)], 1)
    return sample.body


def refused(uri: str, *words: str, manifest: str = LOCAL) -> str:
    """The reason why fetching it is refused. AssertionError if it is not refused."""
    (sample,) = fetch([Member("k", uri)], 1, allowed=Allowed.of(manifest, words))
    assert isinstance(sample.body, SampleError), "was read"
    assert sample.body.reason is Reason.FORBIDDEN, sample.body.message
    return sample.body.message


@pytest.mark.parametrize(
    ("manifest", "uri", "allowed"),
    [
        (LOCAL, "/data/a.jpg", True),
        (LOCAL, "/elsewhere/a.jpg", True),
        (LOCAL, "s3://any/a.jpg", True),
        (LOCAL, "gcs://any/a.jpg", True),
        (LOCAL, "abfss://container@account.dfs.core.windows.net/a.jpg", True),
        (LOCAL, "https://images.example/a.jpg", False),
        (REMOTE, "s3://bucket/a.jpg", True),
        (REMOTE, "S3A://other/a.jpg", True),
        (REMOTE, "gs://other/a.jpg", True),
        (REMOTE, "/etc/passwd", False),
        (REMOTE, "file:///etc/passwd", False),
        (REMOTE, "FILE:///etc/passwd", False),
        (REMOTE, "local://here/etc/passwd", False),
        # da2ray's stores find no scheme in it, and would take it for a local path.
        (REMOTE, "a.b://../../../etc/passwd", False),
        (REMOTE, "https://images.example/a.jpg", False),
        (REMOTE, "http://169.254.169.254/latest/meta-data", False),
        (WEB, "https://images.example/a.jpg?v=1", True),
        (WEB, "https://images.example:443/a.jpg", True),
        (WEB, "https://images.example:8443/a.jpg", False),
        (WEB, "http://images.example/a.jpg", False),
        (WEB, "https://other.example/a.jpg", False),
        (WEB, "s3://bucket/a.jpg", False),
        (WEB, "/etc/passwd", False),
        ("memory://folder/m.csv", "memory://other/a.jpg", True),
        ("memory://folder/m.csv", "/etc/passwd", False),
    ],
)
def test_by_default_a_manifest_leads_to_stores_like_its_own(manifest: str, uri: str, allowed: bool) -> None:
    assert (Allowed.of(manifest).refusal(uri) is None) is allowed


@pytest.mark.parametrize("scheme", ["ssh", "sftp", "smb", "github", "dask", "reference", "dir", "ftp", "hdfs"])
@pytest.mark.parametrize("manifest", [LOCAL, REMOTE])
def test_other_schemes_must_be_named(manifest: str, scheme: str) -> None:
    uri = f"{scheme}://host/a.jpg"
    assert f"--allow-scheme {scheme}" in str(Allowed.of(manifest).refusal(uri))
    assert Allowed.of(manifest, [scheme]).refusal(uri) is None
    assert Allowed.of(manifest, [f"{scheme}:host"]).refusal(uri) is None
    assert Allowed.of(manifest, [f"{scheme}:other"]).refusal(uri)


@pytest.mark.parametrize(
    "uri",
    ["simplecache::s3://bucket/a.jpg", "zip://a.jpg::s3://bucket/a.zip", "filecache::file:///etc/passwd"],
)
def test_urls_within_urls_are_not_read(uri: str, tmp_path: Path) -> None:
    assert refused(uri)
    # They are not taken for names below the manifest's folder either.
    source = open_source(write_manifest(tmp_path / "m.jsonl", [uri, "a.jpg"]))
    (batch,) = source.members(1)
    assert [member.uri for member in members_of(batch)] == [uri]


@pytest.mark.parametrize(
    "bucket", ["evil.example?", "evil.example#", "host:8080", "c@localhost#", "c@host:1", "a b", "a%2fb"]
)
@pytest.mark.parametrize("scheme", ["s3", "abfss"])
def test_the_name_of_a_bucket_cannot_lead_to_another_host(scheme: str, bucket: str) -> None:
    assert "bucket" in refused(f"{scheme}://{bucket}/a.jpg", scheme)


def test_files_of_one_folder_can_be_allowed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "in-not"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.jpg").write_bytes(b"x")
    (inside / "link.jpg").symlink_to(outside / "a.jpg")
    for word in (f"file:{inside}", f"file://{inside}", f"file://{inside}/"):
        allowed = Allowed.of(REMOTE, [word])
        assert allowed.refusal(f"{inside}/a.jpg") is None
        assert allowed.refusal(f"file://{inside}/a.jpg") is None
        for uri in (f"{outside}/a.jpg", f"{inside}/../in-not/a.jpg", f"file://{inside}/%2e%2e/in-not/a.jpg"):
            assert allowed.refusal(uri), uri
        assert allowed.refusal(f"{inside}/link.jpg"), "a link led outside"
        with pytest.raises(UserError):
            allowed.refusal(f"{inside}/a\0.jpg")
    assert Allowed.of(REMOTE, ["file"]).refusal(f"{outside}/a.jpg") is None


@pytest.mark.parametrize("word", ["", "::", "simplecache::s3", "https:", "file:", "a b", "https:user:secret@host"])
def test_a_word_that_allows_nothing_is_a_user_error(word: str) -> None:
    with pytest.raises(UserError) as caught:
        Allowed.of(LOCAL, [word])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "private"),
    [
        ("127.0.0.1", True),
        ("10.1.2.3", True),
        ("169.254.169.254", True),
        ("100.64.0.1", True),
        ("0.0.0.0", True),  # noqa: S104
        ("224.0.0.1", True),
        ("::1", True),
        ("fe80::1%eth0", True),
        ("fd00:ec2::254", True),
        ("::ffff:169.254.169.254", True),
        ("64:ff9b::a9fe:a9fe", True),
        ("2002:7f00:1::", True),
        ("8.8.8.8", False),
        ("2606:4700::1111", False),
        ("64:ff9b::808:808", False),
        ("images.example", False),
    ],
)
def test_private_addresses_are_known_however_they_are_written(address: str, private: bool) -> None:
    assert is_private(address) is private


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "localhost.", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "127.1", "0x7f.1", "0"],
)
def test_the_scheme_alone_allows_no_private_host(host: str) -> None:
    with web_server({"/a.jpg": b"x"}) as server:
        (sample,) = fetch(
            [Member("k", f"http://{host}:{server.port}/a.jpg", None, None)], 1, allowed=Allowed.of(LOCAL, ["http"])
        )
        assert isinstance(sample.body, SampleError)
        assert server.asked == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST"])
def test_a_named_host_is_read_as_the_error_proposed(host: str) -> None:
    with web_server({"/a.jpg": b"x"}) as server:
        uri = f"http://{host}:{server.port}/a.jpg"
        option = refused(uri, "http").rpartition("--allow-scheme ")[2]
        assert option == f"http:{host.lower()}:{server.port}"
        assert refused(uri).endswith(option)
        (sample,) = fetch([Member("k", uri, None, None)], 1, allowed=Allowed.of(LOCAL, [option]))
        assert sample.body == b"x"
        assert server.asked == ["/a.jpg"], "one GET, and none before it was allowed"


def test_a_host_is_what_the_client_takes_for_it() -> None:
    with web_server({"/a.jpg": b"x"}) as named, web_server({"/a.jpg": b"x"}) as other:
        allow = f"http:127.0.0.1:{named.port}"
        for uri in (
            f"http://127.0.0.1:{named.port}@127.0.0.1:{other.port}/a.jpg",
            f"http://127.0.0.1:{other.port}#@127.0.0.1:{named.port}/a.jpg",
            f"http://127.0.0.1:{other.port}\\@127.0.0.1:{named.port}/a.jpg",
            f"http://127.0.0.1:{other.port}?127.0.0.1:{named.port}/a.jpg",
        ):
            (sample,) = fetch([Member("k", uri, None, None)], 1, allowed=Allowed.of(LOCAL, [allow]))
            assert isinstance(sample.body, SampleError), uri
        assert other.asked == []


def test_a_redirect_leads_only_where_the_manifest_may() -> None:
    with web_server({"/secret": b"x"}) as internal, web_server({}) as server:
        targets = [
            f"{internal.url}/secret",
            f"http://localhost:{internal.port}/secret",
            "http://169.254.169.254/latest",
        ]
        targets += ["https://images.example/a.jpg", "file:///etc/passwd"]
        server.answers = {f"/{index}": target for index, target in enumerate(targets)}
        for index in range(len(targets)):
            (sample,) = fetch(
                [Member("k", f"{server.url}/{index}", None, None)],
                1,
                allowed=Allowed.of(LOCAL, [f"http:127.0.0.1:{server.port}"]),
            )
            assert isinstance(sample.body, SampleError), targets[index]
            assert index == 4 or sample.body.reason is Reason.FORBIDDEN, sample.body.message
        assert internal.asked == []
        server.answers = {"/0": f"{internal.url}/secret"}
        words = [f"http:127.0.0.1:{port}" for port in (server.port, internal.port)]
        (sample,) = fetch([Member("k", f"{server.url}/0", None, None)], 1, allowed=Allowed.of(LOCAL, words))
        assert sample.body == b"x"


def test_a_web_answer_has_the_reason_it_has_elsewhere() -> None:
    with web_server({}) as server:
        (sample,) = fetch(
            [Member("k", f"{server.url}/gone?sig=hush", None, None)],
            1,
            allowed=Allowed.of(LOCAL, [f"http:127.0.0.1:{server.port}"]),
        )
    assert isinstance(sample.body, SampleError)
    assert sample.body.reason is Reason.NOT_FOUND
    assert "hush" not in sample.body.message


def test_a_body_without_end_is_one_failed_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    from da2ray.sources import web

    monkeypatch.setattr(web, "MOST_BYTES", 1 << 20)
    with web_server({"/a.jpg": b"x" * (3 << 20), "/b.jpg": b"y" * (1 << 20)}) as server:
        members = [Member(name, f"{server.url}/{name}.jpg", None, None) for name in "ab"]
        allowed = Allowed.of(LOCAL, [f"http:127.0.0.1:{server.port}"])
        endless, whole = (sample.body for sample in fetch(members, 1, allowed=allowed))
    assert isinstance(endless, SampleError)
    assert endless.reason is Reason.UNREADABLE
    assert "1 MiB" in endless.message
    assert whole == b"y" * (1 << 20)


def test_a_refused_row_is_planned_and_the_others_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    source = open_source(write_manifest(tmp_path / "m.jsonl", ["http://host/1.jpg", "a.jpg", "ssh://host/2.jpg"]))
    members = [member for batch in source.members() for member in members_of(batch)]
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301
    bodies = [sample.body for sample in copy.fetch(members, 2)]
    assert [body.reason if isinstance(body, SampleError) else body for body in bodies] == [
        Reason.FORBIDDEN,
        b"x",
        Reason.FORBIDDEN,
    ]


def test_a_manifest_of_nothing_allowed_is_a_user_error_that_names_the_option(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m.jsonl", [f"https://images.example/{i}.jpg?sig=hush" for i in range(2000)])
    with pytest.raises(UserError, match=r"--allow-scheme https:images\.example") as caught:
        open_source(manifest)
    assert "hush" not in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2
    assert len(str(caught.value)) < 600
    assert (
        open_source(manifest, allow=["https"]).describe()
        == open_source(manifest, allow=["https:images.example"]).describe()
    )


def test_a_remote_manifest_reads_no_local_file(s3: S3Server, tmp_path: Path) -> None:
    from da2ray.storage import open_store

    (tmp_path / "a.jpg").write_bytes(b"x")
    store = open_store(s3.create_bucket() + "/folder")
    store.put("m.csv", f"uri\n{tmp_path}/a.jpg\n../../../../a.jpg\n".encode())
    store.put("b.csv", f"uri\n{tmp_path}/a.jpg\n".encode())
    source = open_source(f"{store.url}/m.csv")
    (local, above) = [member for batch in source.members() for member in members_of(batch)]
    assert above.uri == store.url.rpartition("/")[0] + "/a.jpg", "a relative URI left the bucket"
    body = one(source, local.uri)
    assert isinstance(body, SampleError)
    assert body.reason is Reason.FORBIDDEN
    with pytest.raises(UserError, match="--allow-scheme file"):
        open_source(f"{store.url}/b.csv")
    assert one(open_source(f"{store.url}/b.csv", allow=[f"file:{tmp_path}"]), local.uri) == b"x"


def test_a_pipe_or_device_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to("/dev/zero")
    sources = [open_source(str(tmp_path)), open_source(write_manifest(tmp_path / "m.jsonl", ["pipe.jpg", "/dev/zero"]))]
    for source in sources:
        members = [member for batch in source.members() for member in members_of(batch)]
        assert len(members) == 2
        for body in (sample.body for sample in source.fetch(members, 2)):
            assert isinstance(body, SampleError)
            assert body.reason is Reason.UNREADABLE


def test_the_web_client_is_loaded_only_for_web_uris() -> None:
    code = "import sys, da2ray.sources; print('aiohttp' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"
