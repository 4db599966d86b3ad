"""Which kind of source a URL names."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from da2ray.errors import UnavailableError, UserError
from da2ray.sources.allowed import Allowed
from da2ray.sources.base import Source
from da2ray.sources.inventory import InventorySource, inventory_checksums, newest_manifest
from da2ray.sources.manifest import MANIFEST_SUFFIXES, URI_COLUMNS, ManifestSource, part_keys
from da2ray.sources.parquet.columns import find_columns
from da2ray.sources.parquet.source import ParquetSource, open_footer
from da2ray.sources.prefix import IMAGE_SUFFIXES, PrefixSource
from da2ray.sources.tar.files import TAR_SUFFIXES, TarFiles, TarManifest, is_tar, split_pattern
from da2ray.sources.tar.source import TarSource
from da2ray.storage import Client, canonical_url, is_web, join, open_store, redact, split_uri

LOOKED_AT: Final = 10_000
"""Files of a folder that are looked at to tell what it holds: ten pages of a listing. The first image ends the look."""
PARQUET_SUFFIX: Final = ".parquet"


@dataclass(frozen=True, slots=True)
class _Request:
    """What a source is opened with: the arguments of `open_source`, and whether the URL names one file."""

    url: str
    is_file: bool
    client: Client
    allow: Sequence[str]
    user_agent: str | None
    image_column: str | None
    key_column: str | None


def open_source(
    url: str | os.PathLike[str],
    client: Client = "auto",
    allow: Sequence[str] = (),
    *,
    user_agent: str | None = None,
    image_column: str | None = None,
    key_column: str | None = None,
) -> Source:
    """Open the source at a URL. Its suffix decides the kind (the table `KINDS`). A folder holds images, tars, or the parts of a
    manifest. A Parquet file is a manifest if it has no column of image bytes.

    Args:
        url: a URL or a path, or a pattern of tars (`split_pattern`). A manifest's may be a signed http URL; the signature is not
            part of the source.
        client: see `open_store`.
        allow: what a manifest's URIs may reach besides the default (`Allowed.of`). A plan does not depend on it.
        user_agent: see `open_store`.
        image_column: the column of image bytes (dotted if nested), or of a manifest's URIs; None to find it by type and name.
        key_column: the column of keys; "none" for none, None for `key` if there is one.

    Raises:
        UserError: the source does not exist or cannot be read, it is a file of a kind that holds no images, or it is a manifest
            none of whose first URIs is allowed.
        UnavailableError: its store does not answer.
    """
    url = canonical_url(url)
    shown = redact(url)
    suffix = _suffix(shown)
    # A name without suffix is a prefix; asking for it as an object may be forbidden where listing is not.
    is_file = bool(suffix) and _is_file(url, client, user_agent)
    if not is_file and suffix in TAR_SUFFIXES and not is_web(url) and (pattern := split_pattern(url)):
        folder, names = pattern
        return TarSource(TarFiles(folder, client, pattern=names), client)
    request = _Request(url, is_file, client, allow, user_agent, image_column, key_column)
    if request.is_file and suffix in KINDS:
        return KINDS[suffix](request)
    if request.is_file:
        known = " ".join(sorted(KINDS))
        raise UserError(
            f"{shown} is a file of a kind that is not known here; give a folder or a file that ends in {known}"
        )
    return _open_folder(request, must_be_manifest=suffix in MANIFEST_SUFFIXES)


def _open_manifest(request: _Request) -> Source:
    allowed = Allowed.of(request.url, request.allow, request.user_agent)
    manifest = ManifestSource(
        request.url,
        request.client,
        allowed,
        is_folder=not request.is_file,
        image_column=request.image_column,
        key_column=request.key_column,
    )
    manifest.check()
    with suppress(UserError):  # planning refuses broken rows
        if any(is_tar(uri) for rows in manifest.members(1) for uri in rows.column("uri").to_pylist()):
            return TarSource(TarManifest(manifest), request.client, allowed)
    return manifest


def _open_parquet(request: _Request, first: str | None = None) -> Source:
    """Image bytes if the file has a column of them, else a manifest. `first`: of the files of a folder, the first one's key."""
    url = request.url if first is None else join(request.url, first)
    root, key = split_uri(url)
    store = open_store(root, request.client, user_agent=request.user_agent)
    shown = redact(url)
    try:
        size = store.stat(key).size
    except UnavailableError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {shown}: {error}") from error
    footer = open_footer(partial(store.get_range, key), size, shown)
    columns = find_columns(footer.metadata.schema, shown, request.image_column, request.key_column, URI_COLUMNS)
    if columns is None:
        return _open_manifest(request)
    allowed = Allowed.of(request.url, request.allow, request.user_agent)
    return ParquetSource(_unsigned(request.url), columns, request.client, allowed, is_folder=first is not None)


