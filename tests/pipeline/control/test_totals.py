"""Totals, percentage and ETA work for plans with estimated numbers of samples, and say "about"."""

from pathlib import Path

from rich.console import Console

from da2ray.labels.commits import commit_key
from da2ray.pipeline.control.coordinator import Counts
from da2ray.pipeline.control.progress import Progress, Totals, work_left
from da2ray.plan.plan import make_plan
from da2ray.storage import open_store
from tests.sources.packs import PackSource, write_packs

ESTIMATED = Totals(samples=1000, shards=10, samples_before=200, shards_before=2, exact=False)


def test_an_estimated_total_follows_the_shards_that_are_done() -> None:
    assert ESTIMATED.samples_when(0, 0) == 1000
    assert ESTIMATED.samples_when(2, 300) == 200 + 300 + 6 * 150
    assert ESTIMATED.samples_when(8, 40) == 240


def test_an_exact_total_stays() -> None:
    assert Totals(1000, 10, 200, 2).samples_when(2, 300) == 1000


def test_progress_says_about_and_ends_at_100_percent(tmp_path: Path) -> None:
    progress = Progress(open_store(str(tmp_path)), "r", ESTIMATED, Console(quiet=True), live=False)
    progress.note(Counts(shards=2, samples=300))
    assert "500/about 1,400 images (35.7 %)" in progress.line()
    progress.note(Counts(shards=8, samples=40))
    now = progress.now()
    assert (now.samples.total, now.samples.done, now.samples.exact) == (240, 240, False)
    assert "(100.0 %)" in progress.line()


def test_what_is_left_of_a_plan_of_estimates_is_an_estimate(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "out"))
    source = PackSource(str(write_packs(tmp_path / "packs", [3, 5, 60])))
    plan = make_plan(source, store, shard_size=4, limit=None, fingerprint="f")
    store.create(commit_key(plan.id, 1), b"")
    totals = work_left(plan, store)
    assert not totals.exact
    assert (totals.shards, totals.shards_before) == (3, 1)
    assert totals.samples_before == plan.sizes()[1]
