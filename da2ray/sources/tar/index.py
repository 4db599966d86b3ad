"""The index that NVIDIA DALI's `wds2idx` writes beside a tar (`a.idx` for `a.tar`): where the data of its files lie.

Its first line is `v1.2` and the number of samples, and each other line a sample: suffix, offset, size and name of each of its
files. Names are left out before v1.2. Blanks in names make a line ambiguous; such an index is not used.
"""

from typing import Final

_FIELDS: Final = {b"v1.0": 3, b"v1.1": 3, b"v1.2": 4}
"""Fields of a file, by the version."""


def index_name(tar: str) -> str:
    """The key of the index of a tar: its path up to the first dot in its name, which may begin with one."""
    folder, slash, name = tar.rpartition("/")
    return f"{folder}{slash}{name[: name.find('.', 1)]}.idx"


def file_before(index: bytes, begin: int) -> tuple[int, int] | None:
    """Offset and size of the last file whose data begin at or before a byte; None if the index has none, or cannot be read."""
    head, *samples = index.split(b"\n")
    fields = _FIELDS.get(head.partition(b" ")[0])
    if fields is None:
        return None
    found: tuple[int, int] | None = None
    for sample in samples:
        words = sample.split(b" ") if sample else []
        if len(words) % fields:
            return None
        for at in range(0, len(words), fields):
            offset, size = words[at + 1 : at + 3]
            if not (offset.isdigit() and size.isdigit()):
                return None
            if int(offset) <= begin and (found is None or found[0] < int(offset)):
                found = int(offset), int(size)
    return found
