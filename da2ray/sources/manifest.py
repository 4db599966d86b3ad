"""A file that lists images: CSV, JSON lines or Parquet with a column of URIs."""

import hashlib
import json
import posixpath
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from da2ray.errors import UnavailableError, UserError
from da2ray.sources.allowed import NAME_CHARS, Allowed
from da2ray.sources.base import Member, Sample
from da2ray.sources.fetch import fetch
from da2ray.sources.members import MEMBERS, MemberSource
from da2ray.storage import Client, Store, StoreFile, canonical_url, join, open_store, printable, redact, split_uri
from da2ray.storage.redaction import WEB

MANIFEST_SUFFIXES = frozenset({".csv", ".jsonl", ".ndjson", ".parquet"})
URI_COLUMNS = ("uri", "url", "path", "image", "file")
"""The first of these that the manifest has holds the URIs."""
KEY_COLUMN = "key"
FOCAL_COLUMN = "focal"
BLOCK_BYTES = 8 << 20
"""Bytes of text that are parsed at a time. A line must fit into them."""
PARQUET_ROWS = 16_384
CHECKED_ROWS = 1_000
"""At least one of the first rows must be allowed, or the job would make nothing but `forbidden` rows."""

_FOCAL = MEMBERS.field("focal").type
_ABSOLUTE = r"^(/|[A-Za-z][A-Za-z0-9+.:-]*://)"
_ODD_URL = r"://.*[?#@]"


