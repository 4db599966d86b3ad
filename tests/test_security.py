"""Text and files of others (keys, URIs, weights) are never run, and secrets never leave the memory of the job."""

import io
import json
import os
import pickle
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from da2ray.errors import Reason, Status, UserError
from da2ray.labels.reader import open_labels
from da2ray.sources import members_of, open_source
from da2ray.storage import Store, canonical_url, open_store, printable, redact, redacted
from da2ray.storage.base import short_message
from da2ray.teachers.depth_anything import checkpoint
from da2ray.teachers.depth_anything.configs import TINY
from tests.jobs import Finished, RunJob
from tests.s3_server import S3Server
from tests.sources.web_server import web_server

SECRET = "5uper5ecretSignature"  # noqa: S105
HOSTILE_KEYS = [
    "../../../escape.jpg",
    "/etc/cron.d/escape",
    "..\\..\\escape",
    "line\nbreak.jpg",
    "carriage\rreturn",
    "nul\0.jpg",
    "\x1b]0;title\x07\x1b[31mred\x1b[2J",
    "\u202egpj.txet",
    "[red]markup[/red]",
    "%2e%2e%2f",
    "s3://bucket/../x",
    "ключ/键/🗝️",
    "\ufeffbom",
    "e\u0301 is not \xe9",
    " x ",
    "k" * 10_000,
]


