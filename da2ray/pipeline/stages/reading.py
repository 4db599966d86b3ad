"""The read stage without Ray: a shard of the plan -> its micro-batches.

Bodies are fetched by threads, headers read, samples grouped by network size in the plan's order, and then decoded one after
another on one core, each into its place in the block. So the micro-batches, and with them the labels, are fixed by the plan
alone, and pixels are copied once on their way to shared memory.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from da2ray.errors import Reason, SampleError, Status
from da2ray.images.decode import DecodeMode, Format, Header, Limits, admit, decode_pixels, read_header
from da2ray.images.headers import read_focal
from da2ray.images.jpeg_quality import read_jpeg_quality
from da2ray.pipeline.stages.batches import READ, SAMPLE, SAMPLE_FIELDS, large_binaries, lists
from da2ray.plan.plan import Shard
from da2ray.sources.base import Member, Source
from da2ray.storage import printable, redact
from da2ray.teachers.base import Camera, SizeRule, TeacherSpec

FETCH_AHEAD = 16
"""GETs in flight for a read task: an S3 server gives 16 concurrent readers most of its rate (storage.md)."""


BLOCK_BYTES = 4 << 30
"""Decoded pixels of a shard, at most: headers alone, true or not, must not make a task take what a machine does not have."""


class Arena:
    """Memory for one block's pixels, kept by a process from task to task.

    Fresh memory costs up to 2 ms a MB on virtual machines (page faults down to the host), twice the decoding; memory that was
    used before costs nothing. Every call of `take` ends what the one before it gave.
    """

    def __init__(self) -> None:
        self._memory = np.empty(0, dtype=np.uint8)

    def take(self, size: int) -> np.ndarray:
        """uint8 (size,), contents undefined."""
        if self._memory.size < size:
            self._memory = np.empty(0, dtype=np.uint8)  # given back before the larger one is taken
            self._memory = np.empty(size, dtype=np.uint8)
        return self._memory[:size]


class Access:
    """How a shard's samples are fetched and decoded: here straight, elsewhere under a deadline or in another process."""

    def fetch(self, source: Source, members: Sequence[Member]) -> Iterator[tuple[Member, bytes | SampleError]]:
        """As `Source.fetch`."""
        return source.fetch(members, FETCH_AHEAD)

    def decode(self, data: bytes, header: Header, size: tuple[int, int], mode: DecodeMode) -> np.ndarray:
        """As `decode_pixels`."""
        return decode_pixels(data, header, size, mode)

    def close(self) -> None:
        """Give back what it holds."""


def uses_camera(*specs: TeacherSpec | None) -> bool:
    """Whether the focal length matters to one of them."""
    return any(spec is not None and spec.camera is not Camera.UNUSED for spec in specs)


@dataclass(slots=True)
class _Sample:
    """A sample on its way: the index fields known so far, and what decoding needs while it is still to be decoded.

    `needed` is the (height, width) that no reduced decoding may go below.
    """

    fields: dict[str, Any]
    body: bytes = b""
    header: Header | None = None
    needed: tuple[int, int] = (0, 0)

    def refuse(self, error: SampleError) -> None:
        reason = error.reason
        self.fields |= {"status": reason.status.value, "reason": reason.value, "message": printable(error.message)}
        self.fields |= {"network_height": None, "network_width": None}
        self.body = b""


@dataclass(slots=True)
class _Rows:
    """A block in the making: rows of `READ` as columns."""

    samples: list[list[dict[str, Any]]] = field(default_factory=list)
    shapes: list[list[int]] = field(default_factory=list)
    ends: list[int] = field(default_factory=lambda: [0])  # of each row's pixels in the arena

    def add(self, samples: Sequence[_Sample], shapes: list[int], end: int) -> None:
        self.samples.append([sample.fields for sample in samples])
        self.shapes.append(shapes)
        self.ends.append(end)


