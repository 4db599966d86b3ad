"""Presets: their rules are valid, each preset is stricter than the one before, and no rule removes everything."""

from pathlib import Path

import pytest

from da2ray.labels.schema import SCORE_COLUMNS
from da2ray.quality.catalog import open_catalog
from da2ray.quality.filters import apply, bind, resolve
from da2ray.quality.presets import PRESETS
from da2ray.storage import open_store
from tests.quality.snapshots import snapshot_of

COUNT = 200


def spread(low: float, high: float) -> list[float]:
    return [low + (high - low) * number / (COUNT - 1) for number in range(COUNT)]


SCORES_OF_ALL = {name: spread(0, 1) for name in SCORE_COLUMNS.names} | {
    "blur": spread(0, 2000), "image_entropy": spread(0, 8), "jpeg_quality": spread(1, 100), "depth_range": spread(0, 3),
    "edge_alignment": spread(0, 1), "depth_entropy": spread(0, 8),
}  # fmt: skip
"""Values from one end of each score to the other, so that every rule has something to remove."""


@pytest.fixture(params=PRESETS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_rule_is_an_expression_over_the_index_with_its_own_name(name: str) -> None:
    rules = PRESETS[name]
    assert len({rule.name for rule in rules}) == len(rules) > 0
    for bound in bind(rules):
        assert set(bound.columns) <= set(SCORE_COLUMNS.names)


def test_every_rule_removes_something_bad_and_not_everything(name: str, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    snapshot = snapshot_of(store, SCORES_OF_ALL)
    bound = bind(PRESETS[name])
    with open_catalog(store, snapshot, SCORE_COLUMNS.names) as catalog:
        rules, skipped = resolve(catalog, bound, skip=True)
        assert not skipped
        for effect in apply(catalog, rules):
            assert 0 < effect.removes < COUNT


def test_each_preset_removes_more_than_the_one_before(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    snapshot = snapshot_of(store, SCORES_OF_ALL)
    removed = []
    for name in ("lenient", "default", "strict"):
        with open_catalog(store, snapshot, SCORE_COLUMNS.names) as catalog:
            rules, _ = resolve(catalog, bind(PRESETS[name]), skip=True)
            apply(catalog, rules)
            kept = {row for (row,) in catalog.execute("SELECT row FROM kept").fetchall()}
        removed.append(set(range(snapshot.rows)) - kept)
    assert removed[0] < removed[1] < removed[2]
