"""Each score is declared once. FORMAT.md's table repeats the declaration, and the index has its columns in that order."""

from itertools import groupby
from pathlib import Path

import da2ray
from da2ray.labels import schema
from da2ray.labels.scores import SCORES, Bad, Group, Score

FORMAT = (Path(da2ray.__file__).parent / "labels" / "FORMAT.md").read_text()


def table_row(score: Score) -> str:
    cells = (f"`{score.name}`", score.group, score.meaning, score.unit, score.bad or "", score.option or "")
    return f"| {' | '.join(cells)} |"


def test_the_table_of_scores_in_format_md_is_the_declaration() -> None:
    rows = [line for line in FORMAT.splitlines() if line.startswith("| `") and line.count(" | ") == 5]
    assert rows == [table_row(score) for score in SCORES.values()]


def test_scores_of_a_group_stand_together_in_the_index_and_no_name_is_declared_twice() -> None:
    assert [group for group, _ in groupby(score.group for score in SCORES.values())] == list(Group)
    columns = [name for name in schema.INDEX.names if name in SCORES]
    assert columns == schema.SCORE_COLUMNS.names == list(SCORES)
    assert len(schema.SCORE_COLUMNS) == 28


def test_disagreement_is_bad_where_it_is_high_and_confidence_where_it_is_low() -> None:
    disagreement = [name for name in SCORES if name.startswith(("flip_", "scale_", "checker_"))]
    assert len(disagreement) == 6
    assert {SCORES[name].bad for name in disagreement} == {Bad.HIGH}
    assert SCORES["confidence_mean"].bad is Bad.LOW


def test_scores_that_cost_a_pass_more_name_the_option_that_measures_them() -> None:
    optional = {name for name, score in SCORES.items() if score.option}
    assert optional == set(schema.CONSISTENCY_SCORES.names)
