"""Tars for tests, and how a source of tars is read to its end without Ray and without a dataset."""

import io
import random
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from da2ray.errors import SampleError
from da2ray.plan.joints import Joint, corrections
from da2ray.sources.base import Cut, Extent, Ranged, Sample, Source

ROUNDS = 50

CUTS = [512, 4096, 30_000, 1 << 30]
"""Bytes of a shard: a block, a member or so, several members, the whole tar."""
LONG = "folder-" * 30
"""A folder's name of 210 characters."""


@dataclass(frozen=True)
class Read:
    """What all shards of a source read: the samples of each, its specification, and how many shards were read again."""

    shards: list[list[Sample]]
    specs: list[bytes]
    corrected: int

    @property
    def samples(self) -> dict[str, Sample]:
        """By key; fails if a key is there twice."""
        every = [sample for shard in self.shards for sample in shard]
        found = {sample.member.key: sample for sample in every}
        assert len(found) == len(every), "a key is there twice"
        return found

    @property
    def bodies(self) -> dict[str, bytes]:
        return {key: sample.body for key, sample in self.samples.items() if not isinstance(sample.body, SampleError)}

    @property
    def reasons(self) -> dict[str, str]:
        return {key: sample.body.reason for key, sample in self.samples.items() if isinstance(sample.body, SampleError)}


def specs_of(source: Source, shard_bytes: int, limit: int | None = None) -> list[bytes]:
    batches = source.shards(Cut(1 << 20, shard_bytes, limit))
    return [spec for batch in batches for spec in batch["spec"].to_pylist()]


def read_shard(source: Source, spec: bytes, concurrency: int = 1) -> tuple[list[Sample], Extent | None]:
    found = list(source.read(spec, concurrency=concurrency))
    extents = [each for each in found if isinstance(each, Extent)]
    assert found[len(found) - len(extents) :] == extents, "the extent is last"
    return [each for each in found if isinstance(each, Sample)], extents[0] if extents else None


def read_all(source: Source, shard_bytes: int, limit: int | None = None, concurrency: int = 1) -> Read:
    """Read all shards, and those that do not meet again until they do, as a run does."""
    assert isinstance(source, Ranged)
    specs = specs_of(source, shard_bytes, limit)
    read = [read_shard(source, spec, concurrency) for spec in specs]
    corrected = 0
    for _ in range(ROUNDS):
        files: dict[str, list[Joint]] = {}
        for number, (samples, extent) in enumerate(read):
            if extent:
                files.setdefault(extent.file, []).append(Joint(number, extent, [each.member.key for each in samples]))
        wrong = [each for joints in files.values() for each in corrections(joints)]
        if not wrong:
            return Read([samples for samples, _ in read], specs, corrected)
        for each in wrong:
            specs[each.number] = source.begin_at(specs[each.number], each.start, each.given, each.repeated)
            read[each.number] = read_shard(source, specs[each.number], concurrency)
        corrected += len(wrong)
    raise AssertionError("the shards do not come to meet")


def write_tar(
    path: Path,
    members: Mapping[str, bytes] | Iterable[tuple[str, bytes]],
    format: int = tarfile.USTAR_FORMAT,  # noqa: A002
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(members, format))
    return path


def tar_bytes(members: Mapping[str, bytes] | Iterable[tuple[str, bytes]], format: int = tarfile.USTAR_FORMAT) -> bytes:  # noqa: A002
    """The bytes of a tar as Python's tarfile writes it."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=format) as tar:
        for name, body in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return sink.getvalue()


def some_bodies(count: int, seed: int = 0, most: int = 5000) -> list[bytes]:
    """Bodies that are all different, of 1 to `most` bytes."""
    chosen = random.Random(seed)  # noqa: S311
    return [number.to_bytes(4, "big") + chosen.randbytes(chosen.randrange(most)) for number in range(count)]


def serial(path: Path) -> dict[str, bytes]:
    """The images that a walk through a tar by Python's tarfile finds: by key, as `TarSource` names them."""
    found: dict[str, bytes] = {}
    with tarfile.open(path, "r:*", ignore_zeros=True) as tar:
        for info in tar:
            if (info.isreg() or info.islnk()) and info.name.endswith(".jpg"):
                key = f"{path.name}/{info.name}"
                found[f"{key}@{info.offset}" if key in found else key] = tar.extractfile(info).read()
    return found
