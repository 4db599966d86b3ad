"""All image files below a URL."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from da2ray.errors import OutageError, UnavailableError, UserError
from da2ray.sources.base import Member, Sample
from da2ray.sources.fetch import fetch
from da2ray.sources.members import MEMBERS, MemberSource
from da2ray.storage import LIST_SCHEMA, Client, Store, join, open_store
from da2ray.storage.local import LocalStore

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
IMAGE: Final = r"(?i)\.(" + "|".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES)) + ")/*$"
"""The names of images. An object may be named `a.jpg/`. Stores leave out those without bytes, which stand for folders."""
_OTHER_IMAGE = (
    r"(?i)\.(heic|heif|hif|avif|jxl|jp2|j2k|jpx|jxr|wdp|hdp|dng|cr2|cr3|nef|arw|orf|rw2|raf|raw|psd|exr|hdr|ppm|pgm|pbm|pnm|tga|"
    r"svg|ico|icns|qoi|dds|pcx|apng|jpf|jpm)$"
)
HIDDEN: Final = r"(^|/)\.([^./]|\.[^/])"
"""`.` and `..` are parts of object keys like others."""


def is_hidden(path: str) -> bool:
    """Whether a file, or one of its folders, has a name that begins with a dot."""
    return re.search(HIDDEN, path) is not None


class PrefixSource(MemberSource):
    """Image files below a URL. A key is a path below that URL.

    Hidden files and folders (`.name`) are left out. Empty files are not: an empty file has the name of an image, so it gets its
    index row, with reason `empty`.
    """

    kind = "prefix"
    in_key_order = True
    looks_for = " ".join(sorted(IMAGE_SUFFIXES))

    def __init__(self, url: str, client: Client = "auto", *, is_file: bool = False) -> None:
        """`url`: canonical. With `is_file` it names one image, whose key is its name."""
        self.url = url
        self.root, _, self._name = url.rpartition("/") if is_file else (url, "", "")
        self.root = self.root or "/"
        self._client: Client = client
        self.passed_over: Counter[str] = Counter()
        self.skipped: list[str] = []
        self._was_listed = False

    def describe(self) -> dict[str, str]:
        return {"kind": self.kind, "url": self.url}

    def members(self, limit: int | None = None) -> Iterator[pa.RecordBatch]:
        left = limit
        self.passed_over, self.skipped = Counter(), []
        for listed in self.listed():
            batch = self.images(listed)
            if left is not None:
                batch = batch.slice(0, left)
                left -= batch.num_rows
            if batch.num_rows:
                yield batch
            if left == 0:
                return

    def fetch(self, members: Iterable[Member], concurrency: int) -> Iterator[Sample]:
        return fetch(members, concurrency, self._client)

    def _store(self) -> Store:
        return open_store(self.root, self._client)

    def listed(self) -> Iterator[pa.RecordBatch]:
        """All files below the URL, in batches of LIST_SCHEMA; they need not be images.

        Raises:
            UserError: the URL does not exist or may not be listed.
            UnavailableError: its store does not answer.
            OutageError: it may not be listed any more, and could be before.
        """
        try:
            if self._name:
                stat = self._store().stat(self._name)
                rows = [{"key": self._name, "size": stat.size, "etag": stat.etag}]
                yield pa.RecordBatch.from_pylist(rows, schema=LIST_SCHEMA)
                return
            if self.url.startswith("/") and not Path(self.url).is_dir():
                raise UserError(f"no such folder: {self.url}")
            store = self._store()
            for batch in store.list():
                self._was_listed = True
                yield batch
            self.passed_over.update(store.passed_over)
            if isinstance(store, LocalStore):
                self.skipped = store.skipped
        except UnavailableError:
            raise
        except PermissionError as error:
            if self._was_listed and not self.url.startswith("/"):
                message = f"cannot list {self.url}: {error}; access worked before: renew the credentials"
                raise OutageError(message) from error
            raise UserError(f"cannot list {self.url}: {error}") from error
        except OSError as error:
            raise UserError(f"cannot list {self.url}: {error}") from error

    def images(self, listed: pa.RecordBatch) -> pa.RecordBatch:
        """The image files of a listing, as rows of schema MEMBERS."""
        if self._name:
            return members_below(listed, self.root)
        return image_files(listed, self.root, self.passed_over)


def image_files(listed: pa.RecordBatch, root: str, passed_over: Counter[str]) -> pa.RecordBatch:
    """The visible image files of a listing below `root`, as rows of schema MEMBERS; the others are added to `passed_over`.

    Args:
        listed: with the columns of LIST_SCHEMA; sizes may be null.
    """
    keys = listed.column("key")
    image, hidden = (pc.match_substring_regex(keys, pattern) for pattern in (IMAGE, HIDDEN))
    other = pc.and_not(pc.match_substring_regex(keys, _OTHER_IMAGE), hidden)
    for name, passed in (("hidden_files", hidden), ("other_image_types", other)):
        passed_over[name] += pc.sum(passed).as_py() or 0
    return members_below(listed.filter(pc.and_not(image, hidden)), root)


def members_below(listed: pa.RecordBatch, root: str) -> pa.RecordBatch:
    """Files of a listing below `root` as rows of schema MEMBERS."""
    keys = listed.column("key")
    uris = pc.binary_join_element_wise(pa.scalar(join(root, "")), keys, "")
    focals = pa.nulls(len(keys), MEMBERS.field("focal").type)
    versions = pa.nulls(len(keys), pa.string())
    return pa.record_batch([keys, uris, listed.column("size"), listed.column("etag"), focals, versions], schema=MEMBERS)
