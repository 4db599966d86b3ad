"""Rules: what they remove, what they never remove, what a percentile is, and what an expression may not do."""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pytest

from da2ray.errors import UserError
from da2ray.labels.schema import INDEX
from da2ray.quality.catalog import open_catalog
from da2ray.quality.filters import Effect, Rule, apply, bind, resolve
from da2ray.storage import open_store
from tests.quality.snapshots import snapshot_of

BLUR = [5.0, 15.0, None, 25.0, 35.0, 45.0, float("nan"), 55.0]
FLIP = [0.01, 0.20, 0.03, 0.04, None, 0.30, 0.05, 0.06]
PER_SHARD = 4
AHEAD = 2
"""Rows without a label at the beginning of each shard."""


def position(label: int) -> int:
    """Position of a column's n-th value in the index of the snapshot."""
    return label + AHEAD * (label // PER_SHARD + 1)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    store = open_store(str(tmp_path))
    snapshot = snapshot_of(store, {"blur": BLUR, "flip_p90": FLIP, "far_share": [0.0] * len(BLUR)}, shards=2)
    assert len(snapshot.parts) == 2
    with open_catalog(store, snapshot, INDEX.names) as connection:
        yield connection


def effects(catalog: duckdb.DuckDBPyConnection, *wheres: str) -> tuple[list[Effect], list[int]]:
    """The effects of rules, and the numbers of the values that are kept."""
    rules, _ = resolve(catalog, bind(Rule(f"{number}", where) for number, where in enumerate(wheres)), skip=False)
    found = apply(catalog, rules)
    places = [position(label) for label in range(len(BLUR))]
    rows = [row for (row,) in catalog.execute("SELECT row FROM kept ORDER BY row").fetchall()]
    assert set(rows) <= set(places)  # a row without a label is never kept
    return found, [places.index(row) for row in rows]


def test_a_rule_removes_a_row_if_it_is_false_and_never_if_a_score_is_missing(
    catalog: duckdb.DuckDBPyConnection,
) -> None:
    assert effects(catalog, "blur > 20") == ([Effect(2, 2, 6)], [2, 3, 4, 5, 6, 7])


def test_effects_count_a_rule_by_itself_its_rows_alone_and_all_rules_before_it(
    catalog: duckdb.DuckDBPyConnection,
) -> None:
    found, kept = effects(catalog, "blur > 20", "flip_p90 < 0.1", "blur < 50 -- a comment")
    assert found == [Effect(2, 1, 6), Effect(2, 1, 5), Effect(1, 1, 4)]
    assert kept == [2, 3, 4, 6]


def test_and_or_and_null_are_those_of_sql(catalog: duckdb.DuckDBPyConnection) -> None:
    # Row 4 has no flip_p90 and enough blur, so its result is NULL. Row 2 has no blur, and its flip_p90 decides.
    assert effects(catalog, "flip_p90 < 0.035 AND blur > 1")[1] == [0, 2, 4]


def test_without_rules_all_labelled_rows_are_kept(catalog: duckdb.DuckDBPyConnection) -> None:
    assert effects(catalog) == ([], list(range(len(BLUR))))


@pytest.mark.parametrize("percent", ["0", "5", "37.5", "50", "99.5", "100"])
@pytest.mark.parametrize(("word", "compare"), [("below", np.less), ("ABOVE", np.greater)])
def test_a_percentile_is_that_of_numpy_over_labelled_rows_with_a_value(
    catalog: duckdb.DuckDBPyConnection, percent: str, word: str, compare: np.ufunc
) -> None:
    values = np.array([np.nan if value is None else value for value in BLUR], np.float32)
    threshold = np.percentile(values[~np.isnan(values)].astype(float), float(percent))
    rules, _ = resolve(catalog, bind([Rule("tail", f"Blur {word} p{percent}")]), skip=False)
    assert rules[0].resolved == f"blur {'<' if word == 'below' else '>'} {threshold:.9g}"
    kept = np.flatnonzero(compare(values, threshold) | np.isnan(values))
    assert effects(catalog, f"Blur {word} p{percent}")[1] == kept.tolist()


@pytest.mark.parametrize("scale", [1e-12, 1e-7, 1.0, 1e7, 1e12])
def test_a_row_exactly_at_a_percentile_is_not_below_it(tmp_path: Path, scale: float) -> None:
    values = (np.random.default_rng(0).random(101) * scale).astype(np.float32)
    store = open_store(str(tmp_path))
    snapshot = snapshot_of(store, {"blur": values.tolist()})
    with open_catalog(store, snapshot, ["blur"]) as connection:
        rules, _ = resolve(connection, bind([Rule("tail", "blur below p95")]), skip=False)
        # An exponent would make the literal a DOUBLE, and rounding would decide about the row at the percentile.
        assert "e" not in rules[0].resolved
        (effect,) = apply(connection, rules)
    assert effect.removes == 6  # P95 of 101 values is one of them


def test_percentiles_stand_anywhere_but_in_literals_and_comments(catalog: duckdb.DuckDBPyConnection) -> None:
    where = (
        """("blur" below P95 OR key = 'it''s blur below p5') AND /* blur below p1 */ flip_p90 above p2.5 """
        "-- flip_p90 below p9"
    )
    ((bound,), _) = resolve(catalog, bind([Rule("several", where)]), skip=False)
    assert bound.columns == ("key", "blur", "flip_p90")
    assert '("blur" < 52' in bound.resolved
    assert "flip_p90 > 0.012999999" in bound.resolved
    for untouched in ("'it''s blur below p5'", "/* blur below p1 */", "-- flip_p90 below p9"):
        assert untouched in bound.resolved


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("flip_p90 <", "is not an expression over the index: Parser Error"),
        ("", "is not an expression over the index"),
        ("flip < 1", "has no column flip\ndid you mean flip_p90"),
        ("xyzzy < 1", "has no column xyzzy\nscores are aspect, jpeg_quality"),
        ("row < 10", "row is a position"),
        ("blur", "is FLOAT, but a rule must be true or false"),
        ("blur + 1", "is FLOAT, but a rule must be true or false"),
        ("blur < avg(blur)", "cannot contain aggregates"),
        ("blur < avg(blur) OVER ()", "cannot contain a window function"),
        ("blur < (SELECT max(blur) FROM labels)", "cannot contain a subquery"),
        ("key IN (SELECT column0 FROM read_csv('/etc/passwd'))", "cannot contain a subquery"),
        ("COLUMNS('blur|flip_p90') > 1", "a rule sees one row at a time"),
        ("blur > 1; DROP TABLE labels", "more than one statement"),
        ("blur > 1) OR (true", "Parser Error"),
        ("blur > 1, blur < 2", "single expression"),
        ("blur > 1 FROM labels", "FROM clause"),
        ("blur > 'many'", "Could not convert string 'many'"),
        ("nosuch(blur)", "nosuch does not exist"),
        ("blur > 9 OR random() < 0.1", "random() changes from run to run"),
        ("abs(blur) below p95", "after a column, such as"),
        ("blur below p101", "a percentile must be p0 to p100; got p101"),
        ("key below p50", "key is string and has no percentiles"),
        ("blurr below p50", "has no column blurr\ndid you mean blur?"),
    ],
)
def test_a_wrong_rule_is_reported_in_two_lines_before_anything_is_read(where: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        bind([Rule("wrong", where)])
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) <= 2


