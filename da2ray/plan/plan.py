"""Source -> shards, once; and which shards are left.

A plan is one immutable Parquet file, `plans/<plan>.parquet`, with a row for each shard. Its id is a hash of the command that made
it, so the same command finds its plan again and lists nothing. Planning reads names and sizes, never image bytes.

The largest column holds the shards' specifications (`da2ray.sources.base`), each as one contiguous byte range of the file. The
driver of a run reads only the small columns, and a read task fetches the specification of its shard with one range GET.
"""

import hashlib
import json
import re
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from da2ray import __version__
from da2ray.errors import UserError
from da2ray.labels.commits import commit_key
from da2ray.labels.stored import intact
from da2ray.parallel import look_ahead
from da2ray.plan.file import METADATA_KEY, SCHEMA, Contents, spec_offsets, write_file
from da2ray.plan.update import Purpose, UpdateSource
from da2ray.sources.base import Cut, Ranged, Source, no_images
from da2ray.storage import Store, StoreFile, join

PLAN_VERSION: Final = 1
DEFAULT_SHARD_BYTES: Final = 64 << 20
"""Listed image bytes of a shard. With the 172 kB a label takes at most, a shard of 256 is some 50 MB to write, in one PUT."""
SPEC_THREADS: Final = 16


@dataclass(frozen=True, slots=True)
class PlanInfo:
    """What a plan was made from and what it holds; JSON in the file's metadata under METADATA_KEY.

    Attributes:
        source: `Source.describe()`.
        root: the URL that most samples lie under.
        shard_size: samples a shard holds at most.
        shard_bytes: listed bytes a shard holds at most; a larger sample is alone in its shard.
        limit: the most samples to plan; None for all.
        fingerprint: of what decides the labels, as the caller gave it.
        shards, samples: how many.
        bytes: sum of the listed sizes; None if one is unknown.
        exact: `samples` is a count; False if the source estimated it for some shard.
        ranged: the shards are ranges of files, and each must begin where the one before it ended (`da2ray.plan.joints`).
        passed_over: how many files the listing passed over, by kind.
        purpose: what the plan is for.
        parent: number of the newest snapshot when the plan was made, 0 if there was none. A plan that updates a snapshot was made
            from this one. Orders the plans of a dataset, before `created`.
        gone: how many of the last shards only say which samples are gone. Nothing is read for them.
        created: UTC, ISO 8601.
    """

    source: dict[str, str]
    root: str
    shard_size: int
    shard_bytes: int
    limit: int | None
    fingerprint: str
    shards: int
    samples: int
    bytes: int | None
    exact: bool = True
    ranged: bool = False
    passed_over: dict[str, int] = field(default_factory=dict)
    purpose: Purpose = Purpose.LABEL
    parent: int = 0
    gone: int = 0
    created: str = ""
    format_version: int = PLAN_VERSION