class Payload:
    """An object whose pickle runs a command when it is loaded."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://host/a.jpg?X-Amz-Signature=s", "https://host/a.jpg"),
        ("HTTPS://host/a.jpg?x=1#s", "HTTPS://host/a.jpg"),
        ("https://host?s", "https://host"),
        ("https://user:s@host/a.jpg", "https://host/a.jpg"),
        ("https://token@host:8443/@user/a.jpg?s", "https://host:8443/@user/a.jpg"),
        ("s3://key:s@bucket/a.jpg", "s3://bucket/a.jpg"),
        ("sftp://user:s@host/a.jpg", "sftp://host/a.jpg"),
        ("az://container/a.jpg?sv=2024&sig=s", "az://container/a.jpg"),
        ("zip://a.jpg::https://user:s@host/a.zip?sig=s", "zip://a.jpg::https://host/a.zip"),
        ("simplecache::https://user:s@host/a.jpg?sig=s", "simplecache::https://host/a.jpg"),
        # These have no secrets, so they do not change.
        ("abfss://container@account.dfs.core.windows.net/a.jpg", None),
        ("s3://bucket/what?.jpg", None),
        ("s3://bucket/a#1.jpg", None),
        ("/local/a.jpg?x=1", None),
        ("relative@2x.jpg?sig=1", None),
        ("org/name@v1:file.pth", None),
    ],
)
def test_a_shown_url_holds_no_credential(url: str, shown: str | None) -> None:
    assert redact(url) == (shown or url)
    assert redact(redact(url)) == redact(url)


def test_a_message_is_one_bounded_line_without_credentials() -> None:
    for key in HOSTILE_KEYS:
        line = printable(f"{key}: https://user:{SECRET}@host/a?sig={SECRET} failed\r\n{key}")
        assert line.isprintable()
        assert len(line) <= 500
        assert SECRET not in line
        assert SECRET not in short_message(f"GET https://host/a?sig={SECRET} failed")
    assert printable("x" * 10_000 + ": the cause").endswith("the cause")
    assert printable("x" * 10_000, limit=60) == printable(printable("x" * 10_000, limit=60), limit=60)
    assert printable("ключ 键 🗝") == "ключ 键 🗝"


def test_a_stored_configuration_holds_no_credential() -> None:
    values = {"images": f"https://h/m.csv?sig={SECRET}", "weights": f"https://u:{SECRET}@h/w.pth", "limit": 3}
    nested = values | {"allow": [f"https://u:{SECRET}@h"], "inner": values, "none": None}
    stored = redacted(nested)
    assert SECRET not in json.dumps(stored)
    assert stored["limit"] == 3
    assert stored["none"] is None
    assert stored["images"] == "https://h/m.csv"


@pytest.mark.parametrize(
    "url",
    [
        f"https://user:{SECRET}@host/labels",
        f"https://{SECRET}@host/labels",
        f"https://host/labels?sig={SECRET}",
        f"az://container/labels?sv=1&sig={SECRET}",
        f"s3://key:{SECRET}@bucket/labels",
        f"nonsense://key:{SECRET}@bucket/labels",
        f"https://?sig={SECRET}",
    ],
)
def test_a_credential_in_a_url_is_refused_without_showing_it(url: str) -> None:
    for use in (open_store, open_source, open_labels):
        with pytest.raises(UserError) as caught:
            use(url)
        assert SECRET not in str(caught.value)


def test_a_signed_manifest_is_the_same_source_under_every_signature(tmp_path: Path) -> None:
    body = b'{"uri": "a.jpg"}\n'
    with web_server({f"/m.jsonl?sig={SECRET}": body, "/m.jsonl?sig=other": body}) as server:
        first, second = (open_source(f"{server.url}/m.jsonl?sig={sig}") for sig in (SECRET, "other"))
        assert first.describe() == second.describe()
        assert SECRET not in f"{first.url} {first.root} {first.describe()}"
        (member,) = (member for batch in first.members() for member in members_of(batch))
    assert member.uri == f"{server.url}/a.jpg"
    assert SECRET.encode() not in pickle.dumps(first)


def test_a_signed_uri_keeps_its_signature_to_be_read_and_its_key_has_none(tmp_path: Path) -> None:
    uris = [f"https://h/{i}/../a{i}.jpg?next=/../b&sig={SECRET}" for i in range(2)] + ["s3://b/a?.jpg", "a.jpg?x"]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps({"uri": uri}) + "\n" for uri in uris))
    source = open_source(str(tmp_path / "m.jsonl"))
    members = [member for batch in source.members() for member in members_of(batch)]
    assert [member.key for member in members] == [
        "https://h/0/../a0.jpg",
        "https://h/1/../a1.jpg",
        "s3://b/a?.jpg",
        "a.jpg?x",
    ]
    assert members[1].uri == uris[1]
    for body in (sample.body for sample in source.fetch(members[:2], 2)):
        assert SECRET not in str(body)
    path = tmp_path / "twice.jsonl"
    path.write_text("".join(json.dumps({"uri": f"https://h/a.jpg?sig={SECRET}{i}"}) + "\n" for i in range(2)))
    with pytest.raises(UserError, match="add a column `key`") as caught:
        list(open_source(str(path), allow=["https"]).members())
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        f'{{"uri": "https://h/a?sig={SECRET}"}}\n{{"uri": 3, "https://h/a?sig={SECRET}\x1b[2J"\n',
        f"uri,b\nhttps://h/a?sig={SECRET},1\nhttps://h/a?sig={SECRET}\x1b[2J\n",
        f"id,https://h/a?sig={SECRET}\x1b[2J\n1,2\n",
    ],
)
def test_the_error_about_a_broken_manifest_shows_no_credential_and_no_escapes(tmp_path: Path, body: str) -> None:
    path = tmp_path / ("m.jsonl" if body.startswith("{") else "m.csv")
    path.write_text(body)
    with pytest.raises(UserError) as caught:
        list(open_source(str(path), allow=["https"]).members())
    assert SECRET not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_a_manifest_of_strings_that_are_not_utf8_is_a_user_error(tmp_path: Path) -> None:
    raw = pa.array([b"a.jpg", b"\xff\xfe.jpg"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"uri": raw}), tmp_path / "m.parquet")
    with pytest.raises(UserError, match=r"UTF-?8"):
        list(open_source(str(tmp_path / "m.parquet")).members())


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_weights_is_refused_and_not_run(tmp_path: Path, suffix: str, legacy: bool) -> None:
    path, proof = tmp_path / f"weights{suffix}", tmp_path / "ran"
    payload = Payload(f"touch {proof}")
    if legacy:
        path.write_bytes(pickle.dumps({"pretrained.cls_token": payload}))
    else:
        torch.save({"pretrained.cls_token": payload}, path)
    for read in (checkpoint.read_shapes, lambda path: checkpoint.load(path, TINY, "tiny")):
        with pytest.raises(UserError, match="cannot be read"):
            read(path)
    assert not proof.exists()
    pickle.loads(pickle.dumps(Payload(f"touch {proof}")))  # noqa: S301
    assert proof.exists(), "the payload would have done nothing anyway"


def test_signed_weights_leave_no_signature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DA2RAY_CACHE", str(tmp_path))
    file = io.BytesIO()
    torch.save({"x": torch.zeros(1)}, file)
    with web_server({f"/tiny.pth?sig={SECRET}": file.getvalue()}) as server:
        path = checkpoint.locate(f"{server.url}/tiny.pth?sig={SECRET}")
        assert path.read_bytes() == file.getvalue()
        assert path.suffix == ".pth"
        for url in (f"{server.url}/gone.pth?sig={SECRET}", f"http://user:{SECRET}@127.0.0.1:{server.port}/gone.pth"):
            with pytest.raises(UserError, match="cannot be fetched") as caught:
                checkpoint.locate(url)
            assert SECRET not in str(caught.value)
    with pytest.raises(UserError) as caught:
        checkpoint.locate(f"nosuch://user:{SECRET}@host/w.pth")
    assert SECRET not in str(caught.value)
    assert not [name for name in tmp_path.rglob("*") if SECRET in name.name]


def everything(store: Store, *, but: str = "\0") -> Iterator[tuple[str, str]]:
    """The name and all text of each object: its bytes, and the values in a Parquet file's compressed pages."""
    for batch in store.list():
        for key in batch["key"].to_pylist():
            data = store.get(key)
            text = data.decode("latin-1")
            if key.endswith(".parquet"):
                table = pq.read_table(pa.BufferReader(data))
                text += str(table.drop_columns([c for c in ("depth", "mask") if c in table.column_names]).to_pylist())
                text += str(table.schema.metadata)
            if not key.startswith(but):
                yield key, text


