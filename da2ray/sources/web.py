"""Images on web servers that a manifest names. Every request is checked, redirects and resolved addresses too."""

import functools
from http import HTTPStatus
from typing import Any

import aiohttp
import fsspec.asyn
from aiohttp.abc import AbstractResolver, ResolveResult

from da2ray.errors import StoreError
from da2ray.sources.allowed import Allowed, is_private
from da2ray.storage import Fetched, base, redact
from da2ray.storage.web import HttpStore

MOST_BYTES = 256 << 20
"""Bytes of an image at most: a server may send without end, and 16 threads of a task read at the same time."""


class PrivateAddressError(Exception):
    """A name resolves to this private address, and is not allowed to."""


class NotAllowedError(Exception):
    """A request was not sent, because it is not allowed. `status` tells FsspecStore that permission is missing."""

    status = 403


class WebStore(HttpStore):
    """A web server. If it redirects to another server, that one must be allowed itself."""

    def __init__(self, url: str, allowed: Allowed, retry_s: float | None = None, user_agent: str | None = None) -> None:
        """`url`: canonical, of scheme http or https. `retry_s`: see `open_store`. `user_agent`: see `HttpStore`."""
        super().__init__(url, retry_s, user_agent)
        self._allowed = allowed

    def __reduce__(self) -> "tuple[type[WebStore], tuple[str, Allowed, float, str]]":  # type: ignore[override]
        return WebStore, (self.url, self._allowed, self._retry_s, self._user_agent)

    def _whole(self, fs: Any, path: str, uri: str) -> Fetched:  # noqa: ARG002
        # One GET, whose length aiohttp checks. If fsspec asks for the size first, it takes a refusal for a missing file.
        return fsspec.asyn.sync(fs.loop, _body, fs, path, timeout=base.REQUEST_TIMEOUT_S)

    def _options(self) -> dict[str, Any]:
        return super()._options() | {"get_client": functools.partial(_session, self._allowed)}


async def _body(fs: Any, url: str) -> Fetched:
    session: aiohttp.ClientSession = await fs.set_session()
    async with session.get(fs.encode_url(url)) as response:
        if response.status == HTTPStatus.NOT_FOUND:
            raise FileNotFoundError(url)
        response.raise_for_status()
        body = bytearray()
        async for chunk in response.content.iter_chunked(1 << 20):
            body += chunk
            if len(body) > MOST_BYTES:
                raise StoreError(f"{redact(url)}: more than {MOST_BYTES >> 20} MiB")
    return Fetched(bytes(body), base.unquoted(response.headers.get("ETag")))


async def _session(allowed: Allowed, *, middlewares: Any, headers: Any, **options: Any) -> aiohttp.ClientSession:
    async def check(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        if why := allowed.refusal(str(request.url)):
            raise NotAllowedError(f"{request.url.origin()}: {why}")
        try:
            return await send(request)
        except PrivateAddressError as error:
            raise NotAllowedError(allowed.private_host(str(request.url), str(error))) from None

    connector = aiohttp.TCPConnector(resolver=_PublicHosts(allowed))
    # Take the bytes as they are: no archive bomb.
    options |= {"auto_decompress": False, "headers": headers | {"Accept-Encoding": "identity"}}
    return aiohttp.ClientSession(connector=connector, middlewares=(*middlewares, check), **options)


class _PublicHosts(AbstractResolver):
    """Resolves names for the connection itself, so that a name cannot resolve to another address after the check."""

    def __init__(self, allowed: Allowed) -> None:
        self._allowed = allowed
        self._resolver = aiohttp.DefaultResolver()

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        if not self._allowed.names_host(host, port):
            for each in found:
                if is_private(each["host"]):
                    raise PrivateAddressError(each["host"])
        return found

    async def close(self) -> None:
        await self._resolver.close()
