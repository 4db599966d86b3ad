"""One interface to files and object stores.

    store = open_store("s3://bucket/dataset")
    store.create("commits/0a1b/00000007.parquet", data)

Every error is one of three, and its message names the URL but never a credential: `FileNotFoundError` (no such object, or no
such bucket), `PermissionError` (401, 403, credentials that expired, a file's mode), `StoreError` (everything else). A
`StoreError` that may pass is an `UnavailableError`: no answer, a broken one, a 503. Calls to remote stores are repeated for
DA2RAY_RETRY_SECONDS (default 180) before they raise it. One that waiting cannot mend is a `RejectedError`: another region, a
certificate that is not trusted, an operation that the store lacks. A key that no object can have raises `ValueError`. Usage
that cannot work at all raises `UserError`: a scheme whose package is not installed, an AWS configuration with a mistake, or
obstore in a process that was forked after its first use.
"""

from da2ray.storage.base import LIST_SCHEMA, Fetched, Stat, Store
from da2ray.storage.file import ObjectRanges, StoreFile
from da2ray.storage.open import Client, canonical_url, is_web, join, local_path, open_store, split_uri
from da2ray.storage.redaction import printable, redact, redacted

__all__ = [
    "LIST_SCHEMA",
    "Client",
    "Fetched",
    "ObjectRanges",
    "Stat",
    "Store",
    "StoreFile",
    "canonical_url",
    "is_web",
    "join",
    "local_path",
    "open_store",
    "printable",
    "redact",
    "redacted",
    "split_uri",
]
