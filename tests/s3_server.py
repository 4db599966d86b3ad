"""A real S3 server for tests: SeaweedFS on loopback, which checks credentials.

To try things by hand, run `python -m tests.s3_server`: it prints the environment variables and waits.
"""

import atexit
import contextlib
import ctypes
import http.client
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import botocore.auth
import botocore.awsrequest
import botocore.credentials

PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""
GRPC_OFFSET = 10_000
"""Each service of SeaweedFS has a second port: the first one plus this."""
START_TIMEOUT_S = 60.0


class S3Server:
    """A SeaweedFS process with its data in a temporary directory, which is removed with it.

    Attributes:
        endpoint: `http://127.0.0.1:<port>`.
        access_key, secret_key: credentials of the identity that tests use. `reader_env` has those of one that may not write.
        pid: process id of the server, for tests that kill it.
    """

    def __init__(self) -> None:
        self.access_key = "da2raytest"
        self.secret_key = secrets.token_hex(16)
        self._directory = Path(tempfile.mkdtemp(prefix="da2ray-s3-"))
        self._config = self._directory / "s3.json"
        self._admin_secret = secrets.token_hex(16)
        self._reader_secret = secrets.token_hex(16)
        # SeaweedFS creates missing buckets for an administrator, so tests use an identity without those rights.
        identities = [
            _identity("admin", "admin", self._admin_secret, ["Admin"]),
            _identity("test", self.access_key, self.secret_key, ["Read", "Write", "List", "Tagging"]),
            _identity("reader", "da2rayreader", self._reader_secret, ["Read", "List"]),
        ]
        self._config.write_text(json.dumps({"identities": identities}))
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)
        self.start()

    @property
    def env(self) -> dict[str, str]:
        """The variables that every S3 client reads."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    @property
    def reader_env(self) -> dict[str, str]:
        """Like `env`, for an identity that may read and list but not write."""
        return self.env | {"AWS_ACCESS_KEY_ID": "da2rayreader", "AWS_SECRET_ACCESS_KEY": self._reader_secret}

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the server on free ports, and try again if another process takes one of them meanwhile.

        Raises:
            RuntimeError: the server did not come up; the message ends with its log.
        """
        for _ in range(5):
            ports = _free_ports(4)
            self.endpoint = f"http://127.0.0.1:{ports[3]}"
            log_path = self._directory / "weed.log"
            with log_path.open("wb") as log:
                self._process = subprocess.Popen(
                    _command(self._directory, ports, self._config),
                    stdout=log,
                    stderr=log,
                    env=os.environ | {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},
                    preexec_fn=end_with_parent,  # noqa: PLW1509  Safe: one prctl, no Python lock.
                )
            if self._wait_ready():
                return
            self._stop()
        raise RuntimeError(f"SeaweedFS did not start:\n{log_path.read_text(errors='replace')[-4000:]}")

    def create_bucket(self, name: str | None = None) -> str:
        """Create a bucket, and return its URL, `s3://<name>`."""
        name = name or f"test-{secrets.token_hex(6)}"
        status, answer = self._request("PUT", f"/{name}")
        if status != http.client.OK:
            raise RuntimeError(f"no bucket {name}: {status} {answer!r}")
        # The first write creates the bucket's volume. Other writes fail meanwhile, and clients take long to retry.
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._request("PUT", f"/{name}/first")[0] != http.client.OK and time.monotonic() < deadline:
            time.sleep(0.1)
        self._request("DELETE", f"/{name}/first")
        return f"s3://{name}"

    def close(self) -> None:
        """End the process and remove its data. Safe to call twice."""
        atexit.unregister(self.close)
        self._stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)

    def _wait_ready(self) -> bool:
        """Whether objects can be written. The port opens some seconds before there is a volume to write to."""
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                return False
            with contextlib.suppress(OSError, http.client.HTTPException):
                self._request("PUT", "/ready")
                if self._request("PUT", "/ready/object")[0] == http.client.OK:
                    return True
            time.sleep(0.1)
        return False

    def _request(self, method: str, path: str) -> tuple[int, bytes]:
        """The status and body of the answer to a request without a body, signed by the administrator."""
        request = botocore.awsrequest.AWSRequest(method, f"{self.endpoint}{path}")
        credentials = botocore.credentials.Credentials("admin", self._admin_secret)
        botocore.auth.S3SigV4Auth(credentials, "s3", "us-east-1").add_auth(request)
        connection = http.client.HTTPConnection(self.endpoint.removeprefix("http://"), timeout=10)
        try:
            connection.request(method, path, headers=dict(request.headers.items()))
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def _identity(name: str, access_key: str, secret_key: str, actions: list[str]) -> dict[str, object]:
    return {"name": name, "credentials": [{"accessKey": access_key, "secretKey": secret_key}], "actions": actions}


def end_with_parent() -> None:
    """Make this child process end with its parent. A killed test run runs no exit handlers and would leave it behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _command(directory: Path, ports: list[int], config: Path) -> list[str]:
    master, volume, filer, s3 = ports
    data = directory / "data"
    data.mkdir(exist_ok=True)
    return [
        str(Path(sysconfig.get_path("scripts")) / "weed"),
        "server",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-master.telemetry=false",
        # Each bucket takes its own volumes, seven by default (see `env` above), so 50 are too few for a test session.
        "-master.volumeSizeLimitMB=64",
        "-volume.max=10000",
        f"-master.port={master}",
        f"-volume.port={volume}",
        "-filer",
        f"-filer.port={filer}",
        "-s3",
        f"-s3.port={s3}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.config={config}",
    ]


def _free_ports(count: int) -> list[int]:
    """`count` free ports of loopback whose gRPC ports are free too."""
    # Below the ephemeral ports of Linux (32768 and up), so that no outgoing connection takes one meanwhile.
    candidates = random.SystemRandom().sample(range(12_000, 22_000), 400)
    ports: list[int] = []
    for port in candidates:
        if _is_free(port) and _is_free(port + GRPC_OFFSET):
            ports.append(port)
            if len(ports) == count:
                return ports
    raise RuntimeError("no free ports on loopback between 12000 and 32000")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def main() -> None:
    # `sigwait` needs blocked signals: they then end the wait and not the process.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    server = S3Server()
    for name, value in server.env.items():
        sys.stdout.write(f"export {name}={value}\n")
    sys.stdout.write(f"# {server.create_bucket('demo')}; pid {os.getpid()}; ends with this process\n")
    sys.stdout.flush()
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    server.close()


if __name__ == "__main__":
    main()
