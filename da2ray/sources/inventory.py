"""S3 Inventory: the list of a bucket's objects that S3 itself writes each day or week, in place of a listing.

Layout and fields: https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory-location.html
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Final
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.orc
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, ValidationError

from da2ray.errors import Reason, SampleError, UnavailableError, UserError
from da2ray.sources.allowed import Allowed
from da2ray.sources.base import Member, Sample
from da2ray.sources.fetch import fetch
from da2ray.sources.members import MemberSource
from da2ray.sources.prefix import IMAGE_SUFFIXES, image_files
from da2ray.sources.unique import UniqueKeys
from da2ray.storage import LIST_SCHEMA, Client, Store, join, open_store, printable, split_uri

MANIFEST: Final = "manifest.json"
CHECKSUM: Final = "manifest.checksum"
ROWS: Final = 65_536
"""Rows of a Parquet or ORC file that are in memory at a time."""
BLOCK_BYTES: Final = 8 << 20
"""Bytes of a file that are fetched, and of text that are parsed, at a time."""
MOST_MANIFEST_BYTES: Final = 64 << 20

_CHECKSUM: Final = r"^([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}-[0-9]{2}Z/)?manifest\.checksum$"
_TYPES: Final = {
    "key": pa.string(),
    "size": pa.int64(),
    "e_tag": pa.string(),
    "is_latest": pa.bool_(),
    "is_delete_marker": pa.bool_(),
}
"""What is read, by its names in Parquet and ORC; only the key must be there."""


class _File(BaseModel):
    key: str
    size: int
    md5: str = Field(alias="MD5checksum", pattern=r"^[0-9a-fA-F]{32}$")


class _Manifest(BaseModel):
    """The fields of manifest.json that are used."""

    bucket: str = Field(alias="sourceBucket", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]+$")
    destination: str = Field(alias="destinationBucket")
    format: str = Field(alias="fileFormat", pattern=r"(?i)^(csv|orc|parquet)$")
    columns: str = Field(alias="fileSchema")
    files: list[_File]


@dataclass(frozen=True, slots=True)
class _Listed:
    """Objects that a file lists, in the schema LIST_SCHEMA.

    Attributes:
        file: the file's name.
    """

    file: str
    objects: pa.RecordBatch


class InventorySource(MemberSource):
    """The image files that an inventory lists. A key is the object's key in its bucket; sizes and etags are the inventory's.

    Objects may have been deleted since the inventory was made, so a GET that does not find one is not a failure: its row is
    `rejected` with the reason `gone`.

    Files are fetched one after another into a temporary file and checked by their MD5 before a row of them is used.
    """

    kind = "inventory"
    looks_for = f"{' '.join(sorted(IMAGE_SUFFIXES))} in the inventory"

    def __init__(self, url: str, client: Client = "auto") -> None:
        """`url`: canonical, of a manifest.json.

        Raises:
            UserError: it is not the manifest of an inventory, or not the one that its checksum is of.
            UnavailableError: its store does not answer.
        """
        self.url = url
        self._client: Client = client
        self._digest, manifest = self._read_manifest()
        self.root = f"s3://{manifest.bucket}"
        self.passed_over: Counter[str] = Counter()

    def describe(self) -> dict[str, str]:
        """The URL and the content, whose checksums stand for those of the files."""
        return {"kind": self.kind, "url": self.url, "etag": self._digest}

    def members(self, limit: int | None = None) -> Iterator[pa.RecordBatch]:
        unique = UniqueKeys()
        left = limit
        self.passed_over = Counter()
        for listed in self._listed():
            batch = image_files(listed.objects, self.root, self.passed_over)
            batch = batch.slice(0, left)
            unique.add(batch.column("key").to_pylist())
            if batch.num_rows:
                yield batch
            left = None if left is None else left - batch.num_rows
            if left == 0:
                break
        unique.check(self.url, partial(self._keys, limit), "wait for the next inventory, or list the bucket instead")

    def fetch(self, members: Iterable[Member], concurrency: int) -> Iterator[Sample]:
        # Others may have written the inventory: it may name object stores, as a manifest there.
        for sample in fetch(members, concurrency, self._client, Allowed.of(self.root)):
            if isinstance(sample.body, SampleError) and sample.body.reason is Reason.NOT_FOUND:
                gone = SampleError(Reason.GONE, "deleted since the inventory was made")
                yield Sample(sample.member, gone)
            else:
                yield sample

    def _keys(self, limit: int | None) -> Iterator[tuple[Sequence[str], Callable[[int], str]]]:
        """The keys once more, with names for their rows."""
        left, before = limit, Counter[str]()
        for listed in self._listed():
            keys = image_files(listed.objects, self.root, Counter()).column("key").to_pylist()[:left]
            yield keys, partial(_row_name, listed.file, before[listed.file])
            before[listed.file] += len(keys)
            left = None if left is None else left - len(keys)
            if left == 0:
                return

    def _read_manifest(self) -> tuple[str, _Manifest]:
        """The MD5 of the manifest, and the manifest."""
        root, key = split_uri(self.url)
        store = open_store(root, self._client)
        checksum = f"{key.rpartition('/')[0]}/{CHECKSUM}".lstrip("/")
        try:
            if store.stat(key).size > MOST_MANIFEST_BYTES:
                raise UserError(f"{self.url} is not the manifest of an S3 inventory: it is too large")
            data = store.get(key)
            wanted = store.get(checksum).decode("ascii", "replace").strip().lower()
        except FileNotFoundError as error:
            raise UserError(
                f"{self.url}: its {CHECKSUM} is missing; S3 writes it when an inventory is complete"
            ) from error
        except UnavailableError:
            raise
        except OSError as error:
            raise UserError(f"cannot read {self.url}: {printable(error)}") from error
        digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if digest != wanted:
            raise UserError(
                f"{self.url} has the MD5 {digest}, its {CHECKSUM} says {printable(wanted)[:40]}: copy it again"
            )
        try:
            return digest, _Manifest.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "its content"
            raise UserError(f"{self.url} is not the manifest of an S3 inventory: {place}: {first['msg']}") from error

    def _listed(self) -> Iterator[_Listed]:
        """What each file lists, less objects that are not the latest version of their keys.

        Raises:
            UserError: a file is missing, or not the one that the manifest names, or cannot be read.
        """
        digest, manifest = self._read_manifest()
        if digest != self._digest:
            raise UserError(f"{self.url} has changed since the run began: start it again")
        root, key = split_uri(self.url)
        store = open_store(root, self._client)
        # Where S3 put the inventory, keys are those of the bucket. In a copy, data/ lies beside the folder of the run.
        copied = root != f"s3://{manifest.destination.rpartition(':')[2]}"
        parent = key.rpartition("/")[0].rpartition("/")[0]
        for file in manifest.files:
            name = file.key.rpartition("/")[2]
            at = join(parent, f"data/{name}") if copied and parent else f"data/{name}" if copied else file.key
            url = join(root, at)
            with tempfile.NamedTemporaryFile(prefix="da2ray-inventory-") as copy:
                _copy_checked(store, at, url, file, copy)
                try:
                    for objects in _FORMATS[manifest.format.lower()](copy.name, manifest.columns):
                        yield _Listed(name, _latest(objects, url))
                except (pa.ArrowException, OSError, ValueError, EOFError) as error:
                    raise UserError(f"cannot read {url}: {printable(error)}") from error


def inventory_checksums(keys: pa.Array) -> list[str]:
    """Those of the keys below a folder that are checksums of inventories; S3 writes one when the inventory is complete."""
    return keys.filter(pc.match_substring_regex(keys, _CHECKSUM)).to_pylist()


def newest_manifest(checksums: Sequence[str]) -> str | None:
    """The key of the manifest of the newest inventory, whose folder is named by its time; None if there is none."""
    if not checksums:
        return None
    folder = max(key.rpartition("/")[0] for key in checksums)
    return f"{folder}/{MANIFEST}" if folder else MANIFEST


def _copy_checked(store: Store, key: str, url: str, file: _File, copy: IO[bytes]) -> None:
    """Copy a file of an inventory.

    Raises:
        UserError: it is missing, or its size or MD5 is not that of the manifest.
    """
    digest = hashlib.md5(usedforsecurity=False)
    try:
        size = store.stat(key).size
        if size != file.size:
            raise UserError(f"{url} has {size} bytes, the manifest says {file.size}: wait for the next inventory")
        for offset in range(0, size, BLOCK_BYTES):
            block = store.get_range(key, offset, min(BLOCK_BYTES, size - offset))
            digest.update(block)
            copy.write(block)
    except UnavailableError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {url}: {printable(error)}") from error
    if digest.hexdigest() != file.md5.lower():
        raise UserError(
            f"{url} has the MD5 {digest.hexdigest()}, the manifest says {file.md5}: wait for the next inventory"
        )
    copy.flush()


def _latest(objects: pa.Table, url: str) -> pa.RecordBatch:
    """The objects that a GET of their keys gives, as a listing; a key that ends in a slash and has no bytes is a folder."""
    if objects["key"].null_count:
        raise UserError(f"cannot read {url}: it has a row without a key")
    latest = pc.and_(
        pc.fill_null(objects["is_latest"], fill_value=True),
        pc.invert(pc.fill_null(objects["is_delete_marker"], fill_value=False)),
    )
    folder = pc.and_(pc.ends_with(objects["key"], "/"), pc.fill_null(pc.equal(objects["size"], 0), fill_value=False))
    kept = objects.filter(pc.and_not(latest, folder)).combine_chunks()
    columns = [kept[name].combine_chunks() for name in ("key", "size", "e_tag")]
    return pa.record_batch(columns, names=LIST_SCHEMA.names)


def _csv(path: str, columns: str) -> Iterator[pa.Table]:
    """A CSV file without header, whose columns the manifest names; keys are quoted as in the query of a URL."""
    names = [name.strip().lower() for name in columns.split(",")]
    wanted = {name: name.replace("_", "") if name != "e_tag" else "etag" for name in _TYPES}
    found = {name: spelled for name, spelled in wanted.items() if spelled in names}
    if "key" not in found:
        raise ValueError(f"the manifest names no column Key, but {columns}")
    with pa.input_stream(path, compression="gzip" if _is_gzip(path) else None) as stream:
        reader = pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(column_names=names, block_size=BLOCK_BYTES),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=list(found.values()),
                column_types={spelled: _TYPES[name] for name, spelled in found.items()},
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
        for batch in reader:
            table = pa.table({name: batch.column(spelled) for name, spelled in found.items()})
            quoted = pc.any(pc.match_substring_regex(table["key"], "[%+]")).as_py()
            keys = (
                pa.array([unquote_plus(key, errors="strict") for key in table["key"].to_pylist()]) if quoted else None
            )
            yield _with_all(table if keys is None else table.set_column(0, "key", keys))


def _parquet(path: str, _: str) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as file:
        names = [name for name in _TYPES if name in file.schema_arrow.names]
        for batch in file.iter_batches(ROWS, columns=names):
            yield _with_all(pa.Table.from_batches([batch]))


def _orc(path: str, _: str) -> Iterator[pa.Table]:
    file = pyarrow.orc.ORCFile(path)
    names = [name for name in _TYPES if name in file.schema.names]
    for stripe in range(file.nstripes):
        yield _with_all(pa.table(file.read_stripe(stripe, columns=names)))


def _with_all(table: pa.Table) -> pa.Table:
    """The columns of _TYPES, null where the inventory does not have one."""
    columns = {
        name: table[name].cast(type_) if name in table.column_names else pa.nulls(len(table), type_)
        for name, type_ in _TYPES.items()
    }
    return pa.table(columns)


def _is_gzip(path: str) -> bool:
    with Path(path).open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _row_name(file: str, before: int, place: int) -> str:
    return f"{before + place + 1} of the images in {file}"


_FORMATS: Final[dict[str, Callable[[str, str], Iterator[pa.Table]]]] = {"csv": _csv, "orc": _orc, "parquet": _parquet}
