"""A report describes the whole index, although it reads one part at a time."""

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

import da2ray
from da2ray.labels import fold
from da2ray.labels.commits import commit_shard
from da2ray.labels.dataset import create_or_open
from da2ray.labels.reader import Labels
from da2ray.labels.schema import INDEX
from da2ray.labels.shards.formats import build_shard
from da2ray.labels.snapshots import create_snapshot
from da2ray.report.survey import survey
from da2ray.report.thresholds import Threshold, thresholds_of
from da2ray.storage import open_store
from tests.labels.samples import FINGERPRINT, info, mixed

PARTS = 6


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Labels:
    """42 rows in six parts. Some have no `blur`, and many have the same `dark_share`."""
    folder = tmp_path_factory.mktemp("labels")
    store = open_store(str(folder))
    create_or_open(store, info())
    random = np.random.default_rng(0)
    for shard in range(PARTS):
        rows, qs, _ = mixed(shard=shard)
        made = rows.to_pylist()
        for row in made:
            if row["status"] == "labelled":
                row["blur"] = None if random.random() < 0.2 else float(random.lognormal(3, 1))
                row["dark_share"] = float(random.random() < 0.1)
            row["aspect"] = 1.5  # a score of the file: a row without a label may have it too
        table = pa.Table.from_pylist(made, schema=INDEX)
        commit_shard(store, "p", shard, build_shard(table, qs, "parquet"), FINGERPRINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fold, "SHARDS_PER_PART", 1)
        assert len(create_snapshot(store, ["p"], FINGERPRINT).parts) == PARTS
    return da2ray.open_labels(str(folder))


def test_distributions_are_those_of_all_labelled_rows(labels: Labels) -> None:
    index = labels.index
    rows = [row for row in index.to_pylist() if row["status"] == "labelled"]
    found = {each.score.name: each for each in survey(labels.store, labels.snapshot, [], 3).distributions}
    assert set(found) == {"aspect", "blur", "dark_share", "depth_min", "zero_share"}
    for name, each in found.items():
        values = [row[name] for row in rows if row[name] is not None]
        assert each.measured == each.counts.sum() == len(values)
        assert (each.least, each.most) == (min(values), max(values))
        assert each.percentile(50) == pytest.approx(np.median(values))
    assert found["blur"].measured < len(rows) == found["aspect"].measured < len(index)


def test_the_gallery_shows_the_extreme_rows_of_each_score(labels: Labels) -> None:
    index = labels.index
    found = survey(labels.store, labels.snapshot, [], 3)
    (blur,) = (each for each in found.distributions if each.score.name == "blur")
    order = sorted((value, at) for at, value in enumerate(index["blur"].to_pylist()) if value is not None)
    assert blur.lowest == tuple(at for _, at in order[:3])
    assert blur.highest == tuple(at for _, at in reversed(order[-3:]))
    assert all(found.rows[at]["key"] == index["key"][at].as_py() for at in (*blur.lowest, *found.random))
    assert {index["status"][at].as_py() for at in found.random} == {"labelled"}


def test_rows_chosen_among_many_equal_ones_are_not_neighbours(labels: Labels) -> None:
    (dark,) = (
        each for each in survey(labels.store, labels.snapshot, [], 4).distributions if each.score.name == "dark_share"
    )
    values = labels.index["dark_share"].to_pylist()
    assert {values[at] for at in dark.lowest} == {0.0}
    assert len({at // 7 for at in dark.lowest}) > 1  # from several shards


def test_thresholds_remove_exactly_the_rows_that_break_them_and_never_unmeasured_ones(labels: Labels) -> None:
    lines = [Threshold("sharp", "blur", ">", 20.0), Threshold("lit", "dark_share", "<", 1.0)]
    found = survey(labels.store, labels.snapshot, lines, 1)
    rows = [row for row in labels.index.to_pylist() if row["status"] == "labelled"]
    blurred = [row["blur"] is not None and not row["blur"] > 20 for row in rows]
    dark = [not row["dark_share"] < 1 for row in rows]
    assert {line.rule: count for each in found.distributions for line, count in each.removed} == {
        "sharp": sum(blurred),
        "lit": sum(dark),
    }
    for each in found.distributions:
        assert each.removed_counts.sum() == max((count for _, count in each.removed), default=0)
        assert (each.removed_counts <= each.counts).all()
    assert any(row["blur"] is None for row in rows)


def test_each_reason_has_five_examples_at_most(labels: Labels) -> None:
    rows = survey(labels.store, labels.snapshot, [], 1).examples
    assert {reason: len(positions) for reason, positions in rows.items()} == {"too_small": 5, "truncated": 5}


def test_rules_that_compare_one_score_with_a_number_are_lines() -> None:
    lines = thresholds_of(
        [
            ("a", "flip_p90 < 0.08"),
            ("b", "blur > 20 AND brightness<=.9"),
            ("c", "blur > 2 OR blur IS NULL"),
            ("d", "width > 9"),
            ("e", "20.5 >= Blur -- turned round"),
            ("f", "NOT blur < 1"),
            ("g", "blur < 'x AND blur < 3'"),
            ("h", "blur <"),  # not a valid rule, as a damaged view may hold
        ]
    )
    assert [str(line) for line in lines] == ["flip_p90 < 0.08", "blur > 20", "brightness <= 0.9", "blur <= 20.5"]


@pytest.mark.parametrize(("operator", "removed"), [("<", [2, 3]), ("<=", [3]), (">", [1, 2]), (">=", [1])])
def test_a_threshold_keeps_where_its_comparison_is_true(operator: str, removed: list[int]) -> None:
    values = np.array([np.nan, 1, 2, 3], np.float32)
    assert np.flatnonzero(Threshold("r", "blur", operator, 2.0).removes(values)).tolist() == removed


@pytest.mark.parametrize("number", ["0.1", "1e-1", ".3", "16777217", "0.0812345678", "-0.7", "2.5e1", "25"])
@pytest.mark.parametrize("operator", ["<", "<=", ">", ">="])
def test_a_row_exactly_at_a_threshold_is_removed_if_duckdb_removes_it(operator: str, number: str) -> None:
    at = np.float32(number)
    values = np.array([np.nextafter(at, np.float32(-np.inf)), at, np.nextafter(at, np.float32(np.inf))], np.float32)
    ((line,),) = [thresholds_of([("r", f"blur {operator} {number}")])]
    with duckdb.connect() as connection:
        connection.register("given", pa.table({"blur": values}))
        removed = connection.sql("FROM given").project(f"(blur {operator} {number}) IS FALSE").fetchall()
    assert line.removes(values).tolist() == [each for (each,) in removed]


def test_a_dataset_without_scores_has_no_distributions(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    create_or_open(store, info())
    snapshot = create_snapshot(store, ["p"], FINGERPRINT)
    found = survey(store, snapshot, [], 4)
    assert (found.distributions, found.random, found.rows) == ((), (), {})
