"""Snapshots whose labelled rows have the scores that a test gives them."""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from da2ray.errors import Reason
from da2ray.labels.commits import commit_shard
from da2ray.labels.dataset import create_or_open
from da2ray.labels.schema import INDEX
from da2ray.labels.shards.formats import build_shard
from da2ray.labels.snapshots import Snapshot, create_snapshot
from da2ray.storage import Store
from tests.labels.samples import FINGERPRINT, content, info

SHARD = 1024
"""Shard numbers are multiples of this, so that every shard gets its own index part."""


def snapshot_of(store: Store, scores: Mapping[str, Sequence[object]], shards: int = 1) -> Snapshot:
    """Make a snapshot with one labelled row for each value of the columns, in order.

    Each shard begins with a rejected and a failed row. Labelled keys are `0000.jpg`, `0001.jpg`, ... by the values' numbers.
    """
    create_or_open(store, info())
    count = len(next(iter(scores.values())))
    for number in range(shards):
        places = range(count * number // shards, count * (number + 1) // shards)
        keys = [f"rejected-{number}.jpg", f"failed-{number}.jpg", *(f"{place:04d}.jpg" for place in places)]
        rows, qs, _ = content(keys, shard=number * SHARD, unlabelled={0: Reason.TOO_SMALL, 1: Reason.TRUNCATED})
        for name, values in scores.items():
            field = INDEX.field(name)
            column = pa.array([None, None, *(values[place] for place in places)], field.type)
            if name in ("width", "height"):
                column = column.fill_null(1)
            rows = rows.set_column(INDEX.names.index(name), field, column)
        commit_shard(store, "p", number * SHARD, build_shard(rows, qs, "parquet"), FINGERPRINT)
    return create_snapshot(store, ["p"], FINGERPRINT)
