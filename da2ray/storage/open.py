"""From a URL to a store, and how URLs are split and joined."""

import posixpath
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from da2ray.errors import UserError
from da2ray.storage.base import Store
from da2ray.storage.local import LocalStore
from da2ray.storage.objects import SCHEMES, ObjectStore
from da2ray.storage.redaction import WEB, redact

Client = Literal["auto", "obstore", "fsspec"]


def open_store(url: str, client: Client = "auto", retry_s: float | None = None) -> Store:
    """The store at a URL or a local path. It contacts nothing yet.

    Args:
        url: a path or `file://` (own implementation); `s3://`, `gs://`, `az://`, `abfs[s]://` (obstore); any other scheme that
            fsspec knows.
        client: "fsspec" uses fsspec for the schemes of obstore too; "obstore" refuses schemes that obstore does not serve.
            Local paths are the same with all three.
        retry_s: for how many seconds to repeat a call to a remote store that does not answer or asks to come again; None for
            DA2RAY_RETRY_SECONDS, else 180. Web servers get 15 at most.

    Raises:
        UserError: the client does not serve the scheme, the URL holds a password, or DA2RAY_RETRY_SECONDS is not a number.
    """
    url = canonical_url(url)
    scheme = _scheme(url)
    if scheme is None:
        return LocalStore(url)
    if redact(url) != url:
        raise UserError(f"{redact(url)} cannot have a query: a signature is for one object, and this is a folder")
    if client == "fsspec" or (client == "auto" and scheme not in SCHEMES):
        from da2ray.storage.fsspec import FsspecStore  # noqa: PLC0415 - 0.2 s in each process, which few stores need

        return FsspecStore(url, retry_s)
    if scheme not in SCHEMES:
        raise UserError(
            f"obstore does not serve {scheme}:// URLs: use --storage-client auto or fsspec for {redact(url)}"
        )
    return ObjectStore(url, retry_s)


def canonical_url(url: str) -> str:
    """The one spelling of a place: local paths absolute and without `file://`, `s3a` as `s3`, no slash at the end.

    Raises:
        UserError: the URL is empty, has no bucket, or holds a password.
    """
    scheme = _scheme(url)
    if scheme is None or scheme == "file":
        path = url if scheme is None else unquote(urlsplit(url).path)
        if not path:
            raise UserError(f"not a path or URL: {url!r}")
        # normpath, not resolve, so that a link keeps the name that the user knows.
        normal = posixpath.normpath(Path(path).expanduser().absolute().as_posix())
        return "/" + normal.lstrip("/")
    rest = url[len(scheme) + 3 :]
    host = rest.partition("/")[0]
    user, at, _ = host.rpartition("@")
    if at and (":" in user or scheme in WEB):
        raise UserError(f"a {scheme}:// URL holds a password: give it through the environment instead")
    if not host and scheme != "memory":
        raise UserError(f"no bucket or host in {redact(url)!r}")
    scheme = {"s3a": "s3", "gcs": "gs"}.get(scheme, scheme)
    return f"{scheme}://{rest.rstrip('/')}"


def split_uri(uri: str) -> tuple[str, str]:
    """Split a URI into the root, for which a store is opened once, and the key below it.

    `s3://bucket/a/b.jpg` -> (`s3://bucket`, `a/b.jpg`); `/a/b.jpg` -> (`/`, `a/b.jpg`). The key stays as it is written; only
    `file://` is unquoted.
    """
    uri = canonical_url(uri)
    scheme = _scheme(uri)
    if scheme is None:
        return "/", uri[1:]
    if scheme == "memory":
        return "memory://", uri[len("memory://") :].lstrip("/")
    host, _, key = uri[len(scheme) + 3 :].partition("/")
    return f"{scheme}://{host}", key


def join(url: str, key: str) -> str:
    """The URI of a key below a canonical URL."""
    return f"{url}{key}" if url.endswith("/") else f"{url}/{key}"


def _scheme(url: str) -> str | None:
    """The scheme in lower case; None for a path."""
    scheme, separator, _ = url.partition("://")
    return scheme.lower() if separator and scheme.replace("+", "").replace("-", "").isalnum() else None
