"""A source that does not know its samples when it is planned, as tars, Parquet files and videos do not."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa

from da2ray.errors import Reason, SampleError
from da2ray.sources.base import SHARDS, Cut, Member, Place, Sample

GUESS_BYTES = 2000
"""Bytes that an estimate assumes for an image. No image has this size."""


def write_packs(folder: Path, counts: Sequence[int], bodies: Iterator[bytes] | None = None) -> Path:
    """Write pack 0, 1, ... with the given numbers of images: for each image its length in 4 bytes, then its bytes."""
    folder.mkdir(parents=True)
    for number, count in enumerate(counts):
        images = (
            [bytes([number, place]) * 40 for place in range(count)] if bodies is None else list(islice(bodies, count))
        )
        data = b"".join(len(image).to_bytes(4, "little") + image for image in images)
        (folder / f"{number:03d}.pack").write_bytes(data)
    return folder


@dataclass(frozen=True, slots=True)
class PackSource:
    """Files that hold one image after another. A shard is a file, and the number of its images is known after reading it.

    Attributes:
        url: a local folder.
        knows_members: True for a source with an index beside its files, which can name a sample without reading its body.
    """

    url: str
    knows_members: bool = False
    kind: str = "packs"
    looks_for: str = "*.pack"

    @property
    def root(self) -> str:
        return self.url

    @property
    def passed_over(self) -> dict[str, int]:
        return {}

    def describe(self) -> dict[str, str]:
        return {"kind": self.kind, "url": self.url}

    def shards(self, cut: Cut) -> Iterator[pa.RecordBatch]:
        """A shard for each pack with an estimated count. With a limit, the lengths in the packs are read."""
        left = cut.limit
        for path in sorted(Path(self.url).glob("*.pack")):
            size = path.stat().st_size
            most = None
            if left is not None:
                most = min(left, sum(1 for _ in _walk(path)))
                left -= most
            row = {
                "samples": max(1, size // GUESS_BYTES) if most is None else most,
                "exact": most is not None,
                "bytes": size,
                "spec": _spec([(path.name, None if most is None else list(range(most)))]),
            }
            if most != 0:
                yield pa.RecordBatch.from_pylist([row], schema=SHARDS)

    def read(self, spec: bytes, *, concurrency: int, skip: int = 0) -> Iterator[Sample]:  # noqa: ARG002
        return islice(self._read(spec), skip, None)

    def member(self, spec: bytes, row: int) -> Member | None:
        sample = next(islice(self._read(spec), row, None), None) if self.knows_members else None
        return sample and sample.member

    def select(self, places: Iterable[tuple[bytes, Sequence[Place]]]) -> bytes:
        chosen = []
        for spec, here in places:
            every = [(name, place) for name, _, place in self._places(spec)]
            chosen += [(every[each.row][0], [every[each.row][1]]) for each in here]
        return _spec(chosen)

    def _read(self, spec: bytes) -> Iterator[Sample]:
        for name, body, place in self._places(spec):
            yield Sample(
                Member(f"{name}/{place}", f"{self.url}/{name}"),
                body or SampleError(Reason.EMPTY, "0 bytes"),
            )

    def _places(self, spec: bytes) -> Iterator[tuple[str, bytes, int]]:
        for name, rows in json.loads(spec):
            for place, body in enumerate(_walk(Path(self.url) / name)):
                if rows is None or place in rows:
                    yield name, body, place


def _walk(path: Path) -> Iterator[bytes]:
    data = path.read_bytes()
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        yield data[at + 4 : at + 4 + length]
        at += 4 + length


def _spec(parts: Sequence[tuple[str, list[int] | None]]) -> bytes:
    return json.dumps(parts).encode()
