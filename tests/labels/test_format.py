"""FORMAT.md matches the code: its examples decode, and its tables name every column and field."""

import re
from pathlib import Path
from typing import Any

import numcodecs.blosc
import numpy as np
import pytest
import zstandard

import da2ray
from da2ray.labels.dataset import CreatedBy, DatasetInfo
from da2ray.labels.kept_rows import KEPT
from da2ray.labels.runs import RunProgress, ShardCounts
from da2ray.labels.schema import INDEX
from da2ray.labels.shards.formats import build_shard
from da2ray.labels.views import Dedupe, Rule, View
from tests.labels.samples import mixed

TEXT = (Path(da2ray.__file__).parent / "labels" / "FORMAT.md").read_text()
VIEW = [*View.model_fields, *Rule.model_fields, *Dedupe.model_fields, *KEPT.names]
RUN = [*RunProgress.model_fields, *ShardCounts.model_fields]
EXAMPLES = dict(zip(("parquet", "zarr"), re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)[:2], strict=True))


@pytest.mark.parametrize("shard_format", EXAMPLES)
def test_the_example_decodes_a_label(shard_format: str) -> None:
    rows, qs, originals = mixed()
    shard = build_shard(rows, qs, shard_format)
    row = shard.rows.slice(1, 1).to_pylist()[0]
    value = shard.data[row["byte_offset"] :][: row["byte_length"]]
    names: dict[str, Any] = {
        "np": np,
        "zstandard": zstandard,
        "numcodecs": numcodecs,
        "row": row,
        "data": value,
        "chunk": value,
    }
    exec(EXAMPLES[shard_format], names)  # noqa: S102 - our own documentation
    assert names["depth"].dtype == np.float32
    assert np.abs(names["depth"] - originals[1]).max() <= row["scale"] / 2 + 1e-6


def test_every_column_and_field_is_described() -> None:
    for name in [*INDEX.names, *DatasetInfo.model_fields, *CreatedBy.model_fields, *VIEW, *RUN]:
        assert f"`{name}`" in TEXT, name
