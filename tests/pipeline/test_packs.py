"""A source that does not know its samples when it is planned goes through the whole job: plan, labels, progress, retry."""

from pathlib import Path

import pytest

import da2ray
from da2ray.pipeline import prepare
from da2ray.plan.plan import list_plans
from da2ray.storage import open_store
from tests.jobs import RunJob, progress_of
from tests.photos import write_crops
from tests.sources.packs import PackSource, write_packs

ROOT = Path(__file__).parents[2]


def test_a_job_labels_what_its_source_did_not_know_when_it_was_planned_and_retries_it(
    run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "open_source", lambda url, *_, **__: PackSource(url))
    crops = [path.read_bytes() for path in sorted(write_crops(tmp_path / "crops", 9).iterdir())]
    packs, output = tmp_path / "packs", str(tmp_path / "labels")
    write_packs(packs, [4, 2, 3], iter([*crops[:4], crops[4][:-500], b"", *crops[6:]]))
    keys = [f"{pack:03d}.pack/{place}" for pack, count in enumerate([4, 2, 3]) for place in range(count)]

    def label(*options: str) -> str:
        command = ("--images", packs, "--output", output, "--teacher", "luminance", *options)
        finished = run_job(*command, env={"PYTHONPATH": str(ROOT)})  # workers import PackSource from there
        assert finished.code == 0, finished
        return finished.stdout

    stdout = label()
    store = open_store(output)
    (plan,) = list_plans(store)
    assert (plan.info.exact, plan.info.shards) == (False, 3)
    assert f"about {plan.info.samples:,} images in 3 shards" in stdout
    assert plan.info.samples != len(keys)
    samples = progress_of(store).samples
    assert (samples.total, samples.done, samples.exact) == (len(keys), len(keys), False)
    labels = da2ray.open_labels(output)
    assert [label.key for label in labels] == keys
    assert [(row["shard"], row["row"]) for row in labels.index.to_pylist()] == [
        (pack, place) for pack, count in enumerate([4, 2, 3]) for place in range(count)
    ]
    assert {label.key: label.reason for label in labels if label.reason} == {
        "001.pack/0": "truncated",
        "001.pack/1": "empty",
    }

    # One of the two is repaired. Both are read by their places, without the rest of their pack.
    write_packs(tmp_path / "mended", [4, 2, 3], iter([*crops[:5], b"", *crops[6:]]))
    (tmp_path / "mended/001.pack").replace(packs / "001.pack")
    (packs / "000.pack").unlink()
    assert "2 images in 1 shard" in label("--retry-failed")
    again = da2ray.open_labels(output)
    assert sorted(label.key for label in again) == keys
    assert {label.key: label.reason for label in again if label.reason} == {"001.pack/1": "empty"}
