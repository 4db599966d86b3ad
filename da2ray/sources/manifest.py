"""Files that list images: CSV, JSON lines or Parquet with a column of URIs, or a folder of such files."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from da2ray.errors import UnavailableError, UserError
from da2ray.sources.allowed import NAME_CHARS, Allowed
from da2ray.sources.base import Member, Sample
from da2ray.sources.fetch import fetch
from da2ray.sources.members import MEMBERS, MemberSource
from da2ray.sources.table import BLOCK_BYTES, FOCAL, ID, SUFFIXES, TEXT, Column, read_rows
from da2ray.storage import Client, Store, StoreFile, canonical_url, join, open_store, printable, redact, split_uri
from da2ray.storage.redaction import WEB

MANIFEST_SUFFIXES = SUFFIXES
URI_COLUMNS = ("uri", "url", "path", "image", "file")
"""The first of these that the manifest has holds the URIs."""
COLUMNS: Final = (
    Column("uri", URI_COLUMNS, TEXT, required=True),
    Column("key", ("key",), ID),
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
    ) -> None:
        """`url`: canonical, of a file that ends in one of MANIFEST_SUFFIXES, maybe signed, or of a folder of such files."""
        self.url = redact(url)
        self.root = self.url if is_folder else self.url.rpartition("/")[0] or "/"
        self._location = url
        self._client: Client = client
        self._allowed = allowed or Allowed.of(url)
        self._is_folder = is_folder

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
        return {"kind": self.kind, "url": self.url, "etag": etag}

    def members(self, limit: int | None = None) -> Iterator[pa.RecordBatch]:
        hashes: list[np.ndarray] = []
        for rows in self._rows(limit):
            # 8 bytes a key instead of the key: 62 million keys cost 0.5 GB for as long as the manifest is read.
            keys = rows.members.column("key").to_pylist()
            hashes.append(np.fromiter(map(hash, keys), np.int64, len(keys)))
            yield rows.members
        repeated = _repeated(hashes)
        del hashes
        if repeated.size:
            self._refuse_duplicate(repeated, limit)

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
            for rows in part.rows(COLUMNS, left):
                yield _Rows(part, before, self._resolve(rows))
                before += rows.num_rows
            if left is not None:
                left -= before
                if left == 0:
                    return

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
        sizes, etags = (pa.nulls(len(keys), MEMBERS.field(name).type) for name in ("size", "etag"))
        return pa.record_batch([keys, uris, sizes, etags, rows.column("focal")], schema=MEMBERS)

    def _refuse_duplicate(self, repeated: np.ndarray, limit: int | None) -> None:
        """Read the manifest again, to tell equal keys from equal hashes and to name the first."""
        first_rows: dict[str, str] = {}
        for rows in self._rows(limit):
            keys = rows.members.column("key").to_pylist()
            suspects = np.isin(np.fromiter(map(hash, keys), np.int64, len(keys)), repeated)
            for index in np.flatnonzero(suspects).tolist():
                here = f"{rows.before + index + 1}{f' of {rows.part.key}' if self._is_folder else ''}"
                first = first_rows.setdefault(keys[index], here)
                if first != here:
                    key = printable(keys[index], NAME_CHARS)
                    raise UserError(
                        f"{self.url}: rows {first} and {here} have the same key '{key}'; "
                        "keys must be unique (add a column `key`, or remove one of the rows)"
                    )


def part_keys(keys: pa.Array) -> list[str]:
    """The keys of files that can be parts of a manifest. Names that begin with `.` or `_` belong to the tools that wrote them."""
    parts = pc.and_not(pc.match_substring_regex(keys, _PART), pc.match_substring_regex(keys, _HIDDEN))
    return keys.filter(parts).to_pylist()


def _repeated(hashes: list[np.ndarray]) -> np.ndarray:
    """The hashes that occur more than once."""
    if not hashes:
        return np.empty(0, np.int64)
    every = np.concatenate(hashes)
    every.sort()
    return np.unique(every[1:][every[1:] == every[:-1]])


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
