"""The read stage without Ray: a shard of the plan -> its micro-batches.

Bodies are fetched ahead by threads and decoded here, one after another, so that a read task uses one core. Samples are grouped
by network size in the plan's order, so that the micro-batches, and with them the labels, are fixed by the plan alone.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from da2ray.images import DecodeMode, Limits, admit, decode_pixels, read_header
from da2ray.labels.schema import SampleError, Status
from da2ray.pipeline.batches import READ, SAMPLE, SAMPLE_FIELDS, large_binary, one_list
from da2ray.plan import Shard
from da2ray.sources.base import Member, Source
from da2ray.teachers.base import SizeRule

FETCH_AHEAD = 16
"""GETs in flight for a read task: an S3 server gives 16 concurrent readers most of its rate (storage.md)."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How samples become micro-batches. Picklable."""

    source: Source
    size_rule: SizeRule
    limits: Limits
    mode: DecodeMode
    batch_size: int

    def read(self, shard: Shard) -> pa.Table:
        """Read, decode and group a shard.

        Returns:
            A `READ` table: a row a micro-batch, at most one more for the samples without pixels. Every planned sample is in
            exactly one row.
        """
        groups: dict[tuple[int, int], list[tuple[dict[str, Any], np.ndarray]]] = defaultdict(list)
        without: list[dict[str, Any]] = []
        members = shard.samples()
        for row, (member, body) in enumerate(self.source.fetch(members, FETCH_AHEAD)):
            sample, pixels = self._decode(row, member, body)
            if pixels is None:
                without.append(sample)
            else:
                groups[sample["network_height"], sample["network_width"]].append((sample, pixels))
        tables = [
            _row(shard, len(members), [sample for sample, _ in batch], [pixels for _, pixels in batch])
            for group in groups.values()
            for batch in _even_parts(group, self.batch_size)
        ]
        if without or not tables:
            tables.append(_row(shard, len(members), without, []))
        return pa.concat_tables(tables)

    def _decode(self, row: int, member: Member, body: bytes | SampleError) -> tuple[dict[str, Any], np.ndarray | None]:
        sample = dict.fromkeys(SAMPLE_FIELDS) | {"key": member.key, "uri": member.uri, "etag": member.etag, "row": row}
        try:
            if isinstance(body, SampleError):
                raise body
            sample["sha256"] = hashlib.sha256(body).digest()
            header = read_header(body)
            sample |= {"width": header.width, "height": header.height, "orientation": header.orientation}
            height, width = admit(header, self.size_rule, self.limits)
            pixels = decode_pixels(body, header, (height, width), self.mode)
        except SampleError as error:
            sample |= {"status": error.reason.status.value, "reason": error.reason.value, "message": error.message}
            return sample, None
        sample |= {"status": Status.LABELLED.value, "network_height": height, "network_width": width}
        return sample, pixels


def _row(shard: Shard, planned: int, samples: list[dict[str, Any]], pixels: list[np.ndarray]) -> pa.Table:
    shapes = np.array([image.shape[:2] for image in pixels], dtype=np.int32).reshape(-1)
    flat = [image.reshape(-1) for image in pixels] or [np.zeros(0, dtype=np.uint8)]
    columns = {
        "shard": pa.array([shard.number], pa.int64()),
        "planned": pa.array([planned], pa.int32()),
        "samples": one_list(pa.array(samples, SAMPLE)),
        "shapes": one_list(pa.array(shapes)),
        "pixels": large_binary(flat[0] if len(flat) == 1 else np.concatenate(flat)),
    }
    return pa.table(columns, schema=READ)


def _even_parts(items: list[Any], largest: int) -> Iterator[list[Any]]:
    """Split into the fewest parts of at most `largest`, sizes differing by one at most: few shapes, no leftover of one."""
    count = -(-len(items) // largest)
    for part in range(count):
        yield items[part * len(items) // count : (part + 1) * len(items) // count]
