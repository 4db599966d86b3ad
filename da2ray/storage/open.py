"""From a URL to a store, and how URLs are split and joined."""

import os
import posixpath
import re
from pathlib import Path
from typing import Final, Literal
from urllib.parse import unquote

from yarl import URL

from da2ray.errors import UserError
from da2ray.storage.base import Store
from da2ray.storage.local import LocalStore
from da2ray.storage.objects import SCHEMES, ObjectStore
from da2ray.storage.redaction import WEB, printable, redact
from da2ray.storage.s3 import S3ObjectStore, is_odd

Client = Literal["auto", "obstore", "fsspec"]

_FILE: Final = re.compile(r"file:/(?!/)", re.IGNORECASE)
_COLLAPSED: Final = re.compile(rf"({'|'.join(sorted({*SCHEMES, *WEB, 's3a', 'gcs', 'file'}))}):/(?!/)", re.IGNORECASE)
"""A URL that lost a slash, as `pathlib.Path` takes it."""


def open_store(
    url: str | os.PathLike[str], client: Client = "auto", retry_s: float | None = None, user_agent: str | None = None
) -> Store:
    """The store at a URL or a local path. It contacts nothing yet.

    Args:
        url: a path or `file://` (own implementation); `s3://`, `gs://`, `az://`, `abfs[s]://` (obstore); any other scheme that
            fsspec knows.
        client: "fsspec" uses fsspec for the schemes of obstore too; "obstore" refuses schemes that obstore does not serve.
            Local paths are the same with all three.
        retry_s: for how many seconds to repeat a call to a remote store that does not answer or asks to come again; None for
            DA2RAY_RETRY_SECONDS, else 180. Web servers get 15 at most.
        user_agent: how requests to web servers name the program; None for `da2ray/VERSION`.

    Raises:
        UserError: the client does not serve the scheme, the URL holds a password, or DA2RAY_RETRY_SECONDS is not a number.
    """
    url = canonical_url(url)
    scheme = _scheme(url)
    if scheme is None:
        return LocalStore(url)
    if redact(url) != url:
        raise UserError(f"{redact(url)} cannot have a query: a signature is for one object, and this is a folder")
    odd = scheme == "s3" and is_odd(url.partition("://")[2].partition("/")[2])
    if client == "fsspec" or odd or (client == "auto" and scheme not in SCHEMES):
        # Imported here: 0.2 s in each process, which few stores need.
        if scheme == "s3":
            from da2ray.storage.s3_fsspec import S3FsspecStore  # noqa: PLC0415

            return S3FsspecStore(url, retry_s)
        if scheme in WEB:
            from da2ray.storage.web import HttpStore  # noqa: PLC0415

            return HttpStore(url, retry_s, user_agent)
        if scheme == "ftp":
            from da2ray.storage.ftp import FtpStore  # noqa: PLC0415

            return FtpStore(url, retry_s)
        from da2ray.storage.fsspec import FsspecStore  # noqa: PLC0415

        return FsspecStore(url, retry_s)
    if scheme not in SCHEMES:
        raise UserError(
            f"obstore does not serve {scheme}:// URLs: use --storage-client auto or fsspec for {redact(url)}"
        )
    return S3ObjectStore(url, retry_s) if scheme == "s3" else ObjectStore(url, retry_s)


def canonical_url(url: str | os.PathLike[str]) -> str:
    """The one spelling of a place: local paths absolute and without `file://`, `s3a` as `s3`, no slash at the end.

    Raises:
        UserError: the text is not a path or URL, has no bucket, or holds a password.
    """
    scheme, rest = _parse(url)
    if scheme is None:
        return rest
    # A query may end with a slash.
    signed = scheme in WEB and "?" in rest
    return f"{scheme}://{rest if signed else rest.rstrip('/')}"


def split_uri(uri: str | os.PathLike[str]) -> tuple[str, str]:
    """Split the URI of an object into the root, for which a store is opened once, and the key below it.

    `s3://bucket/a/b.jpg` -> (`s3://bucket`, `a/b.jpg`); `/a/b.jpg` -> (`/`, `a/b.jpg`). The key stays as it is written, a slash
    at its end too, because it may be part of an object's name; only `file://` is unquoted.

    Raises:
        UserError: see `canonical_url`.
    """
    scheme, rest = _parse(uri)
    if scheme is None:
        return "/", rest[1:]
    if scheme == "memory":
        return "memory://", rest.lstrip("/")
    host, _, key = rest.partition("/")
    return f"{scheme}://{host}", key


