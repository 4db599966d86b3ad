"""A walk through folders that yields keys in order, however deep the folders lie."""

from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import pyarrow as pa

LINK_LOOPS: Final = "link_loops"
CLOSED_FOLDERS: Final = "closed_folders"
LINKED_FOLDERS: Final = "linked_folders"
UNLISTED: Final = "unlisted"
"""Names of what a listing passes over and counts (`da2ray.sources.base.PASSED_OVER`)."""

Folder = TypeVar("Folder")


def walk(top: Folder, read: Callable[[Folder], Iterator[pa.RecordBatch | Folder]]) -> Iterator[pa.RecordBatch]:
    """The batches below a folder, depth first. It keeps a stack of its own, because Python's ends after 1,000 folders.

    Args:
        top: where the walk begins.
        read: yields the files of a folder as batches, and its folders where they stand among the keys.
    """
    levels = [read(top)]
    while levels:
        for item in levels[-1]:
            if isinstance(item, pa.RecordBatch):
                yield item
            else:
                levels.append(read(item))
                break
        else:
            levels.pop()