_INFO: Final = TypeAdapter(PlanInfo)
_CRC32: Final = struct.Struct("<I")
"""Precedes a corrected specification."""
_CORRECTION: Final = re.compile(r"plans/[0-9a-f]{16}/([0-9]{8}|[1-9][0-9]{8,17})\.spec")
_KEY: Final = re.compile(r"plans/([0-9a-f]{16})\.parquet")


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard as it travels to a task: its number, and where its specification lies in the plan's file.

    `corrected`: another specification is stored in place of that one (`Plan.correct`).
    """

    plan: str
    number: int
    offset: int
    length: int
    crc32: int
    corrected: bool = False

    def spec(self, store: Store) -> bytes:
        """Fetch the specification from the dataset at `store`, with one range GET, or the one that was stored in its place.

        Raises:
            CorruptError: its checksum is not the plan's.
        """
        if self.corrected:
            return read_correction(store, self.plan, self.number)
        key = plan_key(self.plan)
        spec = store.get_range(key, self.offset, self.length)
        with _intact(store, key):
            _check_spec(self.number, spec, self.crc32)
        return spec


def plan_id(
    described: dict[str, str],
    *,
    shard_size: int,
    shard_bytes: int,
    limit: int | None,
    fingerprint: str,
    purpose: Purpose = Purpose.LABEL,
    parent: int = 0,
) -> str:
    """A plan's id: 16 hex digits, fixed by these arguments alone; `parent` counts only for plans that update a snapshot.

    `described` is `Source.describe()`.
    """
    fixed = {
        "purpose": purpose.value,
        "parent": None if purpose is Purpose.LABEL else parent,
        "source": described,
        "shard_size": shard_size,
        "shard_bytes": shard_bytes,
        "limit": limit,
        "fingerprint": fingerprint,
        "format_version": PLAN_VERSION,
    }
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


def _id_of(info: PlanInfo) -> str:
    return plan_id(
        info.source,
        shard_size=info.shard_size,
        shard_bytes=info.shard_bytes,
        limit=info.limit,
        fingerprint=info.fingerprint,
        purpose=info.purpose,
        parent=info.parent,
    )


def plan_key(plan: str) -> str:
    return f"plans/{plan}.parquet"


def correction_key(plan: str, shard: int) -> str:
    return f"plans/{plan}/{shard:08d}.spec"


def corrections_of(store: Store, plan: str) -> list[int]:
    """Numbers of the shards whose specifications were corrected, ascending."""
    keys = (key for batch in store.list(f"plans/{plan}") for key in batch["key"].to_pylist())
    return sorted(int(named[1]) for key in keys if (named := _CORRECTION.fullmatch(key)))


def read_correction(store: Store, plan: str, shard: int) -> bytes:
    """The specification that was stored in place of the plan's own.

    Raises:
        CorruptError: it has another checksum.
        FileNotFoundError: there is none.
    """
    key = correction_key(plan, shard)
    remedy = f"delete it and commits/{plan}/{shard:08d}.parquet, and run the job again"
    with intact(store, key, "a corrected specification", remedy):
        data = store.get(key)
        _check_spec(shard, data[_CRC32.size :], _CRC32.unpack_from(data)[0])
        return data[_CRC32.size :]


class Plan:
    """A stored plan. In memory it is the file's footer and, once used, three numbers for each shard."""

    def __init__(self, store: Store, plan: str) -> None:
        """Open the plan.

        Raises:
            FileNotFoundError: the store has no plan of this id.
            UserError: a later version wrote the plan.
            CorruptError: the object is not this plan.
        """
        self.id = plan
        self.is_new = False
        """Whether this process stored it, from a listing of its own."""
        self.key = plan_key(plan)
        self._store = store
        with _intact(store, self.key):
            self._file = pq.ParquetFile(StoreFile(store, self.key, _READ_BYTES), page_checksum_verification=True)
            values = json.loads(self._file.metadata.metadata[METADATA_KEY])
            if values["format_version"] > PLAN_VERSION:
                raise UserError(
                    f"{store.url}/{self.key} has format version {values['format_version']}, da2ray {__version__} reads up to "
                    f"{PLAN_VERSION}: update da2ray"
                )
            self.info = _INFO.validate_python(values)
            if self._file.schema_arrow.names != SCHEMA.names or self._file.metadata.num_rows != self.info.shards:
                raise ValueError("its columns or rows are not those of a plan")
            if _id_of(self.info) != plan:
                raise ValueError(f"it is plan {_id_of(self.info)}")

    def __len__(self) -> int:
        """The number of shards, which are numbered from 0."""
        return self.info.shards

    def check(self) -> None:
        """Read the whole plan, a row group at a time, and check it.

        Raises:
            CorruptError: its numbers contradict each other, or a page or a specification has another checksum.
            OSError: the store failed.
        """
        with _intact(self._store, self.key):
            samples = 0
            for group in range(self._file.num_row_groups):
                table = self._file.read_row_group(group)
                samples += pc.sum(table["samples"]).as_py()
                columns = (table[name].to_pylist() for name in ("shard", "spec", "crc32"))
                for shard, spec, crc32 in zip(*columns, strict=True):
                    _check_spec(shard, spec, crc32)
            if samples != self.info.samples:
                raise ValueError(f"its shards have {samples} samples, it says {self.info.samples}")

    def sizes(self) -> np.ndarray:
        """Samples of each shard, int64; estimates unless `info.exact`."""
        return self._numbers[0]

    def remaining(self, store: Store, *, gone: bool = True) -> np.ndarray:
        """Numbers of the shards without commit, int64, ascending. Lists the commits and reads none.

        Args:
            gone: count the shards that only say what is gone.

        Raises:
            UserError: there is a commit of a shard that the plan does not have, so the plan is not this dataset's.
        """
        done = np.zeros(self.info.shards, np.bool_)
        folder = commit_key(self.id, 0).rpartition("/")[0]
        for batch in store.list(folder):
            committed = _shard_numbers(batch.column("key"), folder)
            if committed.size and committed.max() >= self.info.shards:
                unknown = join(store.url, commit_key(self.id, int(committed.max())))
                raise UserError(
                    f"{unknown} is a commit of a shard that the plan of {self.info.shards} shards does not have: "
                    f"run `da2ray repair {store.url}`"
                )
            done[committed] = True
        return np.flatnonzero(~done if gone else ~done[: len(self) - self.info.gone])

    def shards(self, numbers: np.ndarray) -> Iterator[Shard]:
        """The shards of these numbers, ascending.

        Raises:
            IndexError: the plan has no shard of one of the numbers.
        """
        wanted = np.unique(np.asarray(numbers, np.int64))
        if wanted.size and not 0 <= wanted[0] <= wanted[-1] < self.info.shards:
            raise IndexError(f"plan {self.id} has shards 0 to {self.info.shards - 1}, not {wanted[0]} to {wanted[-1]}")
        _, offsets, lengths, checksums = self._numbers
        corrected = set(corrections_of(self._store, self.id)) if self.info.ranged else set()
        for number in wanted.tolist():
            place = int(offsets[number]), int(lengths[number]), int(checksums[number])
            yield Shard(self.id, number, *place, number in corrected)

    def correct(self, number: int, spec: bytes) -> None:
        """Store a specification in place of the plan's own; that of a later call counts."""
        self._store.put(correction_key(self.id, number), _CRC32.pack(zlib.crc32(spec)) + spec)

    def specs(self, numbers: np.ndarray) -> Iterator[tuple[Shard, bytes]]:
        """The shards of these numbers, ascending, with their specifications: SPEC_THREADS GETs at a time."""
        return look_ahead(
            lambda shard: (shard, shard.spec(self._store)), self.shards(numbers), SPEC_THREADS, "specifications"
        )

    @cached_property
    def _numbers(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Samples of each shard; offset, length and CRC-32 of its specification in the file: int64, 32 bytes a shard."""
        with _intact(self._store, self.key):
            table = self._file.read(columns=["samples", "length", "crc32"])
            samples, lengths, checksums = (table[name].to_numpy() for name in ("samples", "length", "crc32"))
            return samples, spec_offsets(self._file.metadata, lengths), lengths, checksums


_READ_BYTES: Final = 256 << 10
"""Bytes of one GET. The small columns of a row group lie next to each other, before its specifications, which are skipped."""


def open_plan(store: Store, plan: str) -> Plan | None:
    """The plan of this id; None if the store has none.

    Raises:
        CorruptError: the object is not this plan.
    """
    try:
        return Plan(store, plan)
    except FileNotFoundError:
        return None


def list_plans(store: Store) -> list[Plan]:
    """The dataset's plans, oldest first.

    Raises:
        CorruptError: one of them is not a plan.
    """
    return sorted(
        (Plan(store, plan) for plan in plan_ids(store)),
        key=lambda plan: (plan.info.parent, plan.info.created, plan.id),
    )


def plan_ids(store: Store) -> list[str]:
    """The ids of the dataset's plans, ascending. Other files in the folder are not ours."""
    keys = (key for batch in store.list("plans") for key in batch["key"].to_pylist())
    return [named[1] for key in keys if (named := _KEY.fullmatch(key))]


def make_plan(
    source: Source,
    store: Store,
    *,
    shard_size: int,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    limit: int | None,
    fingerprint: str,
    purpose: Purpose = Purpose.LABEL,
    parent: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> Plan:
    """The plan of this command: the stored one, or else a new one from `source`, which is then stored.

    If several jobs plan at once, all of them use the plan that was stored first.

    Args:
        source: cut into shards once, as a stream; GROUP_BYTES bound the memory.
        store: the dataset.
        shard_size, shard_bytes, limit: see `Cut`.
        fingerprint: of what decides the labels; another fingerprint is another plan.
        purpose, parent: see `PlanInfo`. What updates a snapshot comes from an `UpdateSource`.
        on_progress: called with the number of samples so far.

    Raises:
        UserError: the source cannot be read, holds no image, or gives two samples one key.
    """
    for name, value in (("shard size", shard_size), ("shard bytes", shard_bytes), ("limit", limit)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    fixed: dict[str, Any] = {
        "shard_size": shard_size,
        "shard_bytes": shard_bytes,
        "limit": limit,
        "fingerprint": fingerprint,
        "purpose": purpose,
        "parent": parent,
    }
    described = source.describe()
    plan = plan_id(described, **fixed)
    stored = open_plan(store, plan)
    if stored is not None:
        return stored
    with tempfile.TemporaryDirectory(prefix="da2ray-plan-") as folder:
        path = Path(folder) / "plan.parquet"
        created = datetime.now(UTC).isoformat(timespec="microseconds")
        info = PlanInfo(
            described,
            source.root,
            **fixed,
            shards=0,
            samples=0,
            bytes=0,
            ranged=isinstance(source, Ranged),
            created=created,
        )
        shards = source.shards(Cut(shard_size, shard_bytes, limit))
        write_file(path, shards, lambda written: _metadata(source, info, written), on_progress)
        # False if another job was first: then both use its plan, not this one.
        created_here = store.create_file(plan_key(plan), path)
    made = Plan(store, plan)
    made.is_new = created_here
    return made


def require_samples(source: Source) -> None:
    """Check that the source has a sample; reads no more of it than it must.

    Raises:
        UserError: the source has no sample, or cannot be read.
    """
    if next(source.shards(Cut(shard_size=1, shard_bytes=DEFAULT_SHARD_BYTES, limit=1)), None) is None:
        raise no_images(source)


def _metadata(source: Source, info: PlanInfo, written: Contents) -> bytes:
    if not written.shards:
        raise no_images(source)
    passed_over = {kind: count for kind, count in source.passed_over.items() if count}
    gone = source.gone_shards if isinstance(source, UpdateSource) else 0
    return json.dumps(asdict(info) | asdict(written) | {"passed_over": passed_over, "gone": gone}).encode()


def _check_spec(shard: int, spec: bytes, crc32: int) -> None:
    if zlib.crc32(spec) != crc32:
        raise ValueError(f"the specification of shard {shard} has another checksum")


def _intact(store: Store, key: str) -> AbstractContextManager[None]:
    remedy = "restore it; if the images have not changed since, delete it, and the same command makes it again"
    return intact(store, key, "a plan", remedy)


def _shard_numbers(keys: pa.StringArray, folder: str) -> np.ndarray:
    """Shard numbers of the keys that are commits in this folder; other keys are passed over."""
    names = pc.utf8_slice_codeunits(keys, len(folder) + 1)
    commits = names.filter(pc.match_substring_regex(names, r"^([0-9]{8}|[1-9][0-9]{8,17})\.parquet$"))
    return pc.utf8_slice_codeunits(commits, 0, -len(".parquet")).cast(pa.int64()).to_numpy(zero_copy_only=False)
