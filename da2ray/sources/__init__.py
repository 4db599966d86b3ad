"""Where images come from: `open_source(url)`, then `samples()` to plan and `fetch()` to read."""

from collections.abc import Sequence

from da2ray.errors import UnavailableError, UserError
from da2ray.sources.allowed import Allowed
from da2ray.sources.base import FOCAL, MEMBERS, Member, Source, fetch, members_of
from da2ray.sources.manifest import MANIFEST_SUFFIXES, ManifestSource
from da2ray.sources.prefix import IMAGE_SUFFIXES, PrefixSource
from da2ray.storage import Client, canonical_url, open_store, redact, split_uri

__all__ = [
    "FOCAL",
    "IMAGE_SUFFIXES",
    "MANIFEST_SUFFIXES",
    "MEMBERS",
    "Allowed",
    "ManifestSource",
    "Member",
    "PrefixSource",
    "Source",
    "fetch",
    "members_of",
    "open_source",
]


def open_source(url: str, client: Client = "auto", allow: Sequence[str] = (), *, with_focals: bool = False) -> Source:
    """The source at a URL, by its suffix: a manifest, a single image file, or a prefix of image files.

    Args:
        url: of a manifest it may be a signed http URL; the signature is not part of the source.
        client: as of `open_store`.
        allow: what a manifest's URIs may have besides the default (`Allowed.of`). A plan does not depend on it.
        with_focals: a manifest's focal lengths are wanted.

    Raises:
        UserError: it does not exist, cannot be read, is a file of a kind that holds no images, or a manifest whose URIs
            are not allowed.
        UnavailableError: its store does not answer.
    """
    url = canonical_url(url)
    shown = redact(url)
    root, key = split_uri(url)
    suffix = _suffix(shown)
    try:
        # A name without suffix is a prefix; asking for it as an object may be forbidden where listing is not.
        is_file = bool(suffix) and _is_file(root, key, client)
    except UnavailableError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {shown}: {error}") from error
    if suffix in MANIFEST_SUFFIXES:
        if not is_file:
            raise UserError(f"no such manifest: {shown}")
        manifest = ManifestSource(url, client, Allowed.of(url, allow), with_focals=with_focals)
        manifest.check()
        return manifest
    if shown != url:
        raise UserError(f"{shown} has a query: put signed URLs of images into a manifest")
    if is_file and suffix not in IMAGE_SUFFIXES:
        looked = " ".join(sorted(MANIFEST_SUFFIXES | IMAGE_SUFFIXES))
        raise UserError(f"{url} is a file of no kind known here; give a folder or a file that ends in {looked}")
    source = PrefixSource(url, client, is_file=is_file)
    source.check()
    return source


def _is_file(root: str, key: str, client: Client) -> bool:
    try:
        open_store(root, client).stat(key)
    except FileNotFoundError:
        return False
    return True


def _suffix(url: str) -> str:
    name = url.rpartition("/")[2]
    return f".{name.rpartition('.')[2].lower()}" if "." in name else ""
