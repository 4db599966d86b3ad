"""S3 through s3fs, by bucket and key: `da2ray.storage.s3` says why."""

from collections.abc import Iterator
from typing import Any

import fsspec.asyn
import pyarrow as pa
import pyarrow.compute as pc

from da2ray.errors import StoreError
from da2ray.storage import base
from da2ray.storage.base import Fetched, Stat, check_length, listing, unquoted
from da2ray.storage.fsspec import LIST_TIMEOUT_S, FsspecStore, _run
from da2ray.storage.pages import Page, list_pages
from da2ray.storage.s3_answers import ANSWER, Answer, before_parse


class S3FsspecStore(FsspecStore):
    """S3 through s3fs. A key with `..` may be read, but it cannot lead out of the store's URL."""

    def __init__(self, url: str, retry_s: float | None = None) -> None:
        """See `FsspecStore`."""
        super().__init__(url, retry_s)
        self._bucket, _, self._folder = url.partition("://")[2].partition("/")

    def __reduce__(self) -> "tuple[type[S3FsspecStore], tuple[str, float]]":
        return S3FsspecStore, (self.url, self._retry_s)

    def fetch(self, key: str) -> Fetched:
        return self._call(key, lambda fs, _: self._body(fs, key))

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        if length == 0:
            return b""
        data, _ = self._call(key, lambda fs, _: self._body(fs, key, Range=f"bytes={offset}-{offset + length - 1}"))
        return check_length(self._uri(key), data, length)

    def stat(self, key: str) -> Stat:
        head = self._call(key, lambda fs, _: self._request(fs, "head_object", base.STAT_TIMEOUT_S, Key=self._name(key)))
        return Stat(head["ContentLength"], unquoted(head.get("ETag")), head.get("LastModified"))

    def list(self, prefix: str = "") -> Iterator[pa.RecordBatch]:
        """See `Store.list`. Keys are as S3 has them, except folder markers (`a/` of 0 bytes), which are left out."""
        top = "/".join(part for part in (self._folder, prefix.strip("/")) if part)
        below = f"{top}/" if top else ""
        start = len(self._name(""))

        def ask(after: str | None, token: str | None) -> Page:
            chosen = {"Prefix": below, "StartAfter": after, "ContinuationToken": token}
            arguments = {name: value for name, value in chosen.items() if value}
            found = self._call(prefix, lambda fs, _: self._request(fs, "list_objects_v2", LIST_TIMEOUT_S, **arguments))
            answer: Answer | None = found.get(ANSWER)
            if answer is None:
                raise StoreError(f"{self._uri(prefix)}: what the server answers is not a listing")
            return Page(answer.keys, _rows(answer, start), answer.token)

        for rows in list_pages(ask, below):
            # The markers of folders, and of the folder that is listed.
            marker = pc.and_(pc.equal(rows["size"], 0), pc.match_substring_regex(rows["key"], "(^|/)$"))
            kept = rows.filter(pc.invert(pc.or_(marker, pc.equal(rows["key"], ""))))
            if kept.num_rows:
                yield kept

    def _make(self) -> tuple[Any, str]:
        fs, path = super()._make()
        # First, so that botocore does not parse the keys to look for an error among them.
        fs.session.get_component("event_emitter").register_first(
            "before-parse.s3.ListObjectsV2", before_parse, unique_id=ANSWER
        )
        return fs, path

    def _delete(self, key: str) -> None:
        self._call(key, lambda fs, _: self._request(fs, "delete_object", base.STAT_TIMEOUT_S, Key=self._name(key)))

    def _check(self, key: str) -> None:
        depth = 0
        for part in key.split("/"):
            depth += (part not in {"", "."}) - 2 * (part == "..")
            if depth < 0 or "\0" in part:
                raise ValueError(f"not a key: {key!r}")

    def _name(self, key: str) -> str:
        """The key in its bucket."""
        return f"{self._folder}/{key}" if self._folder else key

    def _request(self, fs: Any, method: str, timeout_s: float, **arguments: Any) -> Any:
        return _run(fs, "call_s3", method, timeout_s=timeout_s, Bucket=self._bucket, **arguments)

    def _body(self, fs: Any, key: str, **arguments: Any) -> Fetched:
        try:
            data, declared, etag = fsspec.asyn.sync(
                fs.loop,
                _read,
                fs,
                Bucket=self._bucket,
                Key=self._name(key),
                timeout=base.REQUEST_TIMEOUT_S,
                **arguments,
            )
        except fsspec.asyn.FSTimeoutError:
            raise TimeoutError("no answer in time") from None
        return Fetched(check_length(self._uri(key), data, declared), unquoted(etag))


def _rows(answer: Answer, start: int) -> pa.RecordBatch:
    """The keys of an answer from the character `start` on, with sizes and etags."""
    return listing([key[start:] for key in answer.keys], answer.sizes, answer.etags)


async def _read(fs: Any, **arguments: Any) -> tuple[bytes, int, str | None]:
    """The body, the length that the answer declares, and its etag."""
    answer = await fs._call_s3("get_object", **arguments)
    async with answer["Body"] as body:
        return await body.read(), answer["ContentLength"], answer.get("ETag")
