"""Files that list images: CSV, JSON lines or Parquet with a column of URIs, or a folder of such files."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from da2ray.errors import UnavailableError, UserError
from da2ray.sources.allowed import NAME_CHARS, Allowed
from da2ray.sources.base import Member, Sample
from da2ray.sources.fetch import fetch
from da2ray.sources.members import MEMBERS, MemberSource
from da2ray.sources.parquet.columns import NO_COLUMN
from da2ray.sources.table import BLOCK_BYTES, ETAG, FOCAL, ID, SIZE, SUFFIXES, TEXT, Column, read_rows
from da2ray.sources.unique import UniqueKeys
from da2ray.storage import Client, Store, StoreFile, canonical_url, join, open_store, printable, redact, split_uri
from da2ray.storage.redaction import WEB

MANIFEST_SUFFIXES = SUFFIXES
URI_COLUMNS = ("uri", "url", "path", "image", "file")
"""The first of these that the manifest has holds the URIs."""
COLUMNS: Final = (
    Column("uri", URI_COLUMNS, TEXT, required=True),
    Column("key", ("key",), ID),
    Column("size", ("size",), SIZE),
    Column("etag", ("etag",), ETAG),
    Column("focal", ("focal",), FOCAL),
)
CHECKED_ROWS = 1_000
"""At least one of the first rows must be allowed, or the job would make nothing but `forbidden` rows."""

_ABSOLUTE = r"^(/|[A-Za-z][A-Za-z0-9+.:-]*://|(?i:file):/)"
_DOTTED = r"(^|/)\.{1,2}(/|[?]|$)"
_PART = r"(?i)\.(" + "|".join(sorted(suffix[1:] for suffix in MANIFEST_SUFFIXES)) + ")$"
_HIDDEN = r"(^|/)[._]"
_ODD_URL = r"://.*[?#@]"


@dataclass(frozen=True, slots=True)
class _Part:
    """A file of a manifest.

    Attributes:
        url: for messages, without a signature.
        key: in `store`.
    """

    url: str
    store: Store
    key: str

    def rows(self, columns: Sequence[Column], limit: int | None) -> Iterator[pa.RecordBatch]:
        """The rows as `read_rows` gives them."""
        try:
            yield from read_rows(StoreFile(self.store, self.key, BLOCK_BYTES), self.url, columns, limit)
        except UnavailableError:
            raise
        except OSError as error:
            raise UserError(f"cannot read {self.url}: {printable(error)}") from error

    def etag(self) -> str:
        """An object store's etag stands for the content. A local file is read once and hashed."""
        etag = self.store.stat(self.key).etag
        if etag is not None and not self.url.startswith("/"):
            return etag
        file: Any = StoreFile(self.store, self.key, BLOCK_BYTES)
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of a part. `before`: how many rows of the part came before them."""

    part: _Part
    before: int
    members: pa.RecordBatch


class ManifestSource(MemberSource):
    """The rows of a manifest. Relative URIs are relative to the manifest's folder.

    A manifest is a file, or a folder of files of one format (parts), whose rows count in the order of the files' names.

    The key is the column `key`, else the URI as it stands in the manifest, without what may be a credential (`redact`): the query
    that signs a URL changes, and a key is for good.

    A URI that is not allowed is a sample like any other; it becomes a row `forbidden` when it is to be read.

    The column `focal` holds pixels of the image as displayed at full size, empty if unknown. Any other value that is not a
    positive number ends planning, whether the teacher uses it or not: with one that does, it would make metres wrong silently.
    """

    kind = "manifest"
    looks_for = "rows"

    def __init__(
        self,
        url: str,
        client: Client = "auto",
        allowed: Allowed | None = None,
        *,
        is_folder: bool = False,
        image_column: str | None = None,
        key_column: str | None = None,
    ) -> None:
        """Open it.

        Args:
            url: canonical, of a file that ends in one of MANIFEST_SUFFIXES, maybe signed, or of a folder of such files.
            image_column, key_column: names of columns besides the usual ones; NO_COLUMN for no column of keys.
        """
        self.url = redact(url)
        self.root = self.url if is_folder else self.url.rpartition("/")[0] or "/"
        self._location = url
        self._client: Client = client
        self._allowed = allowed or Allowed.of(url)
        self._is_folder = is_folder
        self._named = {
            name: column
            for name, column in (("image_column", image_column), ("key_column", key_column))
            if column is not None
        }

    def __getstate__(self) -> dict[str, Any]:
        """Without the signature: workers read images, not the manifest."""
        return self.__dict__ | {"_location": self.url}

    def check(self) -> None:
        """Check that the job may read at least one image.

        Raises:
            UserError: none of the first CHECKED_ROWS URIs is allowed. The message names the option that allows the first.
        """
        first = None
        try:
            for rows in self._rows(CHECKED_ROWS):
                for uri in rows.members.column("uri").to_pylist():
                    why = self._allowed.refusal(uri)
                    if why is None:
                        return
                    first = first or f"{printable(uri, NAME_CHARS)}: {printable(why, NAME_CHARS)}"
        except UserError:
            return  # Planning refuses broken rows, up to its limit.
        if first:
            raise UserError(f"{self.url}: none of its first URIs may be read\n{first}")

    def describe(self) -> dict[str, str]:
        """The URL and the content: an edited manifest is another source, a touched or rewritten one is not."""
        try:
            etags = [(part.key, part.etag()) for part in self._parts()]
        except UnavailableError:
            raise
        except OSError as error:
            raise UserError(f"cannot read {self.url}: {error}") from error
        etag = hashlib.sha256(json.dumps(etags).encode()).hexdigest() if self._is_folder else etags[0][1]
        return {"kind": self.kind, "url": self.url, "etag": etag, **self._named}

    def members(self, limit: int | None = None) -> Iterator[pa.RecordBatch]:
        unique = UniqueKeys()
        for rows in self._rows(limit):
            unique.add(rows.members.column("key").to_pylist())
            yield rows.members
        unique.check(self.url, partial(self._keys, limit), "add a column `key`, or remove one of the rows")

    def fetch(self, members: Iterable[Member], concurrency: int) -> Iterator[Sample]:
        return fetch(members, concurrency, self._client, self._allowed)

    def _parts(self) -> list[_Part]:
        """The files of the manifest, in the order of their names.

        Raises:
            UserError: the folder has no parts, or parts of several formats.
        """
        if not self._is_folder:
            root, key = split_uri(self._location)
            return [_Part(self.url, open_store(root, self._client, user_agent=self._allowed.user_agent), key)]
        store = open_store(self.url, self._client)
        keys = [key for listed in store.list() for key in part_keys(listed.column("key"))]
        formats = {key.lower().rpartition(".")[2] for key in keys}
        if len(formats) != 1:
            raise UserError(
                f"{self.url} has files of several formats ({', '.join(sorted(formats))}): give a folder of one"
                if formats
                else f"{self.url} has no files that end in {' '.join(sorted(MANIFEST_SUFFIXES))}"
            )
        return [_Part(join(self.url, key), store, key) for key in keys]

    def _rows(self, limit: int | None) -> Iterator[_Rows]:
        """The members as `members` yields them, without the check for repeated keys."""
        left = limit
        for part in self._parts():
            before = 0
            for rows in part.rows(self._columns(), left):
                yield _Rows(part, before, self._resolve(rows))
                before += rows.num_rows
            if left is not None:
                left -= before
                if left == 0:
                    return

    def _columns(self) -> list[Column]:
        """COLUMNS, with the names that the user gave."""
        uri, key, *others = COLUMNS
        if image := self._named.get("image_column"):
            uri = replace(uri, names=(image,))
        if named := self._named.get("key_column"):
            key = replace(key, names=() if named == NO_COLUMN else (named,), required=named != NO_COLUMN)
        return [uri, key, *others]

    def _resolve(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Rows of schema MEMBERS, of the columns that a manifest has."""
        uris = rows.column("uri")
        keys = pc.coalesce(rows.column("key"), uris)
        relative = pc.invert(pc.match_substring_regex(uris, _ABSOLUTE))
        dotted = pc.and_(relative, pc.match_substring_regex(uris, _DOTTED))
        if pc.any(dotted).as_py():
            uris = pa.array(
                [_without_dots(self.root, uri) if dots else uri for uri, dots in _pairs(uris, dotted)], pa.string()
            )
            relative = pc.and_not(relative, dotted)
        joined = pc.binary_join_element_wise(pa.scalar(join(self.root, "")), uris, "")
        uris = pc.if_else(relative, joined, uris)
        odd = pc.match_substring_regex(keys, _ODD_URL)
        if pc.any(odd).as_py():
            keys = pa.array([redact(key) if maybe else key for key, maybe in _pairs(keys, odd)], pa.string())
        sizes, etags = rows.column("size"), rows.column("etag")
        said = zip(*(column.to_pylist() for column in (uris, etags, sizes)), strict=True)
        versions = pa.array([_version(*row) for row in said], pa.string())
        return pa.record_batch([keys, uris, sizes, etags, rows.column("focal"), versions], schema=MEMBERS)

    def _keys(self, limit: int | None) -> Iterator[tuple[list[str], Callable[[int], str]]]:
        """The keys once more, with the names of their rows."""
        for rows in self._rows(limit):
            yield rows.members.column("key").to_pylist(), partial(self._row_name, rows)

    def _row_name(self, rows: _Rows, place: int) -> str:
        return f"{rows.before + place + 1}{f' of {rows.part.key}' if self._is_folder else ''}"


