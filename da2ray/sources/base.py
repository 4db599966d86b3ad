"""The protocol of a source, and what passes between a source, a plan and a read task.

A source is used twice. When a run is planned, `Source.shards` yields shard specifications: bytes that identify a run of samples
and that only the source understands. When a shard is read, on any machine, `Source.read` turns its specification into samples.
So a source need not know its samples when it is planned: a tar gives byte ranges, a Parquet file row groups.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, runtime_checkable

import pyarrow as pa

from da2ray.errors import SampleError, UserError


@dataclass(frozen=True, slots=True)
class Cut:
    """How a source is cut into shards.

    Attributes:
        shard_size: samples a shard holds at most. A source that does not know its samples goes by `shard_bytes` alone.
        shard_bytes: image bytes a shard holds at most, as far as the source knows them; a larger sample is alone in its shard.
        limit: the most samples of all shards together; None for all.
    """

    shard_size: int
    shard_bytes: int
    limit: int | None = None


SHARDS = pa.schema(
    [
        pa.field("samples", pa.int64(), nullable=False),
        pa.field("exact", pa.bool_(), nullable=False),
        pa.field("bytes", pa.int64()),
        pa.field("spec", pa.large_binary(), nullable=False),
    ]
)
"""Rows of `Source.shards`: how many samples the shard holds, whether that is a count or the source's estimate, the bytes of its
images (null if unknown), and its specification."""


@dataclass(frozen=True, slots=True)
class Member:
    """What is known of a sample without its bytes.

    Attributes:
        key: names the sample within its source, for good.
        uri: absolute; of the image, or of the file that holds it.
        size: bytes, as listed; None if not listed. The object may have changed since.
        etag: as listed; None if not listed.
        focal: focal length in pixels of the image as displayed at full size; None if the source does not know it.
        image_offset, image_length: the bytes of the image in the file at `uri`; None if the file is the image, or if the image is
            not one range of it.
        image_row: row of the image in the Parquet file at `uri`, from 0; None elsewhere.
        version: changes in the listing when the image does; None if that is `etag`.
    """

    key: str
    uri: str
    size: int | None = None
    etag: str | None = None
    focal: float | None = None
    image_offset: int | None = None
    image_length: int | None = None
    image_row: int | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """In place of an image's bytes: they are those that a label was made of. `row`: the label's index row, a table of one."""

    row: pa.Table


@dataclass(frozen=True, slots=True)
class Sample:
    """A member as it was read: with its bytes, or with the reason why there are none.

    Attributes:
        etag: of the bytes that were read; None if there are none, or if the read gave none.
    """

    member: Member
    body: bytes | SampleError | Kept
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class Extent:
    """Which part of a file a shard has read, if files are cut into ranges before anybody knows where their samples begin.

    Shards of a file follow each other in the plan. Each must begin where the one before ended; `da2ray.plan.joints` checks that.

    Attributes:
        file: names the file in the plan.
        version: of the file as it was read: its etag, else its size.
        begin, stop: the range, in bytes; `stop` is None if it goes to the end of the file.
        quiet: from here up to `first` the file means nothing.
        first: where the first sample, or what stands beside it, begins; None if none begins in the range.
        end: where the next one begins, which may lie behind `stop`; None if the file is broken, so that nobody knows.
        given: what the shard was told of the file before its range; `carried`: what the next shard must be told.
    """

    file: str
    version: str
    begin: int
    stop: int | None
    quiet: int
    first: int | None
    end: int | None
    given: dict[str, str] = field(default_factory=dict)
    carried: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sample was read.

    Attributes:
        row: its place in its shard, from 0.
        member: key, URI and place of the image as the index has them; None if the index has no row of it.
    """

    row: int
    member: Member | None = None


