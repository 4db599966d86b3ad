"""Read members of tars as samples: those of a range, or single ones."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Final

from da2ray.errors import Reason, SampleError
from da2ray.parallel import look_ahead
from da2ray.sources.allowed import Allowed, must_be_regular
from da2ray.sources.base import Extent, Member, Sample
from da2ray.sources.fetch import MOST_BYTES, Stores, outcome
from da2ray.sources.prefix import IMAGE, is_hidden
from da2ray.sources.tar import headers
from da2ray.sources.tar.bytes import CHUNK, ArchiveBytes, Ranges, Unpacked, is_compressed
from da2ray.sources.tar.index import file_before
from da2ray.sources.tar.specs import Pick, TarRange
from da2ray.sources.tar.walk import NO_END, Break, Entry, Walk
from da2ray.storage import Client, Stat, split_uri

SLICE: Final = 1 << 30
"""Unpacked bytes of a compressed tar that one task reads. It unpacks what comes before them too, so a tar of 11 GB (a shard of
SA-1B) is unpacked six times over, and a task holds the files of one slice at most, as its block does."""
HEADERS_CHUNK: Final = 256 << 10
"""Bytes of one GET where just headers are wanted."""
LINK: Final = "a hard link to"
_BROKEN: Final = re.compile(r"/@[0-9]+$")


@dataclasses.dataclass(frozen=True, slots=True)
class OpenTar:
    """A tar that can be read. `packed`: its first bytes, if they are those of gzip or zstd; else empty."""

    get: Callable[[int, int], bytes]
    stat: Stat
    packed: bytes

    @property
    def version(self) -> str:
        return version_of(self.stat)

    def bytes(self, start: int = 0, stop: int = NO_END, ahead: int = 0, chunk: int = CHUNK) -> ArchiveBytes:
        """Its bytes from `start`, fetched ahead up to `stop`; for a compressed tar the whole stream."""
        if not self.packed:
            return Ranges(self.get, self.stat.size, start, stop, ahead, chunk)
        return Unpacked(Ranges(self.get, self.stat.size, 0, NO_END, ahead), self.stat.size, self.packed)


@dataclasses.dataclass(slots=True)
class Counted:
    """A range, where its first header starts (None if not known), what it must be `given`, and how many samples it has."""

    part: TarRange
    start: int | None = None
    given: dict[str, str] = dataclasses.field(default_factory=dict)
    samples: int = 0


def version_of(stat: Stat) -> str:
    return stat.etag or str(stat.size)


class TarReader:
    """Reads what specifications name. Threads may share it."""

    def __init__(self, client: Client, allowed: Allowed | None, concurrency: int) -> None:
        self._stores = Stores(client, allowed)
        self._allowed = allowed
        self._concurrency = concurrency

    def open(self, uri: str) -> OpenTar:
        """Open a tar, with a request for its size and one for its first bytes.

        Raises:
            SampleError: it may not be read, or is empty.
            OSError, UserError: as for `Stores.read_part`.
        """
        stat = self.stat(uri)
        root, key = split_uri(uri)
        if not stat.size:
            raise SampleError(Reason.EMPTY, "0 bytes")

        def get(offset: int, length: int) -> bytes:
            return self._stores.read_part(root, key, lambda store: store.get_range(key, offset, length))

        magic = get(0, min(4, stat.size))
        return OpenTar(get, stat, magic if is_compressed(magic) else b"")

    def stat(self, uri: str) -> Stat:
        """The size and the version of a tar as it is now.

        Raises:
            SampleError, OSError, UserError: as for `open`.
        """
        if self._allowed:
            self._allowed.check(uri)
        root, key = split_uri(uri)
        if root == "/":
            must_be_regular(f"/{key}")
        return self._stores.read_part(root, key, lambda store: store.stat(key))

    def picks(self, picks: Iterable[Pick]) -> Iterator[Sample]:
        """Members by themselves, in order."""
        found = look_ahead(
            lambda pick: list(self._pick(pick)),
            picks,
            self._concurrency,
            "da2ray-tar",
            ahead=self._concurrency - 1,
            wait=False,
        )
        for samples in found:
            yield from samples

    def range(self, given: TarRange, skip: int = 0) -> Iterator[Sample | Extent]:
        """The members of a range that are images, and then its extent."""
        tar = outcome(partial(self.open, given.uri))
        if isinstance(tar, SampleError):
            if not skip:
                yield _unread(given, given.begin, tar)
            return
        if given.index is not None and given.start is None and not tar.packed:
            start = outcome(partial(self._start, given, given.index, tar))
            given = dataclasses.replace(given, start=None if isinstance(start, SampleError) else start)
        reading = _RangeReading(given, tar, self._concurrency - 1)
        try:
            yield from reading.samples(skip)
        finally:
            reading.close()
        if (extent := reading.extent()) is not None:
            yield extent

    def count(self, parts: Sequence[TarRange], limit: int) -> list[Counted]:
        """Count the samples of each range of a tar, which `parts` lists in order, by its headers, and stop at `limit`."""
        tar = outcome(partial(self.open, parts[0].uri))
        if isinstance(tar, SampleError):
            return [Counted(parts[0], samples=1)]
        owned = [(part, *own) for part in parts if (own := _own(part, tar))[0] is not None]
        counted = [Counted(owned[0][0])]
        reading = _RangeReading(dataclasses.replace(parts[0], stop=None), tar, 0, HEADERS_CHUNK)
        before: dict[str, str] = {}
        try:
            for first, key, carried in reading.places():
                while first >= owned[len(counted) - 1][2]:
                    counted.append(Counted(owned[len(counted)][0]))
                here = counted[-1]
                if here.start is None and not tar.packed:
                    here.start, here.given = first, before
                here.samples += key is not None
                before = carried
                if sum(each.samples for each in counted) == limit:
                    break
        finally:
            reading.close()
        return counted

    def _start(self, given: TarRange, index: str, tar: OpenTar) -> int | None:
        """Where the first header of a range starts by the index of its tar; None if the index cannot tell.

        The index is a hint. Where it says that a file lies, there must be a header of the file's size. Whether it is one of this
        tar, and not of one within it, shows when the shards are compared, as without an index.
        """
        root, key = split_uri(index)
        data = outcome(lambda: self._stores.read_part(root, key, lambda store: store.get(key)))
        before = None if isinstance(data, SampleError) else file_before(data, given.begin)
        if before is None or not headers.BLOCK <= before[0] <= tar.stat.size:
            return None
        offset, size = before
        header = headers.parse(tar.get(offset - headers.BLOCK, headers.BLOCK))
        if header is None or header.size != size:
            return None
        # Files that the index leaves out may follow.
        after = offset + headers.padded(size)
        walk = Walk(tar.bytes(after, given.begin, chunk=HEADERS_CHUNK), after, given.begin, after)
        whole = all(isinstance(each, Entry) for each in walk)
        walk.data.close()
        return walk.end if whole else None

    def _pick(self, pick: Pick) -> Iterator[Sample]:
        given = pick.of
        if pick.key is None or pick.offset is None or pick.length is None:
            samples = (each for each in self.range(given, pick.row) if isinstance(each, Sample))
            yield from samples if pick.on else islice(samples, 1)
            return
        member = Member(pick.key, given.uri, None, given.etag, None, pick.offset, pick.length)
        tar = outcome(partial(self.open, given.uri))
        if isinstance(tar, SampleError):
            yield Sample(member, tar)
            return
        yield Sample(member, outcome(partial(_whole, pick, tar)), tar.stat.etag)


def is_broken(key: str) -> bool:
    """Whether a key stands for a place at which an archive is broken."""
    return bool(_BROKEN.search(key))


class _RangeReading:
    """One reading of a range."""

    def __init__(self, given: TarRange, tar: OpenTar, ahead: int, chunk: int = CHUNK) -> None:
        self._given = given
        self._tar = tar
        self._from, stop = _own(given, tar)
        start = given.start if not tar.packed else 0
        if start is None and not given.begin:
            start = 0
        begin = 0 if tar.packed else given.begin
        self._data = tar.bytes(begin if start is None else start, stop, ahead, chunk)
        self._walk = Walk(self._data, begin, stop, start, dict(given.given))
        self._keys = set(given.repeated)
        self._files: dict[bytes, tuple[int, int]] = {}
        self._earlier: dict[bytes, tuple[int, int]] | None = None
        self._failed = False

    def close(self) -> None:
        self._data.close()

    def extent(self) -> Extent | None:
        """The extent, once all samples were read; None for a compressed tar, which is always read from its beginning."""
        given, walk = self._given, self._walk
        if self._tar.packed:
            return None
        first = walk.at if self._failed and walk.first is None else walk.first
        return Extent(
            *(given.key, self._tar.version, given.begin, given.stop, walk.quiet, first, walk.end),
            given.given,
            walk.carried,
        )

    def places(self) -> Iterator[tuple[int, str | None, dict[str, str]]]:
        """Where the first header of each member starts, its key if it is a sample, and what later members must be given."""
        found = iter(self._walk)
        while (each := outcome(partial(next, found, None))) is not None:
            if isinstance(each, SampleError):
                yield self._walk.at, "", {}
                return
            yield _first(each), self._key_of(each), dict(self._walk.carried)

    def samples(self, skip: int) -> Iterator[Sample]:
        row = 0
        found = iter(self._walk)
        while self._from is not None:
            if row == self._given.most:
                return
            each = outcome(partial(next, found, None))
            if each is None:
                return
            if isinstance(each, SampleError):
                self._failed = True
                yield _unread(self._given, self._walk.at, each)
                return
            key = self._key_of(each)
            if key is None or _first(each) < self._from:
                continue
            if row >= skip:
                yield self._sample(key, each)
            row += 1

    def _key_of(self, found: Entry | Break) -> str | None:
        """The key of the sample that a member is; None if it is not one."""
        if isinstance(found, Entry) and found.type in "07" and not found.sparse:
            self._files[found.name] = found.data, found.size
        key = None if found.name is None else image_key(self._given.key, found.name)
        if isinstance(found, Break):
            return f"{self._given.key}/@{found.at}" if key is None else self._unique(key, found.at)
        return self._unique(key, found.first) if key is not None and found.is_file else None

    def _unique(self, key: str, first: int) -> str:
        if key in self._keys:
            return f"{key}@{first}"
        self._keys.add(key)
        return key

    def _sample(self, key: str, found: Entry | Break) -> Sample:
        if isinstance(found, Break):
            where = (found.data, found.size) if found.name is not None else None
            return Sample(self._member(key, where), SampleError(found.reason, found.message))
        if found.sparse:
            message = "a sparse file, whose bytes do not lie together in the tar: store it without holes"
            return Sample(self._member(key), SampleError(Reason.UNREADABLE, message))
        if found.type == headers.HARD_LINK:
            target = outcome(partial(self._target, found))
            if isinstance(target, SampleError):
                return Sample(self._member(key), target)
            where, body = target
        else:
            where = found.data, found.size
            body = outcome(partial(_take, self._data, *where))
        etag = None if isinstance(body, SampleError) else self._tar.stat.etag
        return Sample(self._member(key, where), body, etag)

    def _member(self, key: str, where: tuple[int, int] | None = None) -> Member:
        offset, length = (None, None) if where is None or self._tar.packed else where
        return Member(key, self._given.uri, None, self._given.etag, None, offset, length)

    def _target(self, found: Entry) -> tuple[tuple[int, int], bytes | SampleError]:
        """The place and the bytes of the file that a hard link points to: the last of this name before it.

        Raises:
            SampleError: there is no such file.
            OSError, UserError: as for `TarReader.open`.
        """
        where = self._files.get(found.link)
        if where is None and not self._tar.packed:
            if self._earlier is None:
                self._earlier = _files_before(self._tar, self._given.begin)
            where = self._earlier.get(found.link)
        if where is None:
            raise SampleError(
                Reason.NOT_FOUND, f"{LINK} {headers.text(found.link)!r}, which is not before it in the tar"
            )
        data = self._tar.bytes(where[0], where[0])
        try:
            return where, outcome(partial(_take, data, *where))
        finally:
            data.close()


def _first(found: Entry | Break) -> int:
    return found.at if isinstance(found, Break) else found.first


def image_key(tar: str, name: bytes) -> str | None:
    """The key of a member by its name; None if it is not an image that is read."""
    text = headers.text(name)
    return f"{tar}/{text}" if re.search(IMAGE, text) and not is_hidden(text) else None


def _own(given: TarRange, tar: OpenTar) -> tuple[int | None, int]:
    """The range of first headers whose members a specification reads; (None, 0) if it reads none.

    A compressed tar is cut into slices of its stream. The range of the file in which a multiple of SLICE lies reads the slice
    from there on, and the last such range all that is left.
    """
    stop = NO_END if given.stop is None else given.stop
    if not tar.packed:
        return given.begin, stop
    first, after = (-(-at // SLICE) * SLICE for at in (given.begin, stop))
    size = NO_END if given.size is None else given.size
    if first >= min(stop, size) and given.begin:
        return None, 0
    return first, NO_END if after >= size else after


def _files_before(tar: OpenTar, stop: int) -> dict[bytes, tuple[int, int]]:
    """The last file of each name in a tar up to `stop`: one walk through the headers of all members there."""
    data = tar.bytes(0, stop)
    try:
        found = Walk(data, 0, stop, 0)
        return {
            each.name: (each.data, each.size)
            for each in found
            if isinstance(each, Entry) and each.type in "07" and not each.sparse
        }
    finally:
        data.close()


def _take(data: ArchiveBytes, offset: int, length: int) -> bytes:
    if length > MOST_BYTES:
        raise SampleError(
            Reason.OUT_OF_MEMORY, f"{length} bytes: files of more than {MOST_BYTES >> 30} GiB are not read"
        )
    body = data.take(offset, length)
    if len(body) < length:
        raise SampleError(Reason.TRUNCATED, f"the archive breaks off: {length - len(body)} bytes are missing")
    return body


def _whole(pick: Pick, tar: OpenTar) -> bytes:
    """The bytes of a member whose place is known.

    Raises:
        SampleError: the tar ends before that, or another tar has another member there.
        OSError, UserError: as for `Stores.read_part`.
    """
    offset, length = pick.offset or 0, pick.length or 0
    if not tar.packed and version_of(tar.stat) != (pick.of.etag or str(pick.of.size)):
        # The last header of a member stands before its bytes. It has the whole name, or the first 100 bytes of a longer one.
        header = headers.parse(tar.get(offset - headers.BLOCK, headers.BLOCK)) if offset < tar.stat.size else None
        name = headers.text(header.name) if header else ""
        if header is None or header.size != length or name.rpartition("/")[2][:50] not in (pick.key or ""):
            raise SampleError(Reason.NOT_FOUND, "the tar has changed, and has another member at this place")
    data = tar.bytes(offset, offset)
    try:
        return _take(data, offset, length)
    finally:
        data.close()


def _unread(given: TarRange, at: int, error: SampleError) -> Sample:
    """The sample that stands for a part of a tar that cannot be read."""
    return Sample(Member(f"{given.key}/@{at}", given.uri, None, given.etag), error)
