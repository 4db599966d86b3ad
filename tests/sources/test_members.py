"""A shard's specification gives back the members that it was made of, with unknown sizes and versions too."""

import pyarrow as pa
import pytest

from da2ray.sources.base import Cut
from da2ray.sources.members import MEMBERS, cut_members, pack, unpack

ROOT = "s3://bucket/photos"
ROWS = [
    {"key": "a.jpg", "uri": f"{ROOT}/a.jpg", "size": 7, "etag": "e", "focal": None, "version": "v"},
    {
        "key": "straße/日本.jpg",
        "uri": f"{ROOT}/straße/日本.jpg",
        "size": None,
        "etag": None,
        "focal": 512.5,
        "version": None,
    },
    {"key": "b\n\0.jpg", "uri": "https://example.com/b.jpg", "size": 1 << 40, "etag": "", "focal": None, "version": ""},
    {"key": "", "uri": "c", "size": 0, "etag": 'W/"1"', "focal": 1.0, "version": None},
] * 3
MEMBERS_OF_ROWS = pa.RecordBatch.from_pylist(ROWS, schema=MEMBERS)


@pytest.mark.parametrize("start", range(5))
@pytest.mark.parametrize("number", [0, 1, 4, 7])
def test_a_specification_holds_every_field_of_every_member(start: int, number: int) -> None:
    # A slice shares buffers with the batch that it is cut from.
    members = MEMBERS_OF_ROWS.slice(start, number)
    found = unpack(pack(members, ROOT), ROOT)
    found.validate(full=True)
    assert found.equals(members)


def test_shards_cut_from_a_listing_hold_its_members_in_order() -> None:
    batches = [MEMBERS_OF_ROWS.slice(at, 5) for at in range(0, len(ROWS), 5)]
    shards = [
        row for batch in cut_members(batches, Cut(shard_size=5, shard_bytes=1 << 50), ROOT) for row in batch.to_pylist()
    ]
    assert [shard["samples"] for shard in shards] == [5, 5, 2]
    assert [row for shard in shards for row in unpack(shard["spec"], ROOT).to_pylist()] == ROWS
