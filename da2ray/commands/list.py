"""`da2ray list`: list images once, into a manifest."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import field_validator
from rich.console import Console

from da2ray.commands.options import Command, CommandConfig, option
from da2ray.commands.shared import StorageClient, storage_client_option
from da2ray.console import Ticker, counted
from da2ray.errors import Exit, UnavailableError, UserError
from da2ray.sources.base import no_images, passed_over_text
from da2ray.sources.prefix import PrefixSource
from da2ray.storage import Store, canonical_url, open_store, split_uri

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size", pa.int64()),
        pa.field("etag", pa.string()),
    ]
)
GROUP_ROWS = 131_072
"""Rows of a row group: 10 MB are in memory while it is collected."""


class ListConfig(CommandConfig):
    """List the images below a URL into a manifest, which plans the same samples as the URL without listing it again."""

    url: str = option(..., "a folder or prefix of images", metavar="URL", positional=True)
    output: str = option(..., "the manifest to write, a .parquet file; one that is there is replaced", metavar="URL")
    storage_client: StorageClient = storage_client_option()

    @field_validator("output")
    @classmethod
    def _is_parquet(cls, value: str) -> str:
        if not value.lower().endswith(".parquet"):
            raise ValueError("must end in .parquet")
        return value


def list_images(config: ListConfig, console: Console) -> int:
    """Write the manifest to a local file, and then to its place in one step: a killed command leaves nothing there."""
    source = PrefixSource(canonical_url(config.url), config.storage_client)
    root, name = split_uri(canonical_url(config.output))
    store = open_store(root, config.storage_client)
    _check_output(store, name)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="da2ray-list-") as folder:
        path = Path(folder) / "manifest.parquet"
        ticker = Ticker(Console(stderr=True, highlight=False, soft_wrap=True))
        images = 0
        with pq.ParquetWriter(path, SCHEMA, compression="zstd", write_page_checksum=True) as writer:
            for group in _groups(source.members()):
                writer.write_table(group)
                images += group.num_rows
                ticker.count(f"listing {source.url}", images, "image")
        if not images:
            raise no_images(source)
        store.put_file(name, path)
        console.print(
            f"{config.output}: {counted(images, 'image')}, {counted(path.stat().st_size, 'byte')}, "
            f"listed in {time.monotonic() - began:,.1f} s"
        )
    if passed := passed_over_text(source.passed_over):
        console.print(f"passed over: {passed}")
    return Exit.DONE


def _groups(members: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    pending: list[pa.RecordBatch] = []
    rows = 0
    for batch in members:
        pending.append(batch.select(SCHEMA.names))
        rows += batch.num_rows
        if rows >= GROUP_ROWS:
            yield pa.Table.from_batches(pending).cast(SCHEMA)
            pending, rows = [], 0
    if pending:
        yield pa.Table.from_batches(pending).cast(SCHEMA)


def _check_output(store: Store, name: str) -> None:
    """Check that the output's store answers before a long listing begins.

    Raises:
        UserError: it refuses access, or the bucket does not exist.
    """
    folder = name.rpartition("/")[0]
    try:
        if store.url == "/":
            Path("/", folder).mkdir(parents=True, exist_ok=True)
        else:
            next(iter(store.list(folder)), None)
    except UnavailableError:
        raise
    except OSError as error:
        raise UserError(f"cannot write to {store.url}: {error}\nchoose another --output") from None


COMMAND = Command(ListConfig, list_images)