def assert_plain_names(names: Sequence[str]) -> None:
    """Check that no object's name comes from a key."""
    for name in names:
        assert re.fullmatch(r"[\w.-]+(/[\w.-]+)*", name, re.ASCII), name
        assert ".." not in name
        assert len(name) < 120


def assert_quiet(finished: Finished, *secrets: str) -> None:
    for output in (finished.stdout, finished.stderr):
        assert "\x1b" not in output
        assert "Traceback" not in output
        for secret in secrets:
            assert secret not in output


def test_a_job_over_a_hostile_signed_manifest_stores_and_says_nothing_secret(
    run_job: RunJob, photos: Path, tmp_path: Path
) -> None:
    image, output = (photos / "astronaut.jpg").read_bytes(), tmp_path / "out" / "labels"
    with web_server({}) as server:
        signed = [f"/{i}.jpg?X-Amz-Signature={SECRET}" for i in range(len(HOSTILE_KEYS))]
        rows = [{"key": key, "uri": server.url + path} for key, path in zip(HOSTILE_KEYS, signed, strict=True)]
        rows += [{"key": server.url + signed[0], "uri": server.url + signed[0]}]
        bad = {
            f"{server.url}/gone.jpg?sig={SECRET}": Reason.NOT_FOUND,
            f"https://user:{SECRET}@127.0.0.1/a.jpg": Reason.UNREADABLE,
            f"http://169.254.169.254/latest?token={SECRET}": Reason.FORBIDDEN,
            "file:///etc/passwd": Reason.FORBIDDEN,
            "../../../../etc/passwd": Reason.NOT_FOUND,
            "https://host/" + "x" * 10_000 + f"?sig={SECRET}": Reason.FORBIDDEN,
            "\x1b[31m\n\0.jpg": None,
        }
        rows += [{"key": f"bad {i}", "uri": uri} for i, uri in enumerate(bad)]
        manifest = "".join(json.dumps(row) + "\n" for row in rows).encode()
        server.answers = dict.fromkeys(signed, image) | {f"/m.jsonl?sig={SECRET}": manifest}
        options = ("--images", f"{server.url}/m.jsonl?sig={SECRET}", "--output", output, "--teacher", "luminance")
        finished = run_job(*options, "--shard-size", 8)
    assert finished.code == 0, finished
    assert_quiet(finished, SECRET)

    labels = open_labels(str(output))
    found = {row["key"]: row for row in labels.index.to_pylist()}
    assert set(found) == {*HOSTILE_KEYS, f"{server.url}/0.jpg", *(f"bad {i}" for i in range(len(bad)))}
    assert all(found[key]["status"] == Status.LABELLED for key in HOSTILE_KEYS)
    assert all(labels.by_key(key).depth is not None for key in HOSTILE_KEYS)
    for i, reason in enumerate(bad.values()):
        row = found[f"bad {i}"]
        assert row["status"] == Status.FAILED
        assert reason is None or row["reason"] == reason, row
        assert len(row["message"]) <= 500
        assert row["message"].isprintable()

    store = open_store(str(output))
    names = [name for name, _ in everything(store)]
    assert_plain_names(names)
    # Shards are read by their plan, so only the plan keeps the signatures of URLs.
    for name, text in everything(store, but="plans/"):
        assert SECRET not in text, name
    assert sorted(tmp_path.iterdir()) == [tmp_path / "out"]
    assert list((tmp_path / "out").iterdir()) == [output]


def test_a_job_over_hostile_file_names_on_s3_says_no_credential(
    run_job: RunJob, photos: Path, tmp_path: Path, s3: S3Server
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    names = [
        "line\nbreak.jpg",
        "\x1b[31mred.jpg",
        "..jpg.jpg",
        "back\\..\\slash.jpg",
        "[red]x[bold].jpg",
        "n" * 251 + ".jpg",
    ]
    for name in names:
        (images / name).write_bytes((photos / "astronaut.jpg").read_bytes())
    output = s3.create_bucket() + "/labels"
    finished = run_job(*("--images", images, "--output", output, "--teacher", "luminance", "--format", "zarr"))
    assert finished.code == 0, finished
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    assert_quiet(finished, secret)
    labels = open_labels(output)
    assert {label.key for label in labels if label.depth is not None} == {*names} - {"..jpg.jpg"}
    bucket = open_store(output.rpartition("/")[0])
    assert_plain_names([name for name, _ in everything(bucket)])
    assert all(name.startswith("labels/") for name, _ in everything(bucket)), "something escaped"
    for name, text in everything(bucket):
        assert secret not in text, name
    assert canonical_url(output) == output
