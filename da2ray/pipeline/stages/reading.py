"""The read stage without Ray: a shard of the plan -> its micro-batches.

Threads fetch the files. Their headers are read, samples are grouped by network size in the order of the shard, and then one core
decodes one after another, each into its place in the block. So the shard alone decides its micro-batches, and with them the
labels, and pixels are copied once on their way to shared memory.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa

from da2ray.errors import SampleError, Status
from da2ray.images.decode import Header, Limits, admit, read_header
from da2ray.images.headers import read_focal
from da2ray.images.jpeg_quality import read_jpeg_quality
from da2ray.labels.commits import Update
from da2ray.labels.schema import INDEX, KEPT
from da2ray.pipeline.stages.access import Access
from da2ray.pipeline.stages.arena import Arena
from da2ray.pipeline.stages.batches import READ, SAMPLE, SAMPLE_FIELDS, large_binaries, lists, packed_update, refusal
from da2ray.pipeline.stages.decoding import Decoding
from da2ray.plan.update import replaces_of
from da2ray.sources.base import Extent, Kept, Sample, Source
from da2ray.storage import redact
from da2ray.teachers.base import Camera, SizeRule, TeacherSpec

BLOCK_BYTES = 4 << 30
"""Decoded pixels of a block at most. Headers, true or not, must not make a task take more memory than the machine has. Images
beyond it travel encoded."""


def uses_camera(*specs: TeacherSpec | None) -> bool:
    """Whether the focal length matters to one of these teachers."""
    return any(spec is not None and spec.camera is not Camera.UNUSED for spec in specs)


OF_SAMPLES: Final = (
    *("key", "uri", "etag", "etag_listed", "version", "image_offset", "image_length", "image_row"),
    "row",
)
"""Index columns that say where an image is, not what it shows."""


@dataclass(slots=True)
class _Row:
    """A sample on its way: the index fields known so far, and what decoding needs until the sample is decoded.

    `needed`: see `Decoding.needed`.
    """

    fields: dict[str, Any]
    body: bytes = b""
    header: Header | None = None
    needed: tuple[int, int] = (0, 0)

    def refuse(self, error: SampleError) -> None:
        self.fields |= refusal(error)
        self.body = b""

    def keep(self, label: pa.Table) -> pa.Table:
        """Keep the label of this index row (INDEX). Returns the row with what is known of the sample now."""
        self.fields |= {"status": KEPT, "sha256": label["sha256"][0].as_py()}
        for name in OF_SAMPLES:
            field = INDEX.field(name)
            label = label.set_column(INDEX.get_field_index(name), field, pa.array([self.fields[name]], field.type))
        return label


@dataclass(slots=True)
class _Block:
    """A block in the making: rows of `READ` as columns."""

    samples: list[list[dict[str, Any]]] = field(default_factory=list)
    shapes: list[list[int]] = field(default_factory=list)
    ends: list[int] = field(default_factory=lambda: [0])  # of each row's pixels in the arena
    encoded: list[bytes] = field(default_factory=list)

    def add(self, rows: Sequence[_Row], shapes: list[int], end: int, encoded: bytes = b"") -> None:
        self.samples.append([row.fields for row in rows])
        self.shapes.append(shapes)
        self.ends.append(end)
        self.encoded.append(encoded)

    def add_rest(self, encoded: Sequence[_Row], without: Sequence[_Row], end: int) -> None:
        """Add the samples that travel encoded, one by one, and those without pixels. A block without samples has a row too."""
        for row in encoded:
            self.add([row], [], end, row.body)
        if without or not self.samples:
            self.add(without, [], end)

    def table(self, shard: int, planned: int, extent: Extent | None, pixels: np.ndarray, update: bytes) -> pa.Table:
        count = len(self.samples)
        stated = None if extent is None else json.dumps(asdict(extent))
        columns = {
            "shard": pa.repeat(pa.scalar(shard, pa.int64()), count),
            "planned": pa.repeat(pa.scalar(planned, pa.int32()), count),
            "extent": pa.repeat(pa.scalar(stated, pa.string()), count),
            "samples": lists([pa.array(samples, SAMPLE) for samples in self.samples]),
            "shapes": lists([pa.array(shapes, pa.int32()) for shapes in self.shapes]),
            "pixels": large_binaries(pixels, self.ends),
            "encoded": pa.array(self.encoded, pa.large_binary()),
            "update": pa.array([update, *[b""] * (count - 1)], pa.large_binary()),
        }
        return pa.table(columns, schema=READ)


@dataclass(frozen=True, slots=True)
class Reading:
    """How samples become micro-batches. Picklable.

    Attributes:
        size_rule: the teacher's; images of one network size share a micro-batch.
        with_focals: a teacher uses the focal length, so it is read from EXIF if the source does not know it.
        parent: number of the snapshot that `source`, an `UpdateSource`, updates; None for any other source.
    """

    source: Source
    size_rule: SizeRule
    limits: Limits
    decoding: Decoding
    batch_size: int
    with_focals: bool = False
    parent: int | None = None

    def read(self, shard: int, spec: bytes, arena: Arena | None = None, access: Access | None = None) -> pa.Table:
        """Read, decode and group a shard.

        Args:
            shard: number.
            spec: the shard's specification, for the source.
            arena: holds the pixels; the block is valid until the arena's next use. None: memory of its own.
            access: how samples are read and decoded. None: directly, in this process.

        Returns:
            A `READ` table: a row for each micro-batch, one for each image that travels encoded, and at most one more for the
            samples without pixels. Every sample of the shard is in exactly one row. A shard without samples is one row.
        """
        access = access or Access()
        groups: dict[tuple[int, int], list[_Row]] = defaultdict(list)
        without: list[_Row] = []
        beyond: list[_Row] = []
        kept: list[pa.Table] = []
        room = planned = 0
        extent: Extent | None = None
        for sample in access.read(self.source, spec):
            if isinstance(sample, Extent):
                extent = sample
                continue
            row = _Row(_fields(planned, sample))
            planned += 1
            if isinstance(sample.body, Kept):
                kept.append(row.keep(sample.body.row))
                without.append(row)
                continue
            try:
                size = self._admit(row, sample)
            except SampleError as error:
                row.refuse(error)
                without.append(row)
                continue
            wanted = room + self._room(row)
            # A block may hold one image of any size. The shard's content alone decides which images are beyond the limit.
            if room and wanted > BLOCK_BYTES:
                beyond.append(row)
            else:
                room = wanted
                groups[size].append(row)

        pixels = (arena or Arena()).take(room)
        block, end = _Block(), 0
        for group in groups.values():
            for batch in _even_parts(group, self.batch_size):
                decoded: list[_Row] = []
                shapes: list[int] = []
                for row in batch:
                    try:
                        image = self._decode(row, access)
                    except SampleError as error:
                        row.refuse(error)
                        without.append(row)
                        continue
                    pixels[end : end + image.size] = image.reshape(-1)
                    end += image.size
                    decoded.append(row)
                    shapes += image.shape[:2]
                if decoded:
                    block.add(decoded, shapes, end)
        block.add_rest(beyond, without, end)
        return block.table(shard, planned, extent, pixels, self._update(spec, kept))

    def _update(self, spec: bytes, kept: list[pa.Table]) -> bytes:
        """What the shard changes in the snapshot, packed; nothing if it is of a plan that updates none."""
        if self.parent is None:
            return b""
        rows = pa.concat_tables([INDEX.empty_table(), *kept])
        return packed_update(Update(self.parent, replaces_of(spec), rows))

    def _admit(self, row: _Row, sample: Sample) -> tuple[int, int]:
        """The network's (height, width) for a sample. Fills the row's fields.

        Raises:
            SampleError: the sample could not be read, is not an image, or the limits refuse it.
        """
        body, member = sample.body, sample.member
        assert not isinstance(body, Kept)  # noqa: S101 - the caller's
        if isinstance(body, SampleError):
            raise body
        row.fields["sha256"] = hashlib.sha256(body).digest()
        header = read_header(body)
        row.fields |= {"width": header.width, "height": header.height, "orientation": header.orientation}
        sides = sorted((header.width, header.height))
        row.fields |= {"aspect": sides[1] / sides[0], "jpeg_quality": read_jpeg_quality(body, header)}
        size = admit(header, self.size_rule, self.limits)
        row.fields |= {"network_height": size[0], "network_width": size[1], "status": Status.LABELLED.value}
        if self.with_focals:
            focal, said_by = (member.focal, "manifest") if member.focal else (read_focal(body, header), "exif")
            row.fields |= {"focal": focal, "focal_source": said_by if focal else None}
        row.body, row.header, row.needed = body, header, self.decoding.needed(header, size)
        return size

    def _room(self, row: _Row) -> int:
        assert row.header is not None  # noqa: S101 - admitted
        return self.decoding.room(row.header, row.needed)

    def _decode(self, row: _Row, access: Access) -> np.ndarray:
        assert row.header is not None  # noqa: S101 - admitted
        image = self.decoding.decode(row.body, row.header, row.needed, access)
        row.body = b""
        return image


def _fields(row: int, sample: Sample) -> dict[str, Any]:
    member = sample.member
    etag = sample.etag or member.etag
    return dict.fromkeys(SAMPLE_FIELDS) | {
        "key": member.key,
        "uri": redact(member.uri),
        "image_offset": member.image_offset,
        "image_length": member.image_length,
        "image_row": member.image_row,
        "etag": etag,
        "etag_listed": None if etag is None else not sample.etag,
        "version": member.version,
        "row": row,
    }


def _even_parts(items: list[Any], largest: int) -> Iterator[list[Any]]:
    """Split into the fewest parts of at most `largest`, whose sizes differ by at most one: few shapes, no leftover of one."""
    count = -(-len(items) // largest)
    for part in range(count):
        yield items[part * len(items) // count : (part + 1) * len(items) // count]
