from da2ray.labels import schema
from da2ray.labels.scores import SCORES, Bad


def test_every_score_of_the_index_is_explained_and_none_besides() -> None:
    assert list(SCORES) == schema.SCORES.names


def test_disagreement_is_bad_where_it_is_high_and_confidence_where_it_is_low() -> None:
    disagreement = [name for name in SCORES if name.startswith(("flip_", "scale_", "checker_"))]
    assert len(disagreement) == 6
    assert {SCORES[name].bad for name in disagreement} == {Bad.HIGH}
    assert SCORES["confidence_mean"].bad is Bad.LOW


def test_scores_that_cost_a_pass_more_name_the_option_that_measures_them() -> None:
    optional = {name for name, score in SCORES.items() if score.option}
    assert optional == set(schema.CONSISTENCY_SCORES.names)
