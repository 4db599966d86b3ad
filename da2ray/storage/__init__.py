"""One interface to files and object stores.

    store = open_store("s3://bucket/dataset")
    store.create("commits/0a1b/00000007.parquet", data)

Every error is one of three, and its message names the URL but never a credential: `FileNotFoundError` (no such object, or no
such bucket), `PermissionError` (401, 403, a file's mode), `StoreError` (everything else: out of space, a short body, another
region). A `StoreError` that may pass is an `UnavailableError`: no answer, a broken one, a 503. Calls to remote stores are
repeated for DA2RAY_RETRY_SECONDS (default 180) before they raise it. A key that no object can have raises `ValueError`. Usage
that cannot work at all, such as a scheme whose package is not installed, raises `UserError`.
"""

from da2ray.storage.base import LIST_SCHEMA, Stat, Store
from da2ray.storage.file import StoreFile
from da2ray.storage.open import Client, canonical_url, is_web, join, local_path, open_store, split_uri
from da2ray.storage.redaction import printable, redact, redacted

__all__ = [
    "LIST_SCHEMA",
    "Client",
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
