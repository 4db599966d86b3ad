"""AWS configuration is resolved as AWS tools resolve it, and both clients get the same."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from da2ray.errors import Exit, RejectedError, StoreError, UserError
from da2ray.storage import Store, open_store
from da2ray.storage.aws import aws_config
from da2ray.storage.open import Client
from tests.s3_server import S3Server
from tests.storage.tls_server import TlsServer

NOWHERE = "http://127.0.0.1:9"


class Files:
    """The AWS files of a user."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def config(self, text: str) -> None:
        (self._folder / "config").write_text(text)

    def credentials(self, text: str) -> None:
        (self._folder / "credentials").write_text(text)


@pytest.fixture(scope="module")
def bucket(s3: S3Server) -> str:
    url = s3.create_bucket()
    open_store(url).put("a", b"x")
    return url


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    """Empty AWS files, and an environment that only names their places."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("DA2RAY_RETRY_SECONDS", "0")
    return Files(tmp_path)


def keys(s3: S3Server) -> str:
    return f"aws_access_key_id = {s3.access_key}\naws_secret_access_key = {s3.secret_key}\n"


def keys_in_environment(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)


@pytest.mark.parametrize(
    "config",
    [
        "[default]\nregion = us-east-1\nendpoint_url = {here}\n",
        "[default]\nservices = mine\n[services mine]\ns3 =\n  endpoint_url = {here}\n",
        "[default]\nservices = mine\nendpoint_url = {nowhere}\n[services mine]\ns3 =\n  endpoint_url = {here}\n",
        "[default]\nendpoint_url = {here}\nservices = mine\n[services mine]\ndynamodb =\n  endpoint_url = {nowhere}\n",
        "[default]\nendpoint_url = {here}\ns3 =\n  addressing_style = path\n",
    ],
)
@pytest.mark.parametrize("keys_in", ["environment", "credentials", "config"])
def test_an_endpoint_in_the_config_file_is_used_wherever_the_keys_are(
    bucket: str, s3: S3Server, client: Client, files: Files, monkeypatch: pytest.MonkeyPatch, config: str, keys_in: str
) -> None:
    text = config.format(here=s3.endpoint, nowhere=NOWHERE)
    if keys_in == "environment":
        keys_in_environment(s3, monkeypatch)
    elif keys_in == "credentials":
        files.credentials(f"[default]\n{keys(s3)}")
    else:
        text = text.replace("[default]\n", f"[default]\n{keys(s3)}")
    files.config(text)
    assert open_store(bucket, client).get("a") == b"x"


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_the_environment_goes_before_the_file_field_by_field(
    bucket: str, s3: S3Server, client: Client, files: Files, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    files.config(f"[default]\nendpoint_url = {NOWHERE}\nregion = eu-west-1\n")
    files.credentials(f"[default]\n{keys(s3)}")
    monkeypatch.setenv("AWS_ENDPOINT_URL", NOWHERE)
    monkeypatch.setenv(variable, s3.endpoint)
    assert open_store(bucket, client).get("a") == b"x"
    assert aws_config().region == "eu-west-1"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-2")
    assert aws_config().region == "eu-west-2"
    monkeypatch.setenv("AWS_REGION", "eu-west-3")
    assert aws_config().region == "eu-west-3"


def test_empty_variables_are_not_set(
    bucket: str, s3: S3Server, client: Client, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.config(f"[default]\nendpoint_url = {s3.endpoint}\n")
    keys_in_environment(s3, monkeypatch)
    for name in (
        "AWS_PROFILE",
        "AWS_DEFAULT_PROFILE",
        "AWS_REGION",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AWS_CA_BUNDLE",
    ):
        monkeypatch.setenv(name, "")
    assert open_store(bucket, client).get("a") == b"x"


def test_a_profile_has_its_own_fields(
    bucket: str, s3: S3Server, client: Client, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.config(
        f"[default]\nendpoint_url = {NOWHERE}\n[profile mine]\nservices = here\n"
        f"[services here]\ns3 =\n  endpoint_url = {s3.endpoint}\n"
    )
    files.credentials(f"[default]\naws_access_key_id = x\naws_secret_access_key = y\n[mine]\n{keys(s3)}")
    monkeypatch.setenv("AWS_PROFILE", "mine")
    assert open_store(bucket, client).get("a") == b"x"
    monkeypatch.setenv("AWS_PROFILE", "")
    with pytest.raises(StoreError):
        open_store(bucket, client).get("a")


def test_configured_endpoints_can_be_ignored(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    files.config(f"[default]\nendpoint_url = {NOWHERE}\nregion = cn-north-1\n")
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    assert aws_config().url == "https://s3.cn-north-1.amazonaws.com.cn"
    monkeypatch.delenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")
    assert aws_config().url == NOWHERE


def test_a_bucket_in_the_host_name(files: Files) -> None:
    files.config("[default]\nendpoint_url = https://store.example\ns3 =\n  addressing_style = virtual\n")
    assert aws_config().bucket_url("photos") == "https://photos.store.example"


@pytest.mark.parametrize(
    ("config", "environment", "says"),
    [
        ("", {"AWS_PROFILE": "gone"}, "gone"),
        ("[default\n", {}, "config"),
        ("[default]\nservices = gone\n", {}, "services gone"),
        ("[default]\nregion = nonsense!\n", {}, "nonsense!"),
        ("", {"AWS_CA_BUNDLE": "/no/such/file"}, "AWS_CA_BUNDLE /no/such/file"),
        ("", {"AWS_CA_BUNDLE": "/etc/passwd"}, "AWS_CA_BUNDLE /etc/passwd"),
        ("[default]\nca_bundle = /no/such/file\n", {}, "AWS_CA_BUNDLE"),
        ("", {"AWS_ACCESS_KEY_ID": "x"}, "credentials|AWS_SECRET_ACCESS_KEY"),
        ("[default]\nendpoint_url = store.example\n", {}, "endpoint_url of the AWS profile is 'store.example'"),
        *(
            ("", {"AWS_ENDPOINT_URL": url}, "AWS_ENDPOINT_URL is")
            for url in (
                "127.0.0.1:9",
                "localhost:9",
                "http://",
                "ftp://h",
                "http://h:port",
                "http:/h",
                "//h",
                "http://a b",
                "s3",
            )
        ),
    ],
)
def test_a_configuration_that_cannot_work_is_a_user_error_that_names_the_field(
    client: Client, files: Files, monkeypatch: pytest.MonkeyPatch, config: str, environment: dict[str, str], says: str
) -> None:
    files.config(config)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises((UserError, StoreError), match=says) as caught:
        open_store("s3://bucket", client).get("a")
    assert Exit.of(caught.value) is Exit.USAGE
    assert len(str(caught.value).splitlines()) <= 2


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    """An S3 server of one object with a certificate that nobody signed."""
    with TlsServer(tmp_path_factory.mktemp("tls"), b"x") as server:
        yield server


@pytest.fixture
def untrusted(tls: TlsServer, files: Files, monkeypatch: pytest.MonkeyPatch) -> TlsServer:
    monkeypatch.setenv("AWS_ENDPOINT_URL", tls.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    return tls


@pytest.mark.parametrize("where", ["environment", "file", "REQUESTS_CA_BUNDLE"])
def test_a_ca_bundle_is_trusted(
    untrusted: TlsServer, client: Client, files: Files, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    if where == "file":
        files.config(f"[default]\nca_bundle = {untrusted.certificate}\n")
    else:
        monkeypatch.setenv("AWS_CA_BUNDLE" if where == "environment" else where, str(untrusted.certificate))
    assert open_store("s3://bucket", client).get("a") == b"x"


def reads(store: Store) -> list[object]:
    return [
        lambda: store.get("a"),
        lambda: store.stat("a"),
        lambda: next(store.list(), None),
        lambda: store.create("b", b""),
    ]


def test_a_certificate_that_is_not_trusted_is_told_at_once(
    untrusted: TlsServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DA2RAY_RETRY_SECONDS", "15")
    for call in reads(open_store("s3://bucket", client)):
        with pytest.raises(RejectedError, match=r"(?is)certificate.*AWS_CA_BUNDLE"):
            call()  # type: ignore[operator]


def test_a_server_without_tls_is_told_at_once(
    untrusted: TlsServer, s3: S3Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint.replace("http:", "https:"))
    with pytest.raises(RejectedError, match="TLS"):
        open_store("s3://bucket", client).get("a")


FORK = """
import multiprocessing, sys
from da2ray.storage import open_store
url, client, used, method = sys.argv[1:]
store = open_store(url, client)
if used == "used":
    assert store.get("a") == b"x"

