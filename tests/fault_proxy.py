"""A proxy between a client and a real S3 server that fails in the ways in which object stores fail.

To use it by hand, first set the variables that `python -m tests.s3_server` prints:

    python -m tests.fault_proxy --mode reset --target $AWS_ENDPOINT_URL
    export AWS_ENDPOINT_URL=http://127.0.0.1:<the port that it prints>

Each mode affects a share of the requests, which `--share` changes:

    none       passes everything on
    slow_down  503 SlowDown instead of an answer
    conflict   409 ConditionalRequestConflict to a write with If-None-Match, as AWS answers if two arrive at once
    reset      the connection is reset: half of the time before the server sees the request, else within the answer
    truncate   the answer to a GET ends in the middle of its body
    lost       a write takes effect, and the connection ends without an answer
    stall      two seconds pass in the middle of the answer
    hang       the request is read and never answered
    down       503 ServiceUnavailable to everything
    refused    connections are reset at once, as if nothing listened

The proxy passes the signed Host header on unchanged, so the server can check signatures.
"""

import argparse
import asyncio
import contextlib
import random
import re
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Literal, Self, get_args
from urllib.parse import urlsplit

Mode = Literal["none", "slow_down", "conflict", "reset", "truncate", "lost", "stall", "hang", "down", "refused"]