PASSED_OVER: Final = {
    "hidden_files": ("hidden file", "hidden files"),
    "other_image_types": ("image of a type that is not read", "images of types that are not read"),
    "link_loops": ("link loop", "link loops"),
    "closed_folders": ("folder without permission", "folders without permission"),
    "linked_folders": ("link to a folder", "links to folders"),
    "unlisted": ("entry that cannot be named", "entries that cannot be named"),
    "failed_downloads": ("row of a download that failed", "rows of downloads that failed"),
}
"""What a listing passes over and counts: the name of each kind, and the words for one and for several."""


def passed_over_text(counts: Mapping[str, int]) -> str:
    """Counts of PASSED_OVER for people: "3 hidden files, 1 link loop". Empty if there are none."""
    known = [(counts[kind], words) for kind, words in PASSED_OVER.items() if counts.get(kind)]
    return ", ".join(f"{count:,} {words[count != 1]}" for count, words in known)


def no_images(source: "Source") -> UserError:
    """The error for a source that was listed and has no sample."""
    passed = passed_over_text(source.passed_over)
    return UserError(
        f"no images under {source.url}; looked for {source.looks_for}" + (f"\npassed over: {passed}" if passed else "")
    )


class Source(Protocol):
    """Can be pickled, and holds no connection and no credential."""

    @property
    def kind(self) -> str:
        """The word for this kind of source in a plan, such as "prefix"."""
        ...

    @property
    def url(self) -> str:
        """Canonical."""
        ...

    @property
    def root(self) -> str:
        """The URL that most samples lie under."""
        ...

    @property
    def looks_for(self) -> str:
        """What the source looks for, for the message that it found none."""
        ...

    @property
    def passed_over(self) -> Mapping[str, int]:
        """What the newest listing passed over, by the names of PASSED_OVER. With a limit it counts up to the limit."""
        ...

    def describe(self) -> dict[str, str]:
        """What identifies the source, for the plan's hash: the same for the same command tomorrow."""
        ...

    def shards(self, cut: Cut) -> Iterator[pa.RecordBatch]:
        """The source as shards, in batches of schema SHARDS: the same shards in the same order every time.

        A stream, so that memory stays bounded however large the source is. It reads names, sizes, headers and footers, never
        image bytes. Every sample, or each of the first `cut.limit`, is in exactly one shard.

        Raises:
            UserError: the source cannot be read, or two samples have one key.
        """
        ...

    def read(self, spec: bytes, *, concurrency: int, skip: int = 0) -> Iterator[Sample | Extent]:
        """The samples of a shard, in an order that is fixed. A sample's place in it, from 0, is its `row`.

        A source that is `Ranged` yields the extent of the shard last.

        Args:
            spec: from `shards` or `select`.
            concurrency: reads in flight. With 1, nothing is read ahead of the sample that is asked for.
            skip: rows to leave out at the start.

        Raises:
            OutageError: a store does not answer any more, not about any object.
        """
        ...

    def member(self, spec: bytes, row: int) -> Member | None:
        """The sample at a row of a shard; None if that cannot be known without reading the shard, or there is no such row."""
        ...

    def select(self, places: Iterable[tuple[bytes, Sequence[Place]]]) -> bytes:
        """One specification that reads just these samples, as they are now: (a shard's specification, places in it) each.

        Samples come in the order given. Sizes and versions from the listing are dropped. What the index says of a sample may
        save reading its shard, but the specification decides which file is read: the index has URIs without signatures.
        """
        ...


@runtime_checkable
class Ranged(Protocol):
    """A source whose shards are ranges of files, cut without reading them. Their extents must meet."""

    def begin_at(self, spec: bytes, start: int | None, given: Mapping[str, str], repeated: Iterable[str]) -> bytes:
        """The specification of a shard that reads its range again, now that more is known.

        Args:
            start: where its first sample begins; None to look for it.
            given: see `Extent`.
            repeated: keys of samples in it that earlier shards of the file have too.
        """
        ...

    def version(self, spec: bytes) -> str:
        """The version of the shard's file as it is now, as `Extent` has it.

        Raises:
            OSError: it cannot be read.
        """
        ...
