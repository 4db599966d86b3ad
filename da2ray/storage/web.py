"""Web servers: URLs are requested byte for byte as they are written, because a signed URL covers its path and query literally."""

import re
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import fsspec
from yarl import URL

from da2ray import __version__
from da2ray.storage.fsspec import FsspecStore, web_timeout

USER_AGENT: Final = f"da2ray/{__version__}"

_UNSENDABLE: Final = re.compile(r"[^!-~]+")
_HOST_END: Final = re.compile(r"[/?#]")


def request_url(text: str) -> URL:
    """The URL to request for a text: the text itself. Only what no request line can hold is quoted: blanks, control characters
    and others outside ASCII.

    Raises:
        ValueError: the text is not a URL.
    """
    scheme, _, rest = text.partition("://")
    end = found.start() if (found := _HOST_END.search(rest)) else len(rest)
    host, path = rest[:end], rest[end:]
    if not host.isascii():
        host = URL(f"{scheme}://{host}").raw_authority
    path = _UNSENDABLE.sub(_quoted, path.partition("#")[0])
    if path.endswith("?") and path.startswith("/") and path.count("?") == 1:  # yarl drops an empty query
        return URL.build(scheme=scheme, authority=host, path=path, encoded=True)
    return URL(f"{scheme}://{host}{path}", encoded=True)


def session_options(user_agent: str) -> dict[str, Any]:
    """Arguments of a session that leaves URLs as they are, those of redirects too."""
    return {
        "timeout": web_timeout(),
        "requote_redirect_url": False,
        "middlewares": (_send_as_written,),
        "headers": {"User-Agent": user_agent},
    }


async def _send_as_written(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    request.url = request_url(str(request.url))  # of a redirect, it may have blanks
    return await send(request)


def _quoted(found: re.Match[str]) -> str:
    return quote(found[0], safe="", errors="surrogateescape")


class HttpStore(FsspecStore):
    """A web server, as a user names it."""

    def __init__(self, url: str, retry_s: float | None = None, user_agent: str | None = None) -> None:
        """`url`: canonical, of scheme http or https. `retry_s`: see `open_store`. `user_agent`: None for USER_AGENT."""
        super().__init__(url, retry_s)
        self._user_agent = user_agent or USER_AGENT

    def __reduce__(self) -> "tuple[type[HttpStore], tuple[str, float, str]]":  # type: ignore[override]
        return HttpStore, (self.url, self._retry_s, self._user_agent)

    def _check(self, key: str) -> None:
        """Any text may follow the host of a URL."""

    def _make(self) -> tuple[Any, str]:
        fs = fsspec.filesystem(self._scheme, skip_instance_cache=True, **self._options())
        fs.encode_url = request_url
        return fs, self.url

    def _options(self) -> dict[str, Any]:
        """Arguments of the file system."""
        return {"client_kwargs": session_options(self._user_agent)}