def part_keys(keys: pa.Array) -> list[str]:
    """The keys of files that can be parts of a manifest. Names that begin with `.` or `_` belong to the tools that wrote them."""
    parts = pc.and_not(pc.match_substring_regex(keys, _PART), pc.match_substring_regex(keys, _HIDDEN))
    return keys.filter(parts).to_pylist()


def absolute(root: str, uri: str) -> str:
    """A URI that may be relative to `root`, as an absolute one."""
    if re.match(_ABSOLUTE, uri):
        return uri
    return _without_dots(root, uri) if re.search(_DOTTED, uri) else join(root, uri)


def _version(uri: str, etag: str | None, size: int | None) -> str:
    """The version of a row: a hash of what it says of its image. A signature in the URI does not count."""
    unsigned = redact(uri) if "?" in uri or "@" in uri else uri
    return hashlib.md5(f"{unsigned}\n{etag}\n{size}".encode(), usedforsecurity=False).hexdigest()[:16]


def _without_dots(root: str, relative: str) -> str:
    """Resolve `.` and `..` of a URI that is relative to `root`, since an object store takes them for names."""
    if root.startswith("/"):
        return canonical_url(join(root, relative))
    scheme, _, rest = root.partition("://")
    path, mark, query = relative.partition("?") if scheme in WEB else (relative, "", "")
    host, _, folder = rest.partition("/")
    parts = folder.split("/") if folder else []
    for part in path.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part != ".":
            parts.append(part)
    return f"{scheme}://{host}/{'/'.join(parts)}{mark}{query}"


def _pairs(uris: pa.Array, flags: pa.Array) -> Iterator[tuple[str, bool]]:
    return zip(uris.to_pylist(), flags.to_pylist(), strict=True)