def _open_tar(request: _Request) -> Source:
    return TarSource(TarFiles(_unsigned(request.url), request.client, is_file=True), request.client)


def _open_image(request: _Request) -> Source:
    return PrefixSource(_unsigned(request.url), request.client, is_file=True)


def _open_inventory(request: _Request) -> Source:
    return InventorySource(_unsigned(request.url), request.client)


def _open_folder(request: _Request, *, must_be_manifest: bool) -> Source:
    """What a folder is depends on the first files that it lists: images, an inventory, tars, or else the parts of a manifest."""
    local = request.url.startswith("/")
    if must_be_manifest and (is_web(request.url) or (local and not Path(request.url).is_dir())):
        raise UserError(f"no such manifest: {redact(request.url)}")
    prefix = PrefixSource(_unsigned(request.url), request.client)
    tars = TarFiles(prefix.url, request.client)
    files, has_tars, parts, checksums = 0, False, list[str](), list[str]()
    for listed in prefix.listed():
        if prefix.images(listed).num_rows:
            return prefix
        files += listed.num_rows
        has_tars = has_tars or bool(tars.images(listed).num_rows)
        parts = parts or part_keys(listed.column("key"))[:1]
        checksums += inventory_checksums(listed.column("key"))
        if files >= LOOKED_AT:
            break
    if manifest := newest_manifest(checksums):
        return InventorySource(join(request.url, manifest), request.client)
    if has_tars:
        return TarSource(tars, request.client)
    if parts and parts[0].lower().endswith(PARQUET_SUFFIX):
        return _open_parquet(request, parts[0])
    if parts:
        return _open_manifest(request)
    if must_be_manifest:
        raise UserError(f"no such manifest: {request.url}")
    return prefix


def _unsigned(url: str) -> str:
    if redact(url) != url:
        raise UserError(f"{redact(url)} has a query: put signed URLs of images into a manifest")
    return url


KINDS: Final[dict[str, Callable[[_Request], Source]]] = {
    **dict.fromkeys(MANIFEST_SUFFIXES, _open_manifest),
    PARQUET_SUFFIX: _open_parquet,
    ".json": _open_inventory,
    **dict.fromkeys(IMAGE_SUFFIXES, _open_image),
    **dict.fromkeys(TAR_SUFFIXES, _open_tar),
}
"""Suffix of a file -> what opens it."""


def _is_file(url: str, client: Client, user_agent: str | None) -> bool:
    root, key = split_uri(url)
    try:
        open_store(root, client, user_agent=user_agent).stat(key)
    except (FileNotFoundError, ValueError):  # ValueError: a key that no object has
        return False
    except UnavailableError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {redact(url)}: {error}") from error
    return True


def _suffix(url: str) -> str:
    name = url.rpartition("/")[2]
    if found := next((suffix for suffix in TAR_SUFFIXES if name.lower().endswith(suffix)), None):
        return found
    return f".{name.rpartition('.')[2].lower()}" if "." in name else ""