@dataclass(frozen=True, slots=True)
class Reading:
    """How samples become micro-batches. Picklable.

    Attributes:
        size_rule: the teacher's; images of one size share a micro-batch.
        checker_size: the checker's size rule; it decides only how small an image may be decoded.
        with_focals: a teacher uses the focal length: it is read from EXIF where the source does not know it.
    """

    source: Source
    size_rule: SizeRule
    limits: Limits
    mode: DecodeMode
    batch_size: int
    checker_size: SizeRule | None = None
    with_focals: bool = False

    def read(self, shard: Shard, arena: Arena | None = None, access: "Access | None" = None) -> pa.Table:
        """Read, decode and group a shard.

        Args:
            shard: of a plan.
            arena: where the pixels go; the block is valid until the arena's next use. None: memory of its own.
            access: how bodies are fetched and decoded. None: straight, in this process.

        Returns:
            A `READ` table: a row a micro-batch, at most one more for the samples without pixels. Every planned sample is in
            exactly one row.
        """
        access = access or Access()
        groups: dict[tuple[int, int], list[_Sample]] = defaultdict(list)
        without: list[_Sample] = []
        members = shard.samples()
        room = 0
        for row, (member, body) in enumerate(access.fetch(self.source, members)):
            sample = _Sample(_fields(row, member))
            try:
                size = self._admit(sample, member, body)
                room = self._reserve(room, sample)
            except SampleError as error:
                sample.refuse(error)
                without.append(sample)
            else:
                groups[size].append(sample)

        pixels = (arena or Arena()).take(room)
        rows, end = _Rows(), 0
        for group in groups.values():
            for batch in _even_parts(group, self.batch_size):
                decoded: list[_Sample] = []
                shapes: list[int] = []
                for sample in batch:
                    try:
                        image = self._decode(sample, access)
                    except SampleError as error:
                        sample.refuse(error)
                        without.append(sample)
                        continue
                    pixels[end : end + image.size] = image.reshape(-1)
                    end += image.size
                    decoded.append(sample)
                    shapes += image.shape[:2]
                if decoded:
                    rows.add(decoded, shapes, end)
        if without:
            rows.add(without, [], end)
        return _table(shard, len(members), rows, pixels)

    def _admit(self, sample: _Sample, member: Member, body: bytes | SampleError) -> tuple[int, int]:
        if isinstance(body, SampleError):
            raise body
        sample.fields["sha256"] = hashlib.sha256(body).digest()
        header = read_header(body)
        sample.fields |= {"width": header.width, "height": header.height, "orientation": header.orientation}
        sides = sorted((header.width, header.height))
        sample.fields |= {"aspect": sides[1] / sides[0], "jpeg_quality": read_jpeg_quality(body, header)}
        size = admit(header, self.size_rule, self.limits)
        sample.fields |= {"network_height": size[0], "network_width": size[1], "status": Status.LABELLED.value}
        if self.with_focals:
            focal, said_by = (member.focal, "manifest") if member.focal else (read_focal(body, header), "exif")
            sample.fields |= {"focal": focal, "focal_source": said_by if focal else None}
        sample.body, sample.header, sample.needed = body, header, size
        if self.checker_size:
            height, width = self.checker_size(header.height, header.width)
            sample.needed = (max(size[0], height), max(size[1], width))
        return size

    def _reserve(self, room: int, sample: _Sample) -> int:
        """`room` bytes and this sample's; a shard may hold one sample of any size."""
        wanted = room + self._room(sample)
        if room and wanted > BLOCK_BYTES:
            raise SampleError(
                Reason.OUT_OF_MEMORY,
                f"the images of this shard take more than {BLOCK_BYTES >> 30} GiB decoded: run again with "
                "--retry-failed out_of_memory and a smaller --shard-size",
            )
        return wanted

    def _room(self, sample: _Sample) -> int:
        """Bytes that a sample's pixels take at most.

        libjpeg's scales halve at most from one to the next, down to 1/8: a reduced JPEG is below twice the network's sides, or
        an eighth of its own, each rounded up.
        """
        header = sample.header
        assert header is not None  # noqa: S101 - admitted
        if self.mode is DecodeMode.EXACT or header.format is not Format.JPEG:
            return 3 * header.height * header.width
        reduced = 2 / min(header.height / sample.needed[0], header.width / sample.needed[1])
        share = min(1.0, max(reduced, 1 / 8))
        return 3 * (int(header.height * share) + 2) * (int(header.width * share) + 2)

    def _decode(self, sample: _Sample, access: "Access") -> np.ndarray:
        assert sample.header is not None  # noqa: S101 - admitted
        try:
            image = access.decode(sample.body, sample.header, sample.needed, self.mode)
        except MemoryError as error:
            raise SampleError(Reason.OUT_OF_MEMORY, f"{sample.header.format}: no memory for its pixels") from error
        sample.body = b""
        if image.size > self._room(sample):
            raise SampleError(Reason.CORRUPT, f"{sample.header.format}: header and pixels disagree about the size")
        return image


def _fields(row: int, member: Member) -> dict[str, Any]:
    return dict.fromkeys(SAMPLE_FIELDS) | {
        "key": member.key,
        "uri": redact(member.uri),
        "etag": member.etag,
        "row": row,
    }


def _table(shard: Shard, planned: int, rows: _Rows, pixels: np.ndarray) -> pa.Table:
    count = len(rows.samples)
    columns = {
        "shard": pa.repeat(pa.scalar(shard.number, pa.int64()), count),
        "planned": pa.repeat(pa.scalar(planned, pa.int32()), count),
        "samples": lists([pa.array(samples, SAMPLE) for samples in rows.samples]),
        "shapes": lists([pa.array(shapes, pa.int32()) for shapes in rows.shapes]),
        "pixels": large_binaries(pixels, rows.ends),
    }
    return pa.table(columns, schema=READ)


def _even_parts(items: list[Any], largest: int) -> Iterator[list[Any]]:
    """Split into the fewest parts of at most `largest`, sizes differing by one at most: few shapes, no leftover of one."""
    count = -(-len(items) // largest)
    for part in range(count):
        yield items[part * len(items) // count : (part + 1) * len(items) // count]
