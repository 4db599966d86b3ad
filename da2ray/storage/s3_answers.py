"""Reading S3's answers to a listing: 7 microseconds of CPU a key instead of the 72 of botocore's parser.

botocore hands a hook the body before it parses it. The hook leaves it a body without keys.
"""

from dataclasses import dataclass
from typing import Any, Final
from xml.etree import ElementTree as ET

from botocore.compat import unquote_str  # type: ignore[import-untyped]

from da2ray.storage.base import unquoted

ANSWER: Final = "Da2rayAnswer"
"""The name under which the answer stands in what botocore returns."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The keys of an answer with their sizes and etags, and the token that asks for the next one; None at the end."""

    keys: list[str]
    sizes: list[int]
    etags: list[str | None]
    token: str | None


def read_answer(body: bytes) -> Answer | None:
    """The content of a ListBucketResult; None if the body is anything else, which botocore may judge."""
    try:
        root = ET.fromstring(body)  # noqa: S314 - expat resolves no external entity and limits the others
    except ET.ParseError:
        return None
    space, _, tag = root.tag.rpartition("}")
    if tag != "ListBucketResult":
        return None
    space = f"{space}}}" if space else ""
    names = (f"{space}Key", f"{space}Size", f"{space}ETag")
    try:
        found = [tuple(map(each.findtext, names)) for each in root.iterfind(f"{space}Contents")]
        keys, sizes = [key or "" for key, _, _ in found], [int(size or "") for _, size, _ in found]
    except ValueError:
        return None
    if root.findtext(f"{space}EncodingType") == "url":
        keys = [unquote_str(key) if "%" in key or "+" in key else key for key in keys]
    more = root.findtext(f"{space}IsTruncated") == "true"
    token = root.findtext(f"{space}NextContinuationToken") if more else None
    return None if more and not token else Answer(keys, sizes, [unquoted(etag) for _, _, etag in found], token)


def before_parse(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: object) -> None:
    """A hook for botocore's event `before-parse.s3.ListObjectsV2`."""
    if response_dict["status_code"] == 200 and (answer := read_answer(response_dict["body"])) is not None:
        customized_response_dict[ANSWER] = answer
        response_dict["body"] = b"<ListBucketResult/>"