class ManifestSource(MemberSource):
    """The rows of a manifest. Relative URIs are relative to the manifest's folder.

    The key is the column `key`, else the URI as it stands in the manifest, without what may be a credential (`redact`): the query
    that signs a URL changes, and a key is for good.

    A URI that is not allowed is a sample like any other; it becomes a row `forbidden` when it is to be read.

    If a teacher uses focal lengths, the column `focal` is read: pixels of the image as displayed at full size, empty or NaN if
    unknown. Any other value that is not a positive number ends planning, because it would make metres wrong silently.
    """

    kind = "manifest"
    looks_for = "rows"

    def __init__(
        self, url: str, client: Client = "auto", allowed: Allowed | None = None, *, with_focals: bool = False
    ) -> None:
        """`url`: canonical, of a file that ends in one of MANIFEST_SUFFIXES, maybe signed. `with_focals`: read column `focal`."""
        self.url = redact(url)
        self.root = self.url.rpartition("/")[0] or "/"
        self._location = url
        self._client: Client = client
        self._allowed = allowed or Allowed.of(url)
        self._with_focals = with_focals

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
            for batch in self._resolved(CHECKED_ROWS):
                for uri in batch.column("uri").to_pylist():
                    why = self._allowed.refusal(uri)
                    if why is None:
                        return
                    first = first or f"{printable(uri, NAME_CHARS)}: {printable(why, NAME_CHARS)}"
        except UserError:
            return  # Planning refuses broken rows, up to its limit.
        if first:
            raise UserError(f"{self.url}: none of its first URIs may be read\n{first}")

    def describe(self) -> dict[str, str]:
        """The URL and the content: an edited manifest is another source, a touched or rewritten one is not.

        An object store's etag stands for the content; a local file is read once and hashed.
        """
        store, key = self._open()
        try:
            etag = store.stat(key).etag
            if etag is None or self.url.startswith("/"):
                file: Any = StoreFile(store, key, BLOCK_BYTES)
                etag = hashlib.file_digest(file, "sha256").hexdigest()
        except UnavailableError:
            raise
        except OSError as error:
            raise UserError(f"cannot read {self.url}: {error}") from error
        return {"kind": self.kind, "url": self.url, "etag": etag}

    def members(self, limit: int | None = None) -> Iterator[pa.RecordBatch]:
        hashes: list[np.ndarray] = []
        for batch in self._resolved(limit):
            # 8 bytes a key instead of the key: 62 million keys cost 0.5 GB for as long as the manifest is read.
            hashes.append(np.fromiter(map(hash, batch.column("key").to_pylist()), np.int64, batch.num_rows))
            yield batch
        repeated = _repeated(hashes)
        del hashes
        if repeated.size:
            self._refuse_duplicate(repeated, limit)

    def fetch(self, members: Iterable[Member], concurrency: int) -> Iterator[Sample]:
        return fetch(members, concurrency, self._client, self._allowed)

    def _open(self) -> tuple[Store, str]:
        root, key = split_uri(self._location)
        return open_store(root, self._client), key

    def _resolved(self, limit: int | None) -> Iterator[pa.RecordBatch]:
        """The members as `members` yields them, without the check for repeated keys."""
        row = 0
        try:
            for batch in self._rows():
                # Slice first, check then: rows beyond the limit need not be right.
                rows = batch if limit is None else batch.slice(0, limit - row)
                if rows.num_rows:
                    yield self._resolve(rows, row)
                row += rows.num_rows
                if row == limit:
                    return
        except UnavailableError:
            raise
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"cannot read {self.url} after row {row}: {printable(error)}") from error

    def _rows(self) -> Iterator[pa.RecordBatch]:
        """Columns `uri`, `key` (the URI if the manifest has no keys) and maybe `focal`, as they stand in the manifest."""
        store, key = self._open()
        file: Any = StoreFile(store, key, BLOCK_BYTES)
        if file.size() == 0:
            raise UserError(f"{self.url} is empty")
        if self.url.lower().endswith(".parquet"):
            parquet = pq.ParquetFile(file)
            columns = self._columns(parquet.schema_arrow.names)
            batches: Iterable[pa.RecordBatch] = parquet.iter_batches(PARQUET_ROWS, columns=columns)
        elif self.url.lower().endswith(".csv"):
            columns = self._columns(_csv_header(StoreFile(store, key, BLOCK_BYTES)))
            batches = pyarrow.csv.open_csv(
                file,
                read_options=pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES),
                # Another column may be a caption with line breaks in it.
                parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
                convert_options=pyarrow.csv.ConvertOptions(
                    include_columns=columns,
                    column_types={name: _type_of(name) for name in columns},
                    strings_can_be_null=False,
                ),
            )
        else:
            columns = self._columns(self._json_names(file))
            batches = pyarrow.json.open_json(
                file,
                read_options=pyarrow.json.ReadOptions(block_size=BLOCK_BYTES),
                parse_options=pyarrow.json.ParseOptions(
                    explicit_schema=pa.schema([(name, _type_of(name)) for name in columns]),
                    unexpected_field_behavior="ignore",
                ),
            )
        for batch in batches:
            uris = batch.column(columns[0]).cast(pa.string())
            keys = batch.column(KEY_COLUMN).cast(pa.string()) if KEY_COLUMN in columns else uris
            for column in (uris, keys):
                column.validate(full=True)  # Parquet's strings may hold any bytes.
            rows = {"uri": uris, "key": keys}
            if FOCAL_COLUMN in columns:
                rows[FOCAL_COLUMN] = batch.column(FOCAL_COLUMN).cast(_FOCAL)
            yield pa.record_batch(rows)

    def _columns(self, names: list[str]) -> list[str]:
        """The column of URIs, and the columns of keys and focal lengths if the manifest has them."""
        more = [KEY_COLUMN, FOCAL_COLUMN] if self._with_focals else [KEY_COLUMN]
        for name in URI_COLUMNS:
            if name in names:
                return [name, *(column for column in more if column in names)]
        raise UserError(
            f"{self.url} has no column {', '.join(URI_COLUMNS)}; its columns are {printable(', '.join(names))}"
        )

    def _json_names(self, file: StoreFile) -> list[str]:
        line = b""
        while not line and file.tell() < file.size():
            line = file.readline().strip()
        file.seek(0)
        try:
            first = json.loads(line)
        except ValueError as error:
            raise UserError(f"{self.url}: the first line is not JSON: {error}") from error
        if not isinstance(first, dict):
            raise UserError(f"{self.url}: the first line is not a JSON object")
        return list(first)

    def _resolve(self, rows: pa.RecordBatch, before: int) -> pa.RecordBatch:
        """Rows of schema MEMBERS. `before`: how many rows of the manifest came before these."""
        for name in ("uri", "key"):
            column = rows.column(name)
            empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), fill_value=True)
            if pc.any(empty).as_py():
                row = before + pc.index(empty, value=True).as_py() + 1
                raise UserError(f"{self.url}: row {row} has no {name} (the first row after any header is row 1)")
        uris, keys = rows.column("uri"), rows.column("key")
        relative = pc.invert(pc.match_substring_regex(uris, _ABSOLUTE))
        joined = pc.binary_join_element_wise(pa.scalar(join(self.root, "")), uris, "")
        uris = pc.if_else(relative, joined, uris)
        dotted = pc.match_substring_regex(uris, r"/\.{1,2}(/|$)")
        if pc.any(dotted).as_py():
            uris = pa.array([_without_dots(uri) if dots else uri for uri, dots in _pairs(uris, dotted)], pa.string())
        odd = pc.match_substring_regex(keys, _ODD_URL)
        if pc.any(odd).as_py():
            keys = pa.array([redact(key) if maybe else key for key, maybe in _pairs(keys, odd)], pa.string())
        sizes, etags = (pa.nulls(len(keys), MEMBERS.field(name).type) for name in ("size", "etag"))
        return pa.record_batch([keys, uris, sizes, etags, self._focals(rows, before)], schema=MEMBERS)

    def _focals(self, rows: pa.RecordBatch, before: int) -> pa.Array:
        """The focal lengths of rows, null if unknown. `before`: see `_resolve`."""
        if FOCAL_COLUMN not in rows.schema.names:
            return pa.nulls(rows.num_rows, _FOCAL)
        focals = rows.column(FOCAL_COLUMN)
        # As in CSV, where `nan` is one of the words for an empty cell.
        focals = pc.if_else(pc.is_nan(focals), pa.scalar(None, _FOCAL), focals)
        wrong = pc.fill_null(pc.invert(pc.and_(pc.greater(focals, 0), pc.is_finite(focals))), fill_value=False)
        if pc.any(wrong).as_py():
            place = pc.index(wrong, value=True).as_py()
            raise UserError(
                f"{self.url}: row {before + place + 1} has the focal length {focals[place].as_py()}; it must be a positive "
                "number of pixels, or empty if unknown"
            )
        return focals

    def _refuse_duplicate(self, repeated: np.ndarray, limit: int | None) -> None:
        """Read the manifest again, to tell equal keys from equal hashes and to name the first."""
        rows: dict[str, int] = {}
        row = 0
        for batch in self._resolved(limit):
            keys = batch.column("key").to_pylist()
            suspects = np.isin(np.fromiter(map(hash, keys), np.int64, len(keys)), repeated)
            for index in np.flatnonzero(suspects).tolist():
                first = rows.setdefault(keys[index], row + index + 1)
                if first != row + index + 1:
                    key = printable(keys[index], NAME_CHARS)
                    raise UserError(
                        f"{self.url}: rows {first} and {row + index + 1} have the same key '{key}'; "
                        "keys must be unique (add a column `key`, or remove one of the rows)"
                    )
            row += len(keys)


