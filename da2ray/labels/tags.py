"""Tags: names of snapshots. `da2ray gc --keep` removes no snapshot that has one.

A tag is `tags/<name>.json`; it may be moved to another snapshot.
"""

import re
from typing import Final

from da2ray.errors import UserError
from da2ray.labels.schema import FORMAT_VERSION
from da2ray.labels.snapshots import open_snapshot
from da2ray.labels.stored import Stored, intact, read_versioned
from da2ray.storage import Store

_NAME: Final = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,100}")
_KEY: Final = re.compile(r"tags/((?!\.)[A-Za-z0-9._-]{1,100})\.json")
_REMEDY: Final = "set the tag again with `da2ray tag`, or delete it"


class Tag(Stored):
    """The content of `tags/<name>.json`: the number of its snapshot."""

    format_version: int = FORMAT_VERSION
    name: str
    snapshot: int


def write_tag(store: Store, name: str, snapshot: int | None) -> Tag:
    """Give a snapshot a name, or move the name to it. `snapshot`: None for the newest.

    Raises:
        UserError: the name is not allowed, or the snapshot does not exist.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"a tag has up to 100 characters of A-Z a-z 0-9 . _ - and no dot in front; got {name!r}: choose another name"
        )
    tag = Tag(name=name, snapshot=open_snapshot(store, snapshot).number)
    store.put(f"tags/{name}.json", f"{tag.model_dump_json(indent=1)}\n".encode())
    return tag


def list_tags(store: Store) -> list[Tag]:
    """All tags, by name. Other files in the folder are not ours.

    Raises:
        CorruptError: a tag cannot be read.
    """
    keys = [key for batch in store.list("tags") for key in batch["key"].to_pylist()]
    return [_read(store, named[1]) for key in sorted(keys) if (named := _KEY.fullmatch(key))]


def _read(store: Store, name: str) -> Tag:
    key = f"tags/{name}.json"
    tag = read_versioned(store, key, Tag, "a tag", _REMEDY)
    with intact(store, key, "a tag", _REMEDY):
        if tag.name != name:
            raise ValueError(f"its name is {tag.name}")
    return tag
