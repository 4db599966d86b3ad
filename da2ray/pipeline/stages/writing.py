"""The write stage: turns a shard's labelled micro-batches into a stored, committed shard.

`assemble` and its siblings bring index rows, depth, masks and far maps into the plan's order. `Writing.write` builds the shard
of them, writes its object, and commits it last (invariant 2).
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from da2ray.errors import Status
from da2ray.labels.commits import Update, commit_shard
from da2ray.labels.schema import INDEX, NUMBERS
from da2ray.labels.shards.base import Masks, ShardFormat
from da2ray.labels.shards.formats import build_shard
from da2ray.pipeline.stages.batches import SAMPLE_FIELDS, binary_value, unpacked_update
from da2ray.sources.base import Extent
from da2ray.storage import Store


class IncompleteShardError(RuntimeError):
    """A block does not hold exactly the samples that the plan gives its shard; it is never committed (invariant 1)."""


@dataclass(frozen=True, slots=True)
class Written:
    """A committed shard: how many samples have each status and each reason, and the bytes of its object."""

    shard: int
    statuses: dict[str, int]
    reasons: dict[str, int]
    bytes_out: int


@dataclass(frozen=True, slots=True)
class Writing:
    """How labelled micro-batches become a shard. Picklable.

    Attributes:
        store: the dataset.
        plan, format, kind, fingerprint: of the shards.
        mask_bits: bits of a stored confidence value.
        camera: the source of focal lengths that only the teacher gave: "assumed" or "predicted".
    """

    store: Store
    plan: str
    format: ShardFormat
    kind: str
    fingerprint: str
    mask_bits: int
    camera: str | None

    def write(self, block: pa.Table) -> Written:
        """Write and commit the shard whose micro-batches are the rows of `block`, a `LABELLED` table.

        Raises:
            IncompleteShardError: the block does not hold exactly the shard's samples.
            OSError: the store failed.
        """
        shard = block["shard"][0].as_py()
        rows, depths = assemble(block, plan=self.plan, kind=self.kind, fingerprint=self.fingerprint, camera=self.camera)
        built = build_shard(rows, depths, self.format, masks_of(block, self.mask_bits), far_of(block))
        stated = block["extent"][0].as_py()
        extent = None if stated is None else Extent(**json.loads(stated))
        commit_shard(self.store, self.plan, shard, built, self.fingerprint, extent, self._update(block, shard))
        statuses = Counter(built.rows["status"].to_pylist())
        reasons = Counter(pc.drop_null(built.rows["reason"]).to_pylist())
        return Written(shard, dict(statuses), dict(reasons), len(built.data))

    def _update(self, block: pa.Table, shard: int) -> Update | None:
        """What the shard changes in a snapshot; kept rows get their place in this plan."""
        update = unpacked_update(block)
        if update is None:
            return None
        kept = update.kept
        for name, value in (("plan", self.plan), ("shard", shard)):
            column = pa.repeat(pa.scalar(value, INDEX.field(name).type), len(kept))
            kept = kept.set_column(INDEX.get_field_index(name), INDEX.field(name), column)
        return replace(update, kept=kept)


def assemble(
    block: pa.Table, *, plan: str, kind: str, fingerprint: str, camera: str | None = None
) -> tuple[pa.Table, list[np.ndarray | None]]:
    """The index rows of a shard, in the plan's order, and the uint16 (height, width) depth map of each, None if it has none.

    Args:
        block: a `LABELLED` table that holds all micro-batches of one shard.
        plan, kind, fingerprint: of the shard.
        camera: the source of focal lengths that only the teacher gave: "assumed" or "predicted".

    Raises:
        IncompleteShardError: rows are missing, doubled, or of more than one shard.
    """
    shards, planned = pc.unique(block["shard"]).to_pylist(), pc.unique(block["planned"]).to_pylist()
    samples = _flat(block, "samples")
    rows = np.asarray(samples.field("row"))
    if len(shards) != 1 or len(planned) != 1 or not np.array_equal(np.sort(rows), np.arange(planned[0])):
        raise IncompleteShardError(f"plan {plan}, shard {shards}: {len(rows)} samples arrived, {planned} were planned")

    reasons, scales, offsets = _flat(block, "reasons"), _flat(block, "scales"), _flat(block, "offsets")
    numbers = _flat(block, "numbers")
    columns: dict[str, pa.Array] = {name: samples.field(name) for name in SAMPLE_FIELDS}
    failed = pc.is_valid(reasons)
    columns["status"] = pc.if_else(failed, Status.FAILED.value, columns["status"])
    columns["reason"] = pc.coalesce(reasons, columns["reason"])
    columns["message"] = pc.coalesce(_flat(block, "messages"), columns["message"])
    labelled = pc.equal(columns["status"], Status.LABELLED.value)
    columns |= {name: pc.if_else(labelled, numbers.field(name), None) for name in NUMBERS.names if name != "focal"}
    # A map that failed for its values keeps the share of values that are not finite.
    columns["nonfinite_share"] = numbers.field("nonfinite_share")
    columns["phash"] = pc.if_else(labelled, _flat(block, "phashes"), None)
    predicted = pc.if_else(labelled, numbers.field("focal"), None)
    source = pc.if_else(pc.is_valid(predicted), pa.scalar(camera, pa.string()), pa.scalar(None, pa.string()))
    columns["focal"] = pc.coalesce(samples.field("focal"), predicted)
    columns["focal_source"] = pc.coalesce(samples.field("focal_source"), source)
    columns["mask_source"] = pc.if_else(labelled, _flat(block, "mask_sources"), None)
    columns |= {"scale": pc.if_else(labelled, scales, None), "offset": pc.if_else(labelled, offsets, None)}
    columns["kind"] = pc.if_else(labelled, kind, None)
    count = len(rows)
    columns |= {
        "plan": pa.repeat(plan, count),
        "shard": pa.repeat(shards[0], count),
        "fingerprint": pa.repeat(fingerprint, count),
    }
    for name in INDEX.names:
        columns.setdefault(name, pa.nulls(count, INDEX.field(name).type))
    order = _order(block)
    table = pa.table({name: columns[name].cast(INDEX.field(name).type) for name in INDEX.names}).take(pa.array(order))
    maps = _maps(block, "depths", np.uint16)
    keep = np.asarray(labelled)
    # The schema is set last: `object` and the byte ranges are filled when the shard is built.
    return table.cast(INDEX), [maps[i] if keep[i] else None for i in order]


def masks_of(block: pa.Table, bits: int) -> Masks:
    """The masks of a shard's rows, in the plan's order. `bits`: bits of a level."""
    sources, errors = _flat(block, "mask_sources").to_pylist(), _flat(block, "reasons").to_pylist()
    levels = _maps(block, "masks", np.uint8)
    return Masks(bits, [levels[i] if sources[i] and not errors[i] else None for i in _order(block)])


def far_of(block: pa.Table) -> list[np.ndarray | None]:
    """The far maps of a shard's rows, in the plan's order: bool (height, width), None if no pixel is far."""
    failed = pc.is_valid(_flat(block, "reasons")).to_pylist()
    found: list[np.ndarray | None] = []
    for (packed, (height, width)), none in zip(_values(block, "fars", np.uint8), failed, strict=True):
        far = None
        if packed is not None and not none:
            far = np.unpackbits(packed, count=height * width, bitorder="little").view(bool).reshape(height, width)
        found.append(far if far is not None and far.any() else None)
    return [found[i] for i in _order(block)]


def _order(block: pa.Table) -> np.ndarray:
    """The places in the block of the shard's samples, in the plan's order."""
    return np.argsort(np.asarray(_flat(block, "samples").field("row")))


def _flat(block: pa.Table, name: str) -> pa.Array:
    values = block[name].combine_chunks().flatten()
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def _maps(block: pa.Table, name: str, dtype: type[np.uint16 | np.uint8]) -> list[np.ndarray | None]:
    """Views of each sample's map in the micro-batches' buffers, in the order of the block."""
    found = _values(block, name, dtype)
    return [None if values is None else values.reshape(size) for values, size in found]


def _values(
    block: pa.Table, name: str, dtype: type[np.uint16 | np.uint8]
) -> Iterator[tuple[np.ndarray | None, tuple[int, int]]]:
    """Each sample's part of its micro-batch's buffer (1-D, None if empty), and the (height, width) of its maps, in the order of
    the block.
    """
    for index in range(block.num_rows):
        row = block.slice(index, 1)
        samples = row["samples"].chunk(0)[0].values
        if not len(samples):
            continue
        size = samples.field("network_height")[0].as_py(), samples.field("network_width")[0].as_py()
        values = np.frombuffer(binary_value(row, name), dtype=dtype)
        each: Iterable[np.ndarray | None] = values.reshape(len(samples), -1) if len(values) else [None] * len(samples)
        yield from ((part, size) for part in each)
