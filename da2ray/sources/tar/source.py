"""Images in tars: WebDataset, img2dataset, SA-1B and others.

A shard is a range of bytes of one tar. Planning needs the sizes of the tars alone, so it does not know where members begin, nor
how many there are. A member belongs to the range that its first header starts in. See `walk.py` for how it is found, and
`da2ray.plan.joints` for how every member comes to be in exactly one shard.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Final

import pyarrow as pa

from da2ray.errors import SampleError
from da2ray.parallel import look_ahead
from da2ray.sources.allowed import Allowed
from da2ray.sources.base import SHARDS, Cut, Extent, Member, Place, Sample
from da2ray.sources.fetch import outcome
from da2ray.sources.tar.files import COMPRESSED, TAR_SUFFIXES, Tars
from da2ray.sources.tar.headers import BLOCK, padded
from da2ray.sources.tar.read import SLICE, TarReader, is_broken, version_of
from da2ray.sources.tar.specs import Pick, TarRange, of_range, pack, unpack
from da2ray.storage import Client

GUESS_BYTES: Final = 128 << 10
"""Bytes of a tar for an image, with what stands beside it. It decides estimates only. Shards of SA-1B have 980 kB an image, those
of img2dataset at 256 pixels 20 kB."""
STAT_THREADS: Final = 16
BATCH: Final = 1024


class TarSource:
    """The images of tars. A key is the tar's key and the name of the member: `000/a.tar/0001.jpg`.

    If a tar has a name twice, the first member has that key, and each later one has `@` and the offset of its first header
    appended. A place at which a tar is broken is a sample too; if no image has its name, its key is `TAR/@OFFSET`.
    """

    kind = "tar"
    looks_for = f"images in {' '.join(TAR_SUFFIXES)}"

    def __init__(self, tars: Tars, client: Client = "auto", allowed: Allowed | None = None) -> None:
        """`allowed`: what may be read, if others wrote the URIs."""
        self._tars = tars
        self._client: Client = client
        self._allowed = allowed
        self.url = tars.location
        self.root = tars.root

    @property
    def passed_over(self) -> Mapping[str, int]:
        return self._tars.passed_over

    def describe(self) -> dict[str, str]:
        return self._tars.describe()

    def shards(self, cut: Cut) -> Iterator[pa.RecordBatch]:
        """See `Source.shards`. Without a limit counts are estimates. With one, headers are walked and counts are exact."""
        rows = self._estimated(cut) if cut.limit is None else self._counted(cut, cut.limit)
        size = BATCH if cut.limit is None else 1
        while batch := list(islice(rows, size)):
            yield pa.RecordBatch.from_pylist(batch, schema=SHARDS)

    def read(self, spec: bytes, *, concurrency: int, skip: int = 0) -> Iterator[Sample | Extent]:
        """See `Source.read`. Memory: `concurrency` chunks of 4 MiB, at most eight, and the sample that is yielded."""
        given = unpack(spec)
        reader = TarReader(self._client, self._allowed, concurrency)
        if isinstance(given, TarRange):
            return reader.range(given, skip)
        return islice(reader.picks(given), skip, None)

    def member(self, spec: bytes, row: int) -> Member | None:
        """See `Source.member`: None for ranges."""
        given = unpack(spec)
        if isinstance(given, TarRange) or any(pick.on or pick.key is None for pick in given[: row + 1]):
            return None
        if row >= len(given):
            return None
        pick = given[row]
        return Member(str(pick.key), pick.of.uri, None, pick.of.etag, None, pick.offset, pick.length)

    def select(self, places: Iterable[tuple[bytes, Sequence[Place]]]) -> bytes:
        """See `Source.select`."""
        return pack([_pick(unpack(spec), place) for spec, here in places for place in here])

    def begin_at(self, spec: bytes, start: int | None, given: Mapping[str, str], repeated: Iterable[str]) -> bytes:
        """See `Ranged.begin_at`."""
        part = of_range(spec)
        names = tuple(sorted({*part.repeated, *repeated}))
        return pack(dataclasses.replace(part, start=start, given=dict(given), repeated=names))

    def version(self, spec: bytes) -> str:
        """See `Ranged.version`."""
        try:
            return version_of(TarReader(self._client, self._allowed, 1).stat(of_range(spec).uri))
        except SampleError as error:
            raise OSError(error.message) from error

    def _listed(self) -> Iterator[Member]:
        """The tars with their sizes; those of a tar that cannot be found are unknown."""
        return look_ahead(
            partial(_sized, TarReader(self._client, self._allowed, 1)), self._tars.tars(), STAT_THREADS, "tars"
        )

    def _estimated(self, cut: Cut) -> Iterator[dict[str, object]]:
        for tar in self._listed():
            for part in _ranges(tar, cut.shard_bytes, self._tars.index_of(tar)):
                size = _bytes(part)
                guess = 1 if size is None else max(1, size // GUESS_BYTES)
                yield {"samples": guess, "exact": False, "bytes": size, "spec": pack(part)}

    def _counted(self, cut: Cut, limit: int) -> Iterator[dict[str, object]]:
        """The shards of the first `limit` samples. Ranges without samples are left out."""
        left = limit
        for tar in self._listed():
            for found in TarReader(self._client, self._allowed, 1).count(list(_ranges(tar, cut.shard_bytes)), left):
                if found.samples:
                    left -= found.samples
                    most = None if left else found.samples
                    spec = dataclasses.replace(found.part, start=found.start, given=found.given, most=most)
                    yield {"samples": found.samples, "exact": True, "bytes": _bytes(found.part), "spec": pack(spec)}
            if not left:
                return


def _sized(reader: TarReader, tar: Member) -> Member:
    if tar.size is not None:
        return tar
    stat = outcome(partial(reader.stat, tar.uri))
    return tar if isinstance(stat, SampleError) else dataclasses.replace(tar, size=stat.size, etag=stat.etag)


def _ranges(tar: Member, shard_bytes: int, index: str | None = None) -> Iterator[TarRange]:
    """A tar as ranges of at most `shard_bytes`, which differ by a block at most."""
    if tar.key.lower().endswith(COMPRESSED):
        shard_bytes = max(shard_bytes, SLICE)
    size = tar.size or 0
    count = max(1, -(-size // max(BLOCK, shard_bytes)))
    length = padded(-(-size // count))
    for begin in range(0, max(1, size), max(BLOCK, length)):
        stop = begin + length
        yield TarRange(
            *(tar.key, tar.uri, tar.size, tar.etag, begin, stop if stop < size else None),
            index=index if begin else None,
        )


def _bytes(part: TarRange) -> int | None:
    if part.size is None:
        return None
    return (part.size if part.stop is None else part.stop) - part.begin


def _pick(given: TarRange | list[Pick], place: Place) -> Pick:
    known = place.member
    if isinstance(given, list):
        # A row that was read on from a broken place has no pick of its own.
        of = given[place.row] if place.row < len(given) else given[-1]
        row, part = of.row, of.of
    else:
        row, part = place.row, given
    if known is None:
        return Pick(part, row)
    return Pick(part, row, known.key, known.image_offset, known.image_length, is_broken(known.key))
