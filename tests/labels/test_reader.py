"""`open_labels` reads both formats alike: one range GET a label, checked, from any thread or process."""

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import da2ray
from da2ray.errors import UserError
from da2ray.labels.commits import commit_shard
from da2ray.labels.dataset import create_or_open
from da2ray.labels.schema import INDEX
from da2ray.labels.shards.formats import build_shard
from da2ray.labels.snapshots import create_snapshot
from da2ray.storage import open_store
from tests.labels.samples import FINGERPRINT, info, mixed


def dataset(path: Path, shard_format: str = "parquet") -> list[np.ndarray | None]:
    """Three shards of seven samples; returns the maps they were made of."""
    store = open_store(str(path))
    create_or_open(store, info(format=shard_format))
    originals = []
    for shard in range(3):
        rows, qs, maps = mixed(shard=shard)
        commit_shard(store, "p", shard, build_shard(rows, qs, shard_format), FINGERPRINT)
        originals += maps
    create_snapshot(store, ["p"], FINGERPRINT)
    return originals


@pytest.mark.parametrize("shard_format", ["parquet", "zarr"])
def test_both_formats_read_alike(tmp_path: Path, shard_format: str) -> None:
    originals = dataset(tmp_path, shard_format)
    labels = da2ray.open_labels(str(tmp_path))
    assert len(labels) == len(originals) == 21
    assert labels.index.schema.equals(INDEX)
    assert labels.index.num_rows == 21
    for label, original in zip(labels, originals, strict=True):
        if original is None:
            assert (label.depth, label.kind, label.mask, label.scores) == (None, None, None, {})
            assert (label.status, label.reason) in {("rejected", "too_small"), ("failed", "truncated")}
            continue
        assert (label.status, label.reason, label.kind) == ("labelled", None, "disparity")
        assert label.depth.dtype == np.float32
        assert np.abs(label.depth - original).max() <= np.ptp(original) / 4095 / 2 + 1e-6
        assert label.size == (80, 100)
        assert label.scores == {"depth_min": pytest.approx(original.min()), "zero_share": 0}


def test_formats_yield_equal_values(tmp_path: Path) -> None:
    for shard_format in ("parquet", "zarr"):
        dataset(tmp_path / shard_format, shard_format)
    pair = [da2ray.open_labels(str(tmp_path / shard_format)) for shard_format in ("parquet", "zarr")]
    for one, other in zip(*pair, strict=True):
        assert one.key == other.key
        np.testing.assert_array_equal(one.depth, other.depth)


def test_it_is_a_sequence(tmp_path: Path) -> None:
    dataset(tmp_path)
    labels = da2ray.open_labels(str(tmp_path))
    assert labels[-1].key == labels[20].key == "2/6.jpg"
    assert [label.key for label in labels[5:9]] == [f"0/{i}.jpg" for i in (5, 6)] + [f"1/{i}.jpg" for i in (0, 1)]
    assert labels[30:] == []
    for outside in (21, -22):
        with pytest.raises(IndexError, match="of 21"):
            labels[outside]
    assert labels.by_key("1/3.jpg").uri == "/images/1/3.jpg"
    with pytest.raises(KeyError):
        labels.by_key("unheard of")
    iterator = iter(labels)
    assert next(iterator).key == "0/0.jpg"
    del iterator  # stopping half-way neither hangs nor raises
    assert "21 labels" in repr(labels)


def test_it_can_be_pickled_and_shared_by_threads(tmp_path: Path) -> None:
    dataset(tmp_path)
    labels = da2ray.open_labels(str(tmp_path))
    expected = [label.depth for label in labels]
    copy = pickle.loads(pickle.dumps(labels))  # noqa: S301 - our own bytes
    with ThreadPoolExecutor(8) as pool:
        for wanted, label in zip(expected * 5, pool.map(copy.__getitem__, list(range(21)) * 5), strict=True):
            np.testing.assert_array_equal(label.depth, wanted)
    assert len(pickle.dumps(labels)) < 5_000  # the loaded index stays behind


def test_an_older_snapshot_stays_readable(tmp_path: Path) -> None:
    dataset(tmp_path)
    store = open_store(str(tmp_path))
    rows, qs, _ = mixed(shard=3)
    commit_shard(store, "p", 3, build_shard(rows, qs, "parquet"), FINGERPRINT)
    create_snapshot(store, ["p"], FINGERPRINT)
    assert [len(da2ray.open_labels(str(tmp_path), snapshot=number)) for number in (1, 2, None)] == [21, 28, 28]


@pytest.mark.parametrize("shard_format", ["parquet", "zarr"])
def test_a_flipped_bit_is_noticed_and_named(tmp_path: Path, shard_format: str) -> None:
    dataset(tmp_path, shard_format)
    labels = da2ray.open_labels(str(tmp_path))
    row = labels.index.slice(1, 1).to_pylist()[0]
    path = tmp_path / row["object"]
    data = bytearray(path.read_bytes())
    data[row["byte_offset"] + row["byte_length"] // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match=rf"{row['object']}.*{row['key']}.*da2ray verify"):
        labels[1]
    assert labels[2].depth is not None


def test_an_error_about_a_missing_part_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no dataset"):
        da2ray.open_labels(str(tmp_path / "nothing"))
    create_or_open(open_store(str(tmp_path)), info())
    with pytest.raises(UserError, match=r"da2ray snapshots .* --create"):
        da2ray.open_labels(str(tmp_path))
    create_snapshot(open_store(str(tmp_path)), [], FINGERPRINT)
    empty = da2ray.open_labels(str(tmp_path))
    assert list(empty) == []
    assert empty.index.schema.equals(INDEX)


def test_importing_the_package_stays_light() -> None:
    code = (
        "import sys, da2ray; print(da2ray.__version__, sorted({'torch', 'pyarrow', 'numpy', 'ray'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split(maxsplit=1)[1].strip() == "[]"
