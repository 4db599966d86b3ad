"""The listing of a snapshot: digests of its keys and versions, by which a refresh sees what changed without reading the index.

Keys in order are cut into segments. A segment has the exclusive or of its samples' hashes, so the next snapshot's digests follow
from these and the rows that changed, and a listing of the source can be digested in any order.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from da2ray.labels.stored import intact
from da2ray.storage import Store

SEGMENT_ROWS: Final = 16_384
"""Rows of a segment when it is made; a changed sample costs the comparison of one."""
MOST_ROWS: Final = 8 * SEGMENT_ROWS
"""A segment that has grown beyond this makes the next refresh cut all segments anew."""

_SCHEMA: Final = pa.schema(
    [
        pa.field("last_key", pa.string()),  # of the segment; null for the last one, which has no end
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("low", pa.uint64(), nullable=False),
        pa.field("high", pa.uint64(), nullable=False),
    ]
)
VERSIONS: Final = pa.schema([pa.field("key", pa.string(), nullable=False), pa.field("version", pa.string())])
"""A sample and its version as the source lists it."""

_DIGEST: Final = """
    SELECT coalesce(bounds.segment, {last}) AS segment, count(*) AS rows,
        bit_xor(md5_number_lower(hashed)) AS low, bit_xor(md5_number_upper(hashed)) AS high
    FROM (SELECT key, key || chr(0) || coalesce(version, chr(0)) AS hashed FROM samples) samples
    ASOF LEFT JOIN bounds ON samples.key <= bounds.last_key GROUP BY 1
"""


@dataclass(frozen=True, slots=True)
class Listing:
    """Segments: (last_keys[i - 1], last_keys[i]] each; the last one has no end.

    Attributes:
        last_keys: of all segments but the last.
        rows: int64, one more than `last_keys`.
        digests: uint64 (segments, 2).
    """

    last_keys: tuple[str, ...]
    rows: np.ndarray
    digests: np.ndarray

    @classmethod
    def empty(cls, last_keys: Iterable[str]) -> "Listing":
        keys = tuple(last_keys)
        return cls(keys, np.zeros(len(keys) + 1, np.int64), np.zeros((len(keys) + 1, 2), np.uint64))

    @property
    def is_uneven(self) -> bool:
        """Whether a segment has become so large that segments should be cut anew."""
        return bool((self.rows > MOST_ROWS).any())

    def differing(self, other: "Listing") -> np.ndarray:
        """The numbers of the segments that differ; both listings have the same bounds."""
        return np.flatnonzero((self.rows != other.rows) | (self.digests != other.digests).any(axis=1))

    def changed(self, added: "Listing", removed: "Listing") -> "Listing":
        """The listing with samples added and others removed."""
        digests = self.digests ^ added.digests ^ removed.digests
        return replace(self, rows=self.rows + added.rows - removed.rows, digests=digests)


class Digester:
    """Digests samples by the segments of a listing. A context manager; not for several threads."""

    def __init__(self, last_keys: Iterable[str]) -> None:
        self.found = Listing.empty(last_keys)
        self._connection = duckdb.connect()
        self._connection.execute("SET threads = 2")
        keys = pa.array(self.found.last_keys, pa.string())
        bounds = pa.table({"last_key": keys, "segment": pa.array(np.arange(len(keys)))})
        self._connection.register("given", bounds)
        self._connection.execute("CREATE TABLE bounds AS FROM given")
        self._query = _DIGEST.format(last=len(keys))

    def __enter__(self) -> "Digester":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def add(self, samples: pa.Table | pa.RecordBatch) -> np.ndarray:
        """Take samples (VERSIONS). Returns the numbers of their segments, each once, ascending."""
        self._connection.register("samples", samples)
        found = self._connection.execute(self._query).fetchnumpy()
        self._connection.unregister("samples")
        segments = found["segment"]
        self.found.rows[segments] += found["rows"]
        for column, name in enumerate(("low", "high")):
            self.found.digests[segments, column] ^= found[name]
        return np.sort(segments)


def digest(last_keys: Iterable[str], samples: Iterable[pa.Table]) -> Listing:
    """The listing of these samples (VERSIONS), in segments of these bounds."""
    with Digester(last_keys) as digester:
        for each in samples:
            if len(each):
                digester.add(each)
        return digester.found


def listing_key(digest: str) -> str:
    """The key of the listing of the snapshot whose rows have this digest (`Snapshot.digest`)."""
    return f"listings/{digest}.parquet"


def write_listing(store: Store, digest: str, listing: Listing) -> None:
    """Store the listing of the rows of this digest."""
    table = pa.table(
        [
            pa.array([*listing.last_keys, None], pa.string()),
            pa.array(listing.rows),
            *(pa.array(np.ascontiguousarray(listing.digests[:, column])) for column in (0, 1)),
        ],
        schema=_SCHEMA,
    )
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, compression="zstd", use_dictionary=False, write_statistics=False, write_page_checksum=True
    )
    data = sink.getvalue().to_pybytes()
    if not store.create(listing_key(digest), data):
        store.put(listing_key(digest), data)  # another cut into segments is as good, and a broken one is mended


def read_listing(store: Store, digest: str) -> Listing:
    """The listing of the rows of this digest.

    Raises:
        FileNotFoundError: the dataset has no listing of this digest.
        CorruptError: the object is not a listing.
        OSError: the store failed.
    """
    key = listing_key(digest)
    with intact(store, key, "a listing", "delete it: the next refresh makes it again from the index"):
        table = pq.read_table(pa.BufferReader(store.get(key)), schema=_SCHEMA, page_checksum_verification=True)
        digests = np.stack([table[column].to_numpy() for column in ("low", "high")], axis=1)
        return Listing(tuple(table["last_key"].to_pylist()[:-1]), table["rows"].to_numpy().copy(), digests)
