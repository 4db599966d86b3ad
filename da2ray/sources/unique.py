"""Keys that others chose name their samples only if no two are equal."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from da2ray.errors import UserError
from da2ray.sources.allowed import NAME_CHARS
from da2ray.storage import printable


class UniqueKeys:
    """Finds repeated keys in 8 bytes a key instead of the key: 62 million keys cost 0.5 GB while they are read.

    Equal hashes are told from equal keys by reading the keys again, which only happens if there are some.
    """

    def __init__(self) -> None:
        self._hashes: list[np.ndarray] = []

    def add(self, keys: Sequence[str]) -> None:
        self._hashes.append(_hashes(keys))

    def check(
        self, url: str, again: Callable[[], Iterator[tuple[Sequence[str], Callable[[int], str]]]], remedy: str
    ) -> None:
        """Check that no key was added twice.

        Args:
            url: of the source, for the message.
            again: gives the same keys again in batches, each with a function that names the row of a key by its place.
            remedy: what the user may change.

        Raises:
            UserError: one was; the message names the first two rows.
        """
        every = np.concatenate([np.empty(0, np.int64), *self._hashes])
        self._hashes = []
        every.sort()
        repeated = np.unique(every[1:][every[1:] == every[:-1]])
        if not repeated.size:
            return
        del every
        first_rows: dict[str, str] = {}
        for keys, name_of in again():
            for place in np.flatnonzero(np.isin(_hashes(keys), repeated)).tolist():
                here = name_of(place)
                first = first_rows.setdefault(keys[place], here)
                if first != here:
                    key = printable(keys[place], NAME_CHARS)
                    raise UserError(
                        f"{url}: rows {first} and {here} have the same key '{key}'; keys must be unique ({remedy})"
                    )


def _hashes(keys: Sequence[str]) -> np.ndarray:
    return np.fromiter(map(hash, keys), np.int64, len(keys))