def child(store, queue):
    for each in (store, open_store(url, client)):
        try:
            queue.put(each.get("a").decode())
        except Exception as error:
            queue.put(f"{type(error).__name__}: {error}")

if __name__ == "__main__":
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=child, args=(store, queue), daemon=True)
    process.start()
    print(queue.get(timeout=60), queue.get(timeout=60), sep="\\n")
    process.join()
"""


@pytest.mark.parametrize(
    ("client", "used", "method", "works"),
    [
        ("obstore", "used", "fork", False),
        ("obstore", "not used", "fork", True),
        ("obstore", "used", "spawn", True),
        ("fsspec", "used", "fork", True),
    ],
)
def test_a_forked_child_reads_or_is_told_what_to_change(
    bucket: str, tmp_path: Path, client: str, used: str, method: str, works: bool
) -> None:
    script = tmp_path / "fork.py"
    script.write_text(FORK)
    ended = subprocess.run(
        [sys.executable, str(script), bucket, client, used, method],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert ended.returncode == 0, ended.stderr
    assert not ended.stderr
    for line in ended.stdout.splitlines():
        if works:
            assert line == "x"
        else:
            assert line.startswith("UserError: ")
            assert "spawn" in line
            assert 'client="fsspec"' in line
    assert len(ended.stdout.splitlines()) == 2
