"""Where images come from: `open_source(url)`, then `samples()` to plan and `fetch()` to read."""

from da2ray.errors import UserError
from da2ray.sources.base import MEMBERS, Member, Source, fetch, members_of
from da2ray.sources.manifest import MANIFEST_SUFFIXES, ManifestSource
from da2ray.sources.prefix import IMAGE_SUFFIXES, PrefixSource
from da2ray.storage import Client, canonical_url, open_store, split_uri

__all__ = [
    "IMAGE_SUFFIXES",
    "MANIFEST_SUFFIXES",
    "MEMBERS",
    "ManifestSource",
    "Member",
    "PrefixSource",
    "Source",
    "fetch",
    "members_of",
    "open_source",
]


def open_source(url: str, client: Client = "auto") -> Source:
    """The source at a URL, by its suffix: a manifest, a single image file, or a prefix of image files.

    Raises:
        UserError: it does not exist, cannot be read, or is a file of a kind that holds no images.
    """
    url = canonical_url(url)
    root, key = split_uri(url)
    suffix = _suffix(url)
    try:
        # A name without suffix is a prefix; asking for it as an object may be forbidden where listing is not.
        is_file = bool(suffix) and _is_file(root, key, client)
    except OSError as error:
        raise UserError(f"cannot read {url}: {error}") from error
    if suffix in MANIFEST_SUFFIXES:
        if not is_file:
            raise UserError(f"no such manifest: {url}")
        return ManifestSource(url, client)
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