SHARES: Final[dict[Mode, float]] = {
    "none": 0.0,
    "slow_down": 0.3,
    "conflict": 0.5,
    "reset": 0.2,
    "truncate": 0.2,
    "lost": 0.5,
    "stall": 0.1,
    "hang": 1.0,
    "down": 1.0,
    "refused": 1.0,
}
STALL_S = 2.0
WRITES = frozenset({"PUT", "POST", "DELETE"})
BACKLOG = 256


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP/1.1 request. `head`: the request line and the headers as received, without the empty line after them."""

    method: str
    target: str
    head: bytes
    body: bytes

    @property
    def creates(self) -> bool:
        """Whether it is a conditional create, or the last request of one in parts."""
        return self.method in WRITES and _header(self.head, "if-none-match") is not None


class FaultProxy:
    """A proxy on loopback. A context manager: it listens inside its block. Modes and share may change at any time.

    Attributes:
        endpoint: `http://127.0.0.1:<port>`.
        applies: returns True for the requests that may get a fault.
        refuses: the status and the code that a request is answered with instead; None for requests that meet the modes.
        faults, by_mode: the number of faults by HTTP method and by mode.
        requests: the number of requests.
    """

    def __init__(self, target: str, mode: Mode = "none", share: float | None = None, seed: int = 0) -> None:
        """`target`: `http://host:port` of the server. `share`: share of requests that fail; None for the mode's own."""
        split = urlsplit(target)
        self._target = (split.hostname or "127.0.0.1", split.port or 80)
        self._random = random.Random(seed)  # noqa: S311 - the same faults every time, not a secret
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="fault-proxy", daemon=True)
        self._port: Future[int] = Future()
        self.applies: Callable[[Request], bool] = lambda _: True
        self.refuses: Callable[[Request], tuple[int, str] | None] = lambda _: None
        self.set(mode, share=share)

    def set(self, *modes: Mode, share: float | None = None) -> None:
        """Change the faults from the next request on, and reset the counts.

        Args:
            modes: if there are several, a request gets the one that was rarest so far among those that it can get. Each mode's
                first request fails for certain.
            share: share of the requests that fail; 1.0 means all, None the mode's own.
        """
        self._modes, self._share = modes, share
        self.faults: Counter[str] = Counter()
        self.by_mode: Counter[Mode] = Counter()
        self.requests = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port.result(10)}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._port.result(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=BACKLOG, limit=1 << 20)
        )
        self._port.set_result(server.sockets[0].getsockname()[1])
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (request := await _read_request(reader, writer)) and await self._answer(request, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # The client went away, or the proxy ends.
        finally:
            writer.close()

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        """Answer the request or fail it, and return True if the connection can go on."""
        self.requests += 1
        if refusal := self.refuses(request):
            status, code = refusal
            writer.write(_error(f"{status} {HTTPStatus(status).phrase}", code, "Refused by the test.", request))
            await writer.drain()
            return True
        return await self._fail_or_forward(request, writer)

    async def _fail_or_forward(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        fault = self._fault(request)
        if fault != "none":
            self.faults[request.method] += 1
            self.by_mode[fault] += 1
        early = self._random.random() < 0.5
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault == "refused" or (fault == "reset" and early):
            return _reset(writer)
        if fault in {"slow_down", "conflict", "down"}:
            writer.write(_refusal(fault, request))
            await writer.drain()
            return True
        answer = await self._forward(request)
        if fault == "lost":
            return False
        head, _, body = answer.partition(b"\r\n\r\n")
        if fault in {"reset", "truncate", "stall"}:
            writer.write((head + b"\r\n\r\n" + body)[: len(head) + 4 + len(body) // 2])
            await writer.drain()
            if fault == "reset":
                # The client's kernel drops what it has not read yet once the reset arrives.
                return _reset(writer)
            if fault == "truncate":
                return False
            await asyncio.sleep(STALL_S)
            writer.write(body[len(body) // 2 :])
        else:
            writer.write(answer)
        await writer.drain()
        bodiless = request.method == "HEAD" or re.match(rb"HTTP/1.1 (204|304)", head)
        return bool(bodiless or _header(head, "content-length") or _header(head, "transfer-encoding"))

    def _fault(self, request: Request) -> Mode:
        can = {"conflict": request.creates, "truncate": request.method == "GET", "lost": request.method in WRITES}
        possible = [mode for mode in self._modes if can.get(mode, True)]
        if not possible or not self.applies(request):
            return "none"
        mode = min(possible, key=lambda each: self.by_mode[each])
        share = SHARES[mode] if self._share is None else self._share
        if len(self._modes) > 1 and not self.by_mode[mode]:
            share = 1.0
        return mode if self._random.random() < share else "none"

    async def _forward(self, request: Request) -> bytes:
        """The server's whole answer with its body framed as received, without the header `Connection`."""
        reader, writer = await asyncio.open_connection(*self._target)
        try:
            # One request per connection, so the answer ends with the stream, however it is framed.
            head = re.sub(rb"\r\n(connection|expect):[^\r]*", b"", request.head, flags=re.IGNORECASE)
            writer.write(head + b"\r\nConnection: close\r\n\r\n" + request.body)
            await writer.drain()
            answer = await reader.read(-1)
        finally:
            writer.close()
        head, separator, body = answer.partition(b"\r\n\r\n")
        return re.sub(rb"\r\nconnection:[^\r]*", b"", head, flags=re.IGNORECASE) + separator + body


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request | None:
    """The next request with its whole body; None if the client closed the connection."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n"))[:-4]
    except asyncio.IncompleteReadError:
        return None
    if _header(head, "expect"):
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    length = _header(head, "content-length")
    if length is not None:
        body = await reader.readexactly(int(length))
    elif _header(head, "transfer-encoding"):
        body = await _read_chunks(reader)
    else:
        body = b""
    method, target, _ = head.partition(b"\r\n")[0].decode().split(" ", 2)
    return Request(method, target, head, body)


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    """A chunked body as received, with the sizes of its chunks."""
    parts: list[bytes] = []
    while True:
        parts.append(line := await reader.readuntil(b"\r\n"))
        size = int(line.partition(b";")[0], 16)
        if size:
            parts.append(await reader.readexactly(size + 2))
            continue
        while line != b"\r\n":  # Trailers, and the empty line.
            parts.append(line := await reader.readuntil(b"\r\n"))
        return b"".join(parts)


def _header(head: bytes, name: str) -> str | None:
    found = re.search(rf"\r\n{name}:\s*([^\r]*)".encode(), head, re.IGNORECASE)
    return found[1].decode("latin-1") if found else None


def _refusal(fault: Mode, request: Request) -> bytes:
    status, code, message = {
        "slow_down": ("503 Slow Down", "SlowDown", "Please reduce your request rate."),
        "down": ("503 Service Unavailable", "ServiceUnavailable", "Please try again."),
        "conflict": (
            "409 Conflict",
            "ConditionalRequestConflict",
            "A conflicting conditional operation is in progress.",
        ),
    }[fault]
    return _error(status, code, message, request)


def _error(status: str, code: str, message: str, request: Request) -> bytes:
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return (head if request.method == "HEAD" else head + body).encode()


def _reset(writer: asyncio.StreamWriter) -> bool:
    """End the connection with RST: closing with a linger time of 0 discards unsent data."""
    connection: socket.socket = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=get_args(Mode), default="none")
    parser.add_argument("--target", required=True, help="http://host:port of the server")
    parser.add_argument("--share", type=float, help="share of the requests that fail, 0 to 1")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with FaultProxy(options.target, options.mode, options.share, options.seed) as proxy:
        sys.stdout.write(f"export AWS_ENDPOINT_URL={proxy.endpoint}\n")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