def _type_of(column: str) -> pa.DataType:
    return _FOCAL if column == FOCAL_COLUMN else pa.string()


def _repeated(hashes: list[np.ndarray]) -> np.ndarray:
    """The hashes that occur more than once."""
    if not hashes:
        return np.empty(0, np.int64)
    every = np.concatenate(hashes)
    every.sort()
    return np.unique(every[1:][every[1:] == every[:-1]])


def _csv_header(file: Any) -> list[str]:
    """The names of the columns, as the parser that reads the rows sees them."""
    reader = pyarrow.csv.open_csv(
        file,
        read_options=pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
    )
    return list(reader.schema.names)


def _without_dots(uri: str) -> str:
    """Resolve `..`: `folder/../other/x.jpg` becomes `other/x.jpg`, since an object store takes `..` for a name."""
    if uri.startswith("/"):
        return canonical_url(uri)
    scheme, _, rest = uri.partition("://")
    query = ""
    if scheme.lower() in WEB and "?" in rest:
        rest, query = rest[: rest.index("?")], rest[rest.index("?") :]
    host, _, path = rest.partition("/")
    return f"{scheme}://{host}{posixpath.normpath('/' + path)}{query}"


def _pairs(uris: pa.Array, flags: pa.Array) -> Iterator[tuple[str, bool]]:
    return zip(uris.to_pylist(), flags.to_pylist(), strict=True)
