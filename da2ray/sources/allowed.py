"""Where the URIs of a manifest may lead. Others wrote them, and the job reads them with its own network and credentials."""

import ipaddress
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from yarl import URL

from da2ray.errors import Reason, SampleError, UserError
from da2ray.storage import Client, Store, canonical_url, open_store, printable, split_uri
from da2ray.storage.objects import SCHEMES as OBJECT_STORES
from da2ray.storage.redaction import WEB

NAME_CHARS: Final = 200
"""Characters of a URI in a message."""

_ALIASES: Final = {"s3a": "s3", "gcs": "gs"}
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*")
_BUCKET: Final = re.compile(r"[\w$][\w.-]*(@[\w.-]+)?", re.ASCII)
"""A bucket, or container@account. Clients build host names from it: `?`, `#` or `:` would make it another host."""
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Allowed:
    """Schemes, and single places of a scheme, that URIs may have.

    http and https as schemes mean public hosts; a host at a private address (loopback, link-local, 10/8, …) must be named.

    Attributes:
        schemes: such as `s3`; "file" is local paths.
        places: `scheme:place`: a host and port, a bucket, a folder.
        user_agent: how requests to web servers name the program; None for `da2ray/VERSION`.
    """

    schemes: frozenset[str]
    places: frozenset[str]
    user_agent: str | None = None

    @classmethod
    def of(cls, manifest: str, words: Iterable[str] = (), user_agent: str | None = None) -> "Allowed":
        """What a manifest's URIs may have: a default, and what `--allow-scheme` names.

        By default a local manifest may name local paths and object stores, one in an object store may name object stores, and any
        other may name just the host that it came from.

        Args:
            manifest: its canonical URL.
            words: `scheme`, `scheme:host[:port]`, `scheme:bucket` or `file:/folder`.
            user_agent: as the attribute.

        Raises:
            UserError: a word has another form.
        """
        schemes: set[str] = set()
        places: set[str] = set()
        root, _ = split_uri(manifest)
        scheme = root.partition("://")[0] if "://" in root else "file"
        if scheme == "file":
            schemes |= {"file", *OBJECT_STORES}
        elif scheme in OBJECT_STORES:
            schemes |= OBJECT_STORES
        else:
            places.add(_place(manifest))
        for word in words:
            name, separator, place = word.strip().partition(":")
            name = _ALIASES.get(name.lower(), name.lower())
            if not _SCHEME.fullmatch(name) or place.startswith(":") or (separator and not place.strip("/")):
                raise UserError(f"--allow-scheme {printable(word)}: give a scheme, https:host or file:/folder")
            if separator:
                places.add(_named(name, place))
            else:
                schemes.add(name)
        return cls(frozenset(schemes), frozenset(places), user_agent)

    def refusal(self, uri: str) -> str | None:
        """Why the URI may not be read, and the option that changes that; None if it may be read. Uses no network.

        Raises:
            UserError: the text is not a URI, so nothing could be read either.
        """
        if "::" in uri.partition("://")[0]:
            return "URLs within URLs are not read"
        # What the stores make of the URI decides, not what it looks like.
        uri = canonical_url(uri)
        scheme = uri.partition("://")[0] if not uri.startswith("/") else "file"
        if scheme in WEB:
            return self._web_refusal(uri)
        if scheme == "file":
            return self._file_refusal(uri)
        bucket = uri.partition("://")[2].partition("/")[0]
        if scheme in OBJECT_STORES and not _BUCKET.fullmatch(bucket):
            return "not the name of a bucket"
        if scheme in self.schemes or _place(uri) in self.places:
            return None
        return f"{scheme} is not allowed here: --allow-scheme {scheme}"

    def check(self, uri: str) -> None:
        """Check that the URI may be read.

        Raises:
            SampleError: `forbidden`, with the message that the sample's row will have.
            UserError: see `refusal`.
        """
        if why := self.refusal(uri):
            raise SampleError(Reason.FORBIDDEN, f"{printable(uri, NAME_CHARS)}: {printable(why, NAME_CHARS)}")

    def open(self, root: str, client: Client, retry_s: float | None = None) -> Store:
        """Open a store as `open_store` does. On the web, its hosts and redirects are checked too."""
        if root.partition("://")[0] in WEB:
            from da2ray.sources.web import WebStore  # noqa: PLC0415 - aiohttp, which few sources need

            return WebStore(root, self, retry_s, self.user_agent)
        return open_store(root, client, retry_s)

    def names_host(self, host: str, port: int) -> bool:
        """Whether an address of this host may be a private one."""
        return any(f"{scheme}:{_host_port(host, port)}" in self.places for scheme in WEB)

    def private_host(self, uri: str, address: str) -> str:
        """The message for a web URL whose host has this private address."""
        return f"{address} is not a public address: {_option(URL(uri))}"

    def _web_refusal(self, uri: str) -> str | None:
        try:
            url = URL(uri)
            host, port = url.raw_host, url.port
        except ValueError:
            return "not a URL"
        if not host or port is None:
            return "not a URL"
        if f"{url.scheme}:{_host_port(host, port)}" in self.places:
            return None
        if url.scheme not in self.schemes:
            return f"{url.scheme} is not allowed here: {_option(url)}"
        return self.private_host(uri, host) if is_private(host) else None

    def _file_refusal(self, path: str) -> str | None:
        if "file" in self.schemes:
            return None
        folders = [place.removeprefix("file:") for place in self.places if place.startswith("file:")]
        # No file's name has a NUL, and the calls that follow links take none.
        if folders and "\0" not in path:
            real = Path(os.path.realpath(path))
            if any(real.is_relative_to(os.path.realpath(folder)) for folder in folders):
                return None
        return f"local files are not allowed here: --allow-scheme file:{path.rpartition('/')[0] or '/'}"


def is_private(address: str) -> bool:
    """Whether an address is an IP address outside the public internet. False for a name, whose addresses are checked once they
    are known.
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_private(str(inner))
    return not ip.is_global or ip.is_multicast


def must_be_regular(path: str) -> None:
    """Check that a path is not a pipe or a device, which would be read for ever. If nothing is there, the store says so.

    Raises:
        SampleError: `unreadable`: the path is something else than a file or a folder.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - untrusted text, maybe with NUL
    except (OSError, ValueError):
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise SampleError(Reason.UNREADABLE, f"{printable(path, NAME_CHARS)}: not a regular file")


def _named(scheme: str, place: str) -> str:
    if scheme == "file":
        return f"file:{canonical_url(re.sub('^//+', '/', place))}"
    return _place(f"{scheme}://{place.removeprefix('//')}")


def _place(uri: str) -> str:
    """`scheme:host:port` for a web URL, whether or not it gives the port; `scheme:host` for any other."""
    root, _ = split_uri(uri)
    scheme, _, host = root.partition("://")
    if scheme not in WEB:
        return f"{scheme}:{host}"
    try:
        url = URL(root)
        if url.raw_host and url.port:
            return f"{scheme}:{_host_port(url.raw_host, url.port)}"
    except ValueError:
        pass
    raise UserError(f"no host in {printable(uri, NAME_CHARS)}")


def _option(url: URL) -> str:
    """The option that allows the host of a web URL."""
    place = _host_port(url.raw_host or "", url.port or 0)
    return f"--allow-scheme {url.scheme}:{place.rpartition(':')[0] if url.is_default_port() else place}"


def _host_port(host: str, port: int) -> str:
    host = host.rstrip(".").lower()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
