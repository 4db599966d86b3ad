"""Which column of a Parquet file holds images, by its type and name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow.parquet as pq

from da2ray.errors import UserError
from da2ray.sources.table import same_name
from da2ray.storage import printable

IMAGE_COLUMNS: Final = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "content")
"""The first of these that a file has as a column of bytes, or as a struct with `bytes`, holds the images."""
KEY_COLUMN: Final = "key"
NO_COLUMN: Final = "none"
"""The word of `--key-column` for no column."""

_SHOWN: Final = 12
_SHOWN_CHARS: Final = 200


@dataclass(frozen=True, slots=True)
class ImageColumns:
    """Where a file has its images. Paths are dotted.

    Attributes:
        image: path of the column of bytes.
        path: path of the column that says where an image without bytes lies; None without one.
        key: name of the column of keys; None without one.
        status: name of the column that says which rows are images; None without one.
    """

    image: str
    path: str | None = None
    key: str | None = None
    status: str | None = None


def find_columns(
    schema: pq.ParquetSchema, url: str, image: str | None, key: str | None, uris: Sequence[str]
) -> ImageColumns | None:
    """The columns of a file of images; None if it holds no image bytes, so that it can only be a manifest.

    Args:
        url: of the file, for messages.
        image: `--image-column`: the name or the dotted path of a column; None to find one.
        key: `--key-column`: the name of a column, NO_COLUMN for none, or None for KEY_COLUMN if there is one.
        uris: names of columns of URIs. A file that has one of them, and no column of bytes with a usual name, is a manifest.

    Raises:
        UserError: the file has no column of these names, the column cannot be read, or several may hold the images.
    """
    leaves = [schema.column(number) for number in range(len(schema.names))]
    found = _image_leaf(leaves, url, image, uris)
    if found is None:
        return None
    if found.max_repetition_level:
        raise UserError(f"{url}: the column {_name_of(found.path)} holds lists; one image a row can be read")
    parent = found.path.rpartition(".")[0]
    siblings = {leaf.path: leaf for leaf in leaves if parent and leaf.path.rpartition(".")[0] == parent}
    path = siblings.get(f"{parent}.path") if found.path == f"{parent}.bytes" else None
    names = {leaf.path: leaf for leaf in leaves}
    # img2dataset writes rows for failed downloads, too.
    downloads = "status" in names and "error_message" in names
    return ImageColumns(
        found.path,
        path.path if path is not None and path.physical_type == "BYTE_ARRAY" else None,
        _key_name(leaves, url, key),
        "status" if downloads else None,
    )


def _image_leaf(leaves: Sequence[Any], url: str, image: str | None, uris: Sequence[str]) -> Any:
    """The column of bytes; None if there is none, or if the named column is text, as a manifest's is."""
    candidates = [leaf for leaf in leaves if is_bytes(leaf)]
    if image is not None:
        named = [leaf for leaf in leaves if image in (leaf.path, _name_of(leaf.path))]
        named = named or [leaf for leaf in leaves if same_name(_name_of(leaf.path), image)]
        if not named:
            raise UserError(f"{url} has no column {printable(image)} (--image-column); {_columns(leaves)}")
        of_bytes = [leaf for leaf in named if is_bytes(leaf)]
        # A struct of URIs has no name that a manifest could be read by.
        if not of_bytes and not any("." not in leaf.path for leaf in named):
            raise UserError(f"{url}: the column {printable(image)} holds no image bytes (--image-column)")
        return _one(of_bytes, url) if of_bytes else None
    for wanted in IMAGE_COLUMNS:
        usual = [leaf for leaf in candidates if same_name(_name_of(leaf.path), wanted)]
        if usual:
            return _one(usual, url)
    if not candidates or any(same_name(leaf.path, name) for leaf in leaves for name in uris):
        return None
    return _one(candidates, url)


def _one(candidates: Sequence[Any], url: str) -> Any:
    if len(candidates) > 1:
        names = ", ".join(printable(_name_of(leaf.path)) for leaf in candidates[:_SHOWN])
        raise UserError(f"{url} has several columns that may hold images ({names}): choose one with --image-column")
    return candidates[0]


def _key_name(leaves: Sequence[Any], url: str, key: str | None) -> str | None:
    if key == NO_COLUMN:
        return None
    if any(same_name(leaf.path, key or KEY_COLUMN) for leaf in leaves):
        return key or KEY_COLUMN
    if key is not None:
        raise UserError(f"{url} has no column {printable(key)} (--key-column); {_columns(leaves)}")
    return None


def is_bytes(leaf: Any) -> bool:
    """Whether a column of a Parquet schema has byte arrays that are not marked as text or anything else."""
    return leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type == "NONE" and leaf.converted_type == "NONE"


def _name_of(path: str) -> str:
    """The name of the column that a leaf belongs to: `image` for `image.bytes` and `image.list.element.bytes`."""
    name = path.removesuffix(".bytes")
    for wrapper in (".list.element", ".list.item", ".array"):
        name = name.removesuffix(wrapper)
    return name


def _columns(leaves: Sequence[Any]) -> str:
    shown = ", ".join(leaf.path for leaf in leaves[:_SHOWN])
    return f"its columns are {printable(shown, _SHOWN_CHARS)}"
