"""Values of a Parquet column: those of the rows that are asked for, whatever the pages are like, and few other bytes are read."""

import io
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from da2ray.errors import Reason, SampleError
from da2ray.sources.parquet.footer import read_footer
from da2ray.sources.parquet.pages import BLOCK_BYTES
from da2ray.sources.parquet.thrift import BINARY, I32, I64, LIST, STRUCT, read_struct, write_struct
from da2ray.sources.parquet.values import Value, read_values


class Ranges:
    """Reads ranges of a file in memory, and remembers them."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked: list[tuple[int, int]] = []

    def __call__(self, offset: int, length: int) -> bytes:
        assert 0 <= offset < offset + length <= len(self.data)
        self.asked.append((offset, length))
        return self.data[offset : offset + length]


def written(table: pa.Table, **options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, **options)
    return out.getvalue()


def values(file: Ranges, path: str, rows: Sequence[int], concurrency: int = 1, group: int = 0) -> list[Value]:
    footer = read_footer(file, len(file.data))
    file.asked.clear()
    return list(read_values(footer, file, path, group, np.array(rows), concurrency))


OPTIONS = st.fixed_dictionaries(
    {
        "compression": st.sampled_from(["none", "snappy", "zstd", "gzip", "lz4", "brotli"]),
        "write_page_index": st.booleans(),
        "data_page_size": st.sampled_from([1, 1000, 1 << 20]),
        "data_page_version": st.sampled_from(["1.0", "2.0"]),
        "write_batch_size": st.sampled_from([1, 16, 1024]),
        "write_page_checksum": st.booleans(),
        "row_group_size": st.sampled_from([20, 100, 1 << 20]),
    }
)
ENCODINGS = st.sampled_from(["DICTIONARY", "PLAIN", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"])


@settings(max_examples=60, deadline=None)
@given(OPTIONS, ENCODINGS, st.integers(0, 2), st.integers(1, 250), st.booleans(), st.randoms(use_true_random=False))
def test_the_values_of_any_rows_are_those_that_were_written(
    options: dict[str, Any], encoding: str, depth: int, count: int, with_nulls: bool, chance: random.Random
) -> None:
    pool = [chance.randbytes(chance.choice([0, 3, 400])) for _ in range(chance.choice([1, 30, 200]))]
    bodies: list[bytes | None] = [chance.choice([*pool, None] if with_nulls else pool) for _ in range(count)]
    column = pa.array(bodies, pa.binary())
    path = "v"
    for _ in range(depth):
        mask = pa.array([with_nulls and chance.random() < 0.1 for _ in range(count)])
        column = pa.StructArray.from_arrays([column, pa.array(["x"] * count)], names=["v", "other"], mask=mask)
        bodies = [None if null else body for null, body in zip(mask.to_pylist(), bodies, strict=True)]
        path += ".v"
    nullable = with_nulls or chance.random() < 0.5
    table = pa.table(
        [column, pa.array(range(count))], schema=pa.schema([pa.field("v", column.type, nullable), ("n", pa.int64())])
    )
    coding = (
        {"use_dictionary": True}
        if encoding == "DICTIONARY"
        else {"use_dictionary": False, "column_encoding": {path: encoding}}
    )
    file = Ranges(written(table, **options, **coding))
    footer = read_footer(file, len(file.data))
    for group in range(footer.metadata.num_row_groups):
        first, beyond = footer.starts[group : group + 2].tolist()
        begin = chance.randrange(beyond - first)
        some = sorted(chance.sample(range(beyond - first), chance.randint(1, beyond - first)))
        for rows in (range(beyond - first), range(begin, chance.randint(begin + 1, beyond - first)), some):
            read = list(read_values(footer, file, path, group, np.array(rows), chance.choice([1, 16])))
            assert [each.body for each in read] == [bodies[first + row] for row in rows]
            for each in read:
                if isinstance(each.body, bytes) and each.offset is not None:
                    assert file.data[each.offset : each.offset + len(each.body)] == each.body
            if options["compression"] == "none" and encoding == "PLAIN":
                assert all(each.offset is not None for each in read if each.body is not None)


def pages_of_one(count: int, size: int, **options: Any) -> Ranges:
    """A row group with a page for each value."""
    table = pa.table({"v": pa.array([bytes([number]) * size for number in range(count)], pa.binary())})
    return Ranges(
        written(table, write_batch_size=1, data_page_size=1, use_dictionary=False, compression="none", **options)
    )


def test_one_row_costs_its_own_page_where_the_file_has_an_offset_index() -> None:
    file = pages_of_one(40, 200_000, write_page_index=True)
    (value,) = values(file, "v", [33])
    assert value.body == bytes([33]) * 200_000
    assert len(file.asked) <= 3  # the index, and the page
    assert sum(length for _, length in file.asked) < 210_000


def test_one_row_costs_the_headers_before_its_page_where_the_file_has_no_index() -> None:
    file = pages_of_one(40, 200_000)
    footer = read_footer(file, len(file.data))
    file.asked.clear()
    for row, most in ((33, 34), (35, 3)):  # what was walked over once is known
        (value,) = read_values(footer, file, "v", 0, np.array([row]))
        assert value.body == bytes([row]) * 200_000
        assert len(file.asked) <= most + 1
        assert sum(length for _, length in file.asked) < most * 70_000 + 200_000
        file.asked.clear()


@pytest.mark.parametrize("indexed", [False, True])
def test_a_part_of_a_group_is_read_without_what_lies_beyond(indexed: bool) -> None:
    file = pages_of_one(40, 1 << 20, write_page_index=indexed)
    assert [each.body for each in values(file, "v", range(8, 16), 16)] == [
        bytes([row]) * (1 << 20) for row in range(8, 16)
    ]
    read = sum(length for _, length in file.asked)
    assert read < 9 << 20 if indexed else read < (8 << 20) + 5 * BLOCK_BYTES


def test_without_concurrency_nothing_is_read_ahead() -> None:
    file = pages_of_one(40, 1 << 20)
    footer = read_footer(file, len(file.data))
    file.asked.clear()
    next(iter(read_values(footer, file, "v", 0, np.arange(40), 1)))
    assert sum(length for _, length in file.asked) <= BLOCK_BYTES


def test_a_group_of_more_than_2_gib() -> None:
    count, size = 257, 8 << 20
    table = pa.table({"v": pa.chunked_array([pa.array([bytes(size)], pa.binary())] * count)})
    file = Ranges(written(table, write_batch_size=1, compression="zstd", dictionary_pagesize_limit=16 << 20))
    assert len(file.data) < 1 << 20
    # A dictionary of one value. All values before these are decoded, too: they share a page.
    assert [each.body == bytes(size) for each in values(file, "v", range(count - 2, count))] == [True] * 2


@pytest.mark.parametrize("options", [{"write_page_checksum": True}, {"compression": "snappy"}, {"compression": "zstd"}])
def test_a_damaged_page_costs_its_own_rows(options: dict[str, Any]) -> None:
    bodies = [random.Random(row).randbytes(300) for row in range(20)]  # noqa: S311
    table = pa.table({"v": pa.array(bodies, pa.binary())})
    plain = {"write_batch_size": 4, "data_page_size": 1, "use_dictionary": False, "compression": "none"}
    file = Ranges(written(table, **{**plain, **options}))
    (value,) = values(file, "v", [9])
    at = file.data.index(bodies[9][:50])
    if "write_page_checksum" in options:
        assert value.offset == at
    damaged = bytearray(file.data)
    # Snappy and zstd store these bytes as they are; a length at the start of the page makes them contradict themselves.
    damaged[at - 40 : at] = b"\xff" * 40
    found = values(Ranges(bytes(damaged)), "v", range(20))
    broken = {row for row, each in enumerate(found) if isinstance(each.body, SampleError)}
    assert broken
    assert broken <= set(range(4, 12))
    assert all(each.body.reason is Reason.CORRUPT for each in found if isinstance(each.body, SampleError))
    if "write_page_checksum" in options:
        assert broken == set(range(8, 12))
        assert all(found[row].body == bodies[row] for row in set(range(20)) - broken)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2), st.integers(0), st.binary(min_size=1, max_size=8), st.booleans())
def test_no_damage_crashes_or_makes_rows_of_another_number(kind: int, at: int, patch: bytes, indexed: bool) -> None:
    table = pa.table({"v": pa.array([bytes([row]) * 30 for row in range(60)], pa.binary())})
    options = [
        {"compression": "none", "use_dictionary": False},
        {"compression": "snappy"},
        {"data_page_version": "2.0"},
    ][kind]
    data = bytearray(written(table, data_page_size=100, write_batch_size=5, write_page_index=indexed, **options))
    footer = read_footer(Ranges(bytes(data)), len(data))
    at %= footer.metadata.row_group(0).column(0).total_compressed_size
    data[4 + at : 4 + at + len(patch)] = patch
    for rows in (range(60), range(20, 40), [3, 50]):
        assert len(values(Ranges(bytes(data)), "v", rows)) == len(rows)


def test_structs_are_read_as_they_were_written() -> None:
    fields = [
        (1, I32, -7),
        (2, LIST, (STRUCT, [[(1, BINARY, b"a"), (10, I64, 1 << 40)]] * 20)),
        (3, STRUCT, [(9, LIST, (I32, [1, -1]))]),
    ]
    data = write_struct(fields)
    read, end = read_struct(b"xx" + data, 2)
    assert end == len(data) + 2
    assert read == {1: -7, 2: [{1: b"a", 10: 1 << 40}] * 20, 3: {9: [1, -1]}}
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"early|list of"):
            read_struct(data[:length])
    with pytest.raises(ValueError, match="deep"):
        read_struct(b"\x1c" * 100_000)