def test_an_expression_that_fails_on_a_row_says_so(catalog: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(
        UserError, match=r"fails on this snapshot: Conversion Error: Could not convert string '0000\.jpg'"
    ):
        effects(catalog, "key::INT > 1")


@pytest.mark.parametrize(
    ("where", "option"),
    [
        ("flip_mean < 1", "--consistency flip"),
        ("scale_p90 below p95", "--consistency scale"),
        ("blur > 1 AND checker_p90 < 1", "--checker NAME"),
        ("metric_residual < 1", "--checker NAME"),
        ("confidence_mean > 0.5", "--consistency flip"),
        ("jpeg_quality > 20", "no image is a JPEG"),
        ("image_entropy > 1", "label again"),
        ("phash <> 0", "label again"),
    ],
)
def test_a_score_that_no_row_has_names_what_measures_it_or_is_skipped(
    catalog: duckdb.DuckDBPyConnection, where: str, option: str
) -> None:
    bound = bind([Rule("needed", where), Rule("there", "blur > 20")])
    with pytest.raises(UserError, match=option) as error:
        resolve(catalog, bound, skip=False)
    assert len(str(error.value).splitlines()) <= 2
    rules, (skipped,) = resolve(catalog, bound, skip=True)
    assert [rule.rule.name for rule in rules] == ["there"]
    assert skipped.name == "needed"
    assert option in skipped.why


def test_a_column_without_values_has_no_percentiles(catalog: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(UserError, match="no labelled row has focal, so it has no percentiles"):
        resolve(catalog, bind([Rule("near", "focal below p50")]), skip=False)


def test_a_column_whose_name_is_a_keyword_of_sql_may_be_quoted(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    snapshot = snapshot_of(store, {"offset": [1.0, 2.0, 3.0]})
    with open_catalog(store, snapshot, ["offset"]) as connection:
        rules, _ = resolve(connection, bind([Rule("far", '"offset" above p50')]), skip=False)
        assert rules[0].resolved == '"offset" > 2'
        assert apply(connection, rules)[0].kept_after == 1


def test_the_error_about_a_full_disk_says_what_to_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("da2ray.quality.catalog.MEMORY", "1MB")
    store = open_store(str(tmp_path))
    snapshot = snapshot_of(store, {"blur": [1.0] * 10})
    with pytest.raises(UserError, match=r"no room below .* set TMPDIR"), open_catalog(store, snapshot, ["blur"]) as one:
        one.execute("CREATE TABLE much AS SELECT range AS number, md5(range::VARCHAR) FROM range(10000000) ORDER BY 2")


def test_rules_may_use_columns_that_are_empty_by_nature(catalog: duckdb.DuckDBPyConnection) -> None:
    assert effects(catalog, "reason IS NULL", "far_share < 0.5")[1] == list(range(len(BLUR)))


@pytest.mark.parametrize(
    "sql",
    ["FROM read_text('/etc/hostname')", "FROM BLUR", "COPY labels TO '/tmp/copy.csv'", "SET memory_limit = '1GB'"],
)
def test_a_catalog_reaches_no_file_no_variable_and_no_setting(catalog: duckdb.DuckDBPyConnection, sql: str) -> None:
    with pytest.raises(duckdb.Error):
        catalog.execute(sql)


def test_a_snapshot_without_labels_has_nothing_to_choose_from(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    snapshot = snapshot_of(store, {"blur": []})
    with pytest.raises(UserError, match=r"snapshot 1 .* has no labelled row"), open_catalog(store, snapshot, ["blur"]):
        pass


def test_a_catalog_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path / "labels"))
    snapshot = snapshot_of(store, {"blur": [1.0]})
    (tmp_path / "it's").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "it's"))
    with open_catalog(store, snapshot, ["blur"]) as connection:
        assert connection.execute("SELECT row, blur FROM labels").fetchall() == [(AHEAD, 1.0)]
        assert list((tmp_path / "it's").iterdir())
    assert not list((tmp_path / "it's").iterdir())


def test_a_score_that_is_the_same_everywhere_has_no_tail_to_remove(tmp_path: Path) -> None:
    """A teacher that labels mirrored images alike has a flip score of 0 in all rows; no row is below its percentile."""
    store = open_store(str(tmp_path))
    snapshot = snapshot_of(store, {"flip_p90": [0.0] * 5})
    bound = bind([Rule("flip", "flip_p90 below p95")])
    with open_catalog(store, snapshot, ["flip_p90"]) as connection:
        with pytest.raises(UserError, match="flip_p90 is 0 in every labelled row"):
            resolve(connection, bound, skip=False)
        rules, (skipped,) = resolve(connection, bound, skip=True)
    assert rules == []
    assert "say nothing" in skipped.why