def local_path(text: str | os.PathLike[str]) -> Path:
    """A path of this machine, with `~` and `~user` expanded.

    Raises:
        UserError: the text cannot be a path, or names a user that does not exist.
    """
    path = text_of(text)
    if not path or "\0" in path:
        raise UserError(f"not a path or URL: {path!r}")
    try:
        return Path(path).expanduser() if path.startswith("~") else Path(path)
    except RuntimeError:
        raise UserError(
            f"{printable(path)}: there is no user of this name; write ./~… for a folder whose name begins with ~"
        ) from None


def text_of(url: str | os.PathLike[str]) -> str:
    """The text of a URL or a path.

    Raises:
        UserError: it is not UTF-8, which an index or a plan cannot hold.
    """
    text = os.fsdecode(url)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{printable(text)} is not UTF-8: rename it, or give a link with another name") from None
    if isinstance(url, os.PathLike) and (found := _COLLAPSED.match(text)):
        raise UserError(f"pathlib.Path makes {printable(text)} of {found[1]}://…: give URLs as text")
    return text


def join(url: str, key: str) -> str:
    """The URI of a key below a canonical URL."""
    return f"{url}{key}" if url.endswith("/") else f"{url}/{key}"


def is_web(url: str) -> bool:
    """Whether a canonical URL is of a web server."""
    return url.partition("://")[0] in WEB


def _parse(url: str | os.PathLike[str]) -> tuple[str | None, str]:
    """The scheme, one for each place, and what follows `://`; None and an absolute path for local ones.

    Raises:
        UserError: see `canonical_url`.
    """
    text = text_of(url)
    scheme = _scheme(text)
    if scheme is None:
        if _FILE.match(text):  # `file:/a/b`, as Java writes it
            return None, _absolute(_unquoted(text[len("file:") :]))
        if found := _COLLAPSED.match(text):
            raise UserError(f"{printable(text)}: write {found[1]}:// with two slashes")
        return None, _absolute(text)
    rest = text[len(scheme) + 3 :]
    if scheme == "file":
        path = rest.removeprefix("localhost")
        if not path.startswith("/"):
            raise UserError(f"{printable(text)}: a file URL needs an absolute path, as in file:///data/a.jpg")
        return None, _absolute(_unquoted(path))
    host = rest.partition("/")[0]
    user, at, _ = host.rpartition("@")
    if at and (":" in user or scheme in WEB):
        raise UserError(f"a {scheme}:// URL holds a password: give it through the environment instead")
    if not host and scheme != "memory":
        raise UserError(f"no bucket or host in {redact(text)!r}")
    if scheme in WEB and not _is_web_host(re.split("[?#]", host)[0]):
        raise UserError(f"{redact(printable(text))} is not a URL: its host or port is wrong")
    return {"s3a": "s3", "gcs": "gs"}.get(scheme, scheme), rest


def _is_web_host(text: str) -> bool:
    try:
        url = URL(f"https://{text}")
        return bool(url.raw_host and url.port)
    except ValueError:
        return False


def _absolute(path: str) -> str:
    # normpath, not resolve, so that a link keeps the name that the user knows.
    return "/" + posixpath.normpath(local_path(path).absolute().as_posix()).lstrip("/")


def _unquoted(path: str) -> str:
    """The path in a file URL. `#`, `?` and brackets are part of it, quoted or not: files are named so, and have no query."""
    try:
        return unquote(path, errors="strict")
    except UnicodeDecodeError:
        raise UserError(f"{printable(path)} is not UTF-8: rename it, or give a link with another name") from None


def _scheme(url: str) -> str | None:
    """The scheme in lower case; None for a path."""
    scheme, separator, _ = url.partition("://")
    return scheme.lower() if separator and scheme.replace("+", "").replace("-", "").isalnum() else None
