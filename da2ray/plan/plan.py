"""Source -> shards, once; and what is left to do.

A plan is one immutable Parquet file, `plans/<plan>.parquet`, a row a shard. Its id is a hash of the command that made
it, so the same command finds it again and lists nothing. Planning reads names and sizes, never image bytes.
"""

import hashlib
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from da2ray.errors import UserError
from da2ray.labels.commits import commit_key
from da2ray.sources.base import FOCAL, MEMBERS, Member, Source, members_of
from da2ray.sources.prefix import IMAGE_SUFFIXES
from da2ray.storage import Store, StoreFile, join

PLAN_VERSION = 1
DEFAULT_SHARD_BYTES = 64 << 20
"""Of listed image bytes. With the 172 kB a label takes at most, a shard of 256 is some 50 MB to write, in one PUT."""
UNKNOWN_BYTES = 1 << 20
"""What a sample whose size is not listed counts for: 64 of them a shard, which decoded at 12 megapixels take 2.3 GB."""
SHARDS_A_GROUP = 64
"""Shards in one row group: with 256 images a shard one GET of about 0.5 MB serves 64 tasks."""
METADATA_KEY = b"da2ray"

_STORED_MEMBER = pa.struct(
    [MEMBERS.field("key"), pa.field("uri", pa.string()), MEMBERS.field("size"), MEMBERS.field("etag")]
)
SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("samples", pa.int64(), nullable=False),
        # Sum of the listed sizes; null where one of them is unknown.
        pa.field("bytes", pa.int64()),
        # `uri` is null where it is PlanInfo.root + "/" + key.
        pa.field("members", pa.list_(pa.field("element", _STORED_MEMBER, nullable=False)), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class PlanInfo:
    """What a plan was made from and what it holds; JSON in the file's metadata under METADATA_KEY.

    Attributes:
        source: `Source.describe()`.
        root: the URL that a member without URI lies under.
        shard_size: samples a shard at most.
        shard_bytes: listed bytes a shard at most; a larger sample is alone.
        limit: samples in all at most; None is all.
        fingerprint: of what decides the labels, as the caller gave it.
        shards, samples: how many.
        bytes: sum of the listed sizes; None where one is unknown.
        created: UTC, ISO 8601; orders the plans of a dataset.
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
    created: str = ""
    format_version: int = PLAN_VERSION


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard as it travels to a task: some 10 kB pickled for 256 images. Members are Arrow IPC, zstd."""

    plan: str
    number: int
    root: str
    data: bytes

    def members(self) -> pa.RecordBatch:
        """Of schema MEMBERS, with FOCAL where the source had it, URIs filled in."""
        with pa.ipc.open_stream(self.data) as reader:
            stored = reader.read_next_batch()
        uris = pc.coalesce(
            stored.column("uri"), pc.binary_join_element_wise(pa.scalar(join(self.root, "")), stored.column("key"), "")
        )
        columns = [stored.column("key"), uris, stored.column("size"), stored.column("etag")]
        members = pa.record_batch(columns, schema=MEMBERS)
        return members.append_column(FOCAL, stored.column("focal")) if "focal" in stored.schema.names else members

    def samples(self) -> list[Member]:
        return members_of(self.members())


def plan_id(
    described: dict[str, str], *, shard_size: int, shard_bytes: int, limit: int | None, fingerprint: str
) -> str:
    """16 hex digits, fixed by these alone. `described` is `Source.describe()`."""
    fixed = {
        "source": described,
        "shard_size": shard_size,
        "shard_bytes": shard_bytes,
        "limit": limit,
        "fingerprint": fingerprint,
        "format_version": PLAN_VERSION,
    }
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


def plan_key(plan: str) -> str:
    return f"plans/{plan}.parquet"


class Plan:
    """A stored plan. Holds its footer (2 MB for 200,000 shards) and no member."""

    def __init__(self, store: Store, plan: str) -> None:
        """Open it.

        Raises:
            FileNotFoundError: there is none of this id.
            UserError: it was written by a later version.
        """
        self.id = plan
        self._file = pq.ParquetFile(StoreFile(store, plan_key(plan)))
        values = json.loads(self._file.metadata.metadata[METADATA_KEY])
        if values["format_version"] > PLAN_VERSION:
            raise UserError(f"plan {plan} has format {values['format_version']}, and this da2ray reads {PLAN_VERSION}")
        self.info = PlanInfo(**values)

    def __len__(self) -> int:
        """How many shards; they are numbered from 0."""
        return self.info.shards

    def sizes(self) -> np.ndarray:
        """Samples of each shard, int64. A GET for each 64 shards."""
        return self._file.read(columns=["samples"])["samples"].to_numpy()

    def remaining(self, store: Store) -> np.ndarray:
        """Numbers of the shards without commit, int64, ascending: found by listing commits, without reading one.

        Raises:
            UserError: there is a commit of a shard that the plan does not have, so it is not this dataset's plan.
        """
        done = np.zeros(self.info.shards, np.bool_)
        folder = commit_key(self.id, 0).rpartition("/")[0]
        for batch in store.list(folder):
            committed = _shard_numbers(batch.column("key"), folder)
            if committed.size and committed.max() >= self.info.shards:
                unknown = join(store.url, commit_key(self.id, int(committed.max())))
                raise UserError(
                    f"{unknown} is a commit of a shard that the plan of {self.info.shards} shards does not have"
                )
            done[committed] = True
        return np.flatnonzero(~done)

    def shards(self, numbers: np.ndarray) -> Iterator[Shard]:
        """The shards of these numbers, ascending, a row group in memory at a time; others are not read.

        Raises:
            IndexError: a number is not one of this plan's.
        """
        wanted = np.unique(np.asarray(numbers, np.int64))
        if wanted.size and not 0 <= wanted[0] <= wanted[-1] < self.info.shards:
            raise IndexError(f"plan {self.id} has shards 0 to {self.info.shards - 1}, not {wanted[0]} to {wanted[-1]}")
        metadata = self._file.metadata
        end = 0
        for group in range(metadata.num_row_groups):
            begin, end = end, end + metadata.row_group(group).num_rows
            here = wanted[np.searchsorted(wanted, begin) : np.searchsorted(wanted, end)]
            if not here.size:
                continue
            members = self._file.read_row_group(group, columns=["members"])["members"].combine_chunks()
            for number in here.tolist():
                yield Shard(self.id, number, self.info.root, _packed(members[number - begin].values))


def open_plan(store: Store, plan: str) -> Plan | None:
    """The plan of this id; None where none is stored."""
    try:
        return Plan(store, plan)
    except FileNotFoundError:
        return None


def make_plan(
    source: Source,
    store: Store,
    *,
    shard_size: int,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    limit: int | None,
    fingerprint: str,
    on_progress: Callable[[int], None] | None = None,
) -> Plan:
    """The plan of this command: the stored one, else made from the source's listing and stored.

    A shard is a run of consecutive samples. It ends at `shard_size` samples, or before its listed bytes would exceed
    `shard_bytes`; unknown sizes count as UNKNOWN_BYTES. Of several jobs that plan at once, all use the
    plan that was stored first.

    Args:
        source: listed once, as a stream; memory stays bounded by 64 shards.
        store: the dataset.
        shard_size: samples a shard at most.
        shard_bytes: as in PlanInfo.
        limit: plan just the first N samples.
        fingerprint: of what decides the labels; another one is another plan.
        on_progress: called with the number of samples listed so far.

    Raises:
        UserError: the source cannot be read, holds no image, or names two samples alike.
    """
    for name, value in (("shard size", shard_size), ("shard bytes", shard_bytes), ("limit", limit)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    fixed: dict[str, Any] = {
        "shard_size": shard_size,
        "shard_bytes": shard_bytes,
        "limit": limit,
        "fingerprint": fingerprint,
    }
    described = source.describe()
    plan = plan_id(described, **fixed)
    stored = open_plan(store, plan)
    if stored is not None:
        return stored
    with tempfile.TemporaryDirectory(prefix="da2ray-plan-") as folder:
        path = Path(folder) / "plan.parquet"
        created = datetime.now(UTC).isoformat(timespec="microseconds")
        info = PlanInfo(described, source.root, **fixed, shards=0, samples=0, bytes=0, created=created)
        _write(path, source, info, on_progress)
        # False where another job was first: its plan, not this one, is what both use.
        store.create_file(plan_key(plan), path)
    return Plan(store, plan)


def _write(path: Path, source: Source, info: PlanInfo, on_progress: Callable[[int], None] | None) -> None:
    shards = samples = 0
    total: int | None = 0
    groups = _groups(source, info)
    first = next(groups, None)
    if first is None:
        raise no_images(source)
    # Its members may have a field more than SCHEMA's.
    schema = SCHEMA.set(SCHEMA.get_field_index("members"), SCHEMA.field("members").with_type(first["members"].type))
    with pq.ParquetWriter(
        path, schema, compression="zstd", use_dictionary=False, write_statistics=False, store_schema=False
    ) as writer:
        for group in itertools.chain([first], groups):
            numbers = pa.array(np.arange(shards, shards + group.num_rows))
            writer.write_batch(pa.record_batch([numbers, *group.columns], schema=schema), row_group_size=SHARDS_A_GROUP)
            shards += group.num_rows
            samples += pc.sum(group.column("samples")).as_py()
            sizes = group.column("bytes")
            total = None if total is None or sizes.null_count else total + pc.sum(sizes).as_py()
            if on_progress:
                on_progress(samples)
        values = asdict(info) | {"shards": shards, "samples": samples, "bytes": total}
        writer.add_key_value_metadata({METADATA_KEY: json.dumps(values)})


def _groups(source: Source, info: PlanInfo) -> Iterator[pa.RecordBatch]:
    """Runs of SHARDS_A_GROUP shards (the last one may be shorter): columns samples, bytes, members."""
    pending: list[pa.RecordBatch] = []
    waiting = 0
    for batch in source.samples(info.limit):
        pending.append(batch)
        waiting += batch.num_rows
        if waiting > SHARDS_A_GROUP * info.shard_size:
            table = pa.concat_batches(pending)
            bounds = cut(table.column("size"), info.shard_size, info.shard_bytes)
            # Where the last shard ends is known only when the sample after it is.
            full = (len(bounds) - 2) // SHARDS_A_GROUP * SHARDS_A_GROUP
            for start in range(0, full, SHARDS_A_GROUP):
                yield _shard_rows(table, bounds[start : start + SHARDS_A_GROUP + 1], info.root)
            pending = [table.slice(int(bounds[full]))]
            waiting = pending[0].num_rows
    if waiting:
        table = pa.concat_batches(pending)
        bounds = cut(table.column("size"), info.shard_size, info.shard_bytes)
        for start in range(0, len(bounds) - 1, SHARDS_A_GROUP):
            yield _shard_rows(table, bounds[start : start + SHARDS_A_GROUP + 1], info.root)


def cut(sizes: pa.Array, shard_size: int, shard_bytes: int) -> np.ndarray:
    """Bounds of shards over samples of these sizes (bytes, null unknown): int64, from 0 to the number of samples."""
    known = pc.fill_null(sizes, UNKNOWN_BYTES).to_numpy(zero_copy_only=False)
    ends = np.concatenate([[0], np.cumsum(known, dtype=np.int64)])
    bounds = [0]
    while bounds[-1] < len(known):
        begin = bounds[-1]
        by_bytes = int(np.searchsorted(ends, ends[begin] + shard_bytes, side="right")) - 1
        bounds.append(min(len(known), begin + shard_size, max(by_bytes, begin + 1)))
    return np.array(bounds, np.int64)


def _shard_rows(table: pa.RecordBatch, bounds: np.ndarray, root: str) -> pa.RecordBatch:
    begin, end = int(bounds[0]), int(bounds[-1])
    table = table.slice(begin, end - begin)
    keys, uris, sizes, etags, *focals = table.columns
    implied = pc.equal(uris, pc.binary_join_element_wise(pa.scalar(join(root, "")), keys, ""))
    stored_uris = pc.if_else(implied, pa.scalar(None, pa.string()), uris)
    fields = [*_STORED_MEMBER, *([FOCAL] if focals else [])]
    members = pa.StructArray.from_arrays([keys, stored_uris, sizes, etags, *focals], fields=fields)
    offsets = pa.array(bounds - begin, pa.int32())
    known = pc.fill_null(sizes, 0).to_numpy(zero_copy_only=False)
    unknown = np.add.reduceat(pc.is_null(sizes).to_numpy(zero_copy_only=False).astype(np.int64), bounds[:-1] - begin)
    return pa.record_batch(
        {
            "samples": pa.array(np.diff(bounds)),
            "bytes": pa.array(np.add.reduceat(known, bounds[:-1] - begin), mask=unknown > 0),
            "members": pa.ListArray.from_arrays(
                offsets, members, type=pa.list_(pa.field("element", members.type, nullable=False))
            ),
        }
    )


def _packed(members: pa.StructArray) -> bytes:
    sink = pa.BufferOutputStream()
    # Through a take, since a slice's offset would bring the whole row group along.
    batch = pa.RecordBatch.from_struct_array(members.take(pa.array(np.arange(len(members)))))
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _shard_numbers(keys: pa.StringArray, folder: str) -> np.ndarray:
    """Shard numbers of the keys that are commits of this folder; other keys are passed over."""
    names = pc.utf8_slice_codeunits(keys, len(folder) + 1)
    commits = names.filter(pc.match_substring_regex(names, r"^[0-9]{8,18}\.parquet$"))
    return pc.utf8_slice_codeunits(commits, 0, -len(".parquet")).cast(pa.int64()).to_numpy(zero_copy_only=False)


def no_images(source: Source) -> UserError:
    """What to say of a source without samples."""
    looked = " ".join(sorted(IMAGE_SUFFIXES)) if source.kind == "prefix" else "rows"
    return UserError(f"no images under {source.url}; looked for {looked}")


def list_plans(store: Store) -> list[Plan]:
    """The dataset's plans, oldest first."""
    names = [key.rpartition("/")[2] for batch in store.list("plans") for key in batch["key"].to_pylist()]
    plans = [Plan(store, name.removesuffix(".parquet")) for name in names if name.endswith(".parquet")]
    return sorted(plans, key=lambda plan: (plan.info.created, plan.id))
