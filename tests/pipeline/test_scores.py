"""A run with `--consistency` stores scores, masks, hashes and far maps, and refuses impossible requests early."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import da2ray
from da2ray.commands.options import load
from da2ray.commands.pseudolabel import PseudolabelConfig
from da2ray.errors import UserError
from da2ray.labels.reader import Labels
from da2ray.labels.schema import DEPTH_SCORES, IMAGE_SCORES
from da2ray.labels.upkeep.verify import verify
from da2ray.pipeline.prepare import prepare
from da2ray.pipeline.run import pseudolabel
from da2ray.storage import open_store
from tests.jobs import RunJob
from tests.photos import REASONS

FIXED = '''
import torch
from da2ray.teachers.custom import LoadOptions, PixelBatch, Prediction


class Fixed:
    """Takes images at one size only."""

    kind, licence = "metric", "MIT"

    def __init__(self, options: LoadOptions) -> None:
        pass

    def predict(self, batch: PixelBatch) -> Prediction:
        return Prediction(torch.ones(len(batch), *batch.size))
'''


@pytest.fixture
def fixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "fixed_size_teacher.py").write_text(FIXED)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "fixed_size_teacher:Fixed"


@pytest.fixture(scope="module", params=["parquet", "zarr"])
def labels(
    request: pytest.FixtureRequest, run_job: RunJob, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Labels:
    output = tmp_path_factory.mktemp("scored")
    finished = run_job(
        *("--images", photos, "--output", output, "--teacher", "random-tiny", "--consistency", "scale,flip"),
        *("--shard-size", 6, "--batch-size", 3, "--format", request.param),
    )
    assert finished.code == 0, finished
    return da2ray.open_labels(str(output))


def test_every_label_has_its_scores_mask_and_hash(labels: Labels) -> None:
    assert labels.info.created_by.consistency == ("flip", "scale")
    assert verify(labels.store, labels.info.format).findings == []
    rows = {row["key"]: row for row in labels.index.to_pylist()}
    assert len(rows) == len(REASONS)
    hashes = {}
    for label in labels:
        row = rows[label.key]
        if label.status != "labelled":
            assert label.mask is None
            assert (row["phash"], row["blur"], row["flip_mean"], row["mask_source"]) == (None,) * 4
            continue
        own = {"flip_mean", "flip_p90", "scale_mean", "scale_p90", "confidence_mean", "aspect"}
        sometimes = {"edge_alignment"}
        expected = {*IMAGE_SCORES.names, *DEPTH_SCORES.names, *own} - sometimes
        assert expected <= set(label.scores) <= expected | sometimes | {"jpeg_quality"}
        assert row["mask_source"] == "flip+scale"
        assert label.scores["confidence_mean"] == pytest.approx(label.mask.mean() / 3, rel=1e-4)
        assert 0 < label.scores["flip_mean"] < label.scores["flip_p90"]
        assert label.scores["nonfinite_share"] == 0
        hashes[label.key] = row["phash"]
    assert (hashes["coffee.png"] ^ hashes.pop("cmyk.jpg")).bit_count() <= 4  # the same photograph
    assert len(set(hashes.values())) == len(hashes) == sum(reason is None for reason in REASONS.values()) - 1


def test_scores_of_the_file_are_there_wherever_its_header_was_read(labels: Labels) -> None:
    rows = {row["key"]: row for row in labels.index.to_pylist()}
    assert rows["tiny.png"]["status"] == "rejected"
    assert (rows["tiny.png"]["aspect"], rows["tiny.png"]["jpeg_quality"]) == (1, None)
    assert rows["truncated.jpg"]["aspect"] == 1
    assert rows["truncated.jpg"]["jpeg_quality"] == rows["chelsea.jpg"]["jpeg_quality"] == 85
    assert rows["chelsea.jpg"]["aspect"] == rows["rotated.jpg"]["aspect"] == pytest.approx(200 / 133)
    assert rows["coffee.png"]["jpeg_quality"] is None
    assert rows["empty.jpg"]["aspect"] is None


def test_a_grey_photograph_has_no_colour_and_a_turned_one_another_hash(labels: Labels) -> None:
    rows = {row["key"]: row for row in labels.index.to_pylist()}
    assert rows["deep16.png"]["colourfulness"] == pytest.approx(0, abs=0.01)
    assert rows["coffee.png"]["colourfulness"] > 20
    assert (rows["chelsea.jpg"]["phash"] ^ rows["rotated.jpg"]["phash"]).bit_count() > 16
    assert rows["chelsea.jpg"]["brightness"] == pytest.approx(rows["rotated.jpg"]["brightness"], abs=0.01)
    assert 0 < np.mean([row["image_entropy"] for row in rows.values() if row["blur"]]) < 8


# ------------------------------------------------------------------------------------------------------- without Ray


def arguments(images: Path, output: Path, *more: object) -> PseudolabelConfig:
    command = ["--images", images, "--output", output, "--teacher", "luminance", *more]
    return load(PseudolabelConfig, [str(word) for word in command])


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "passes     1 an image through luminance\n"),
        (["--consistency", "flip"], "passes     2 an image through luminance (label 1, flip +1)\n"),
        (
            ["--consistency", "flip,scale,checker", "--checker", "random-tiny"],
            "passes     2.44 an image through luminance (label 1, flip +1, scale +0.44), 1 through random-tiny (checker)\n",
        ),
    ],
)
def test_a_dry_run_says_what_opinions_cost(photos: Path, tmp_path: Path, options: list[str], words: str) -> None:
    printed = io.StringIO()
    assert (
        pseudolabel(arguments(photos, tmp_path / "labels", *options, "--dry-run"), Console(file=printed, width=200))
        == 0
    )
    assert words in printed.getvalue()


def test_opinions_are_another_fingerprint_and_none_keeps_the_old_one(photos: Path, tmp_path: Path) -> None:
    def fingerprint(*more: object) -> str:
        return prepare(arguments(photos, tmp_path / "labels", *more), quiet()).fingerprint

    plain, checked = fingerprint(), fingerprint("--checker", "random-tiny")
    assert plain == fingerprint("--consistency", "none")
    assert checked == fingerprint("--checker", "random-tiny", "--consistency", "checker")
    assert fingerprint("--consistency", "scale,flip") == fingerprint("--consistency", "flip", "scale")
    asked = [
        fingerprint("--consistency", "flip"),
        fingerprint("--consistency", "scale"),
        fingerprint("--consistency", "flip,scale"),
        fingerprint("--consistency", "flip", "--checker", "random-tiny"),
    ]
    assert len({plain, checked, *asked}) == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--consistency", "checker"], "--consistency checker: say which teacher checks with --checker NAME"),
        (["--consistency", "flop"], "--consistency"),
        (["--consistency", "none,flip"], "--consistency"),
    ],
)
def test_an_impossible_request_is_refused_by_name(
    photos: Path, tmp_path: Path, options: list[object], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        prepare(arguments(photos, tmp_path / "labels", *options), quiet())


def test_a_teacher_of_one_size_has_no_opinion_on_scale(photos: Path, tmp_path: Path, fixed: str) -> None:
    ask = ("--images", photos, "--output", tmp_path / "labels", "--teacher", fixed, "--consistency")
    with pytest.raises(
        UserError, match="--consistency scale: fixed_size_teacher:Fixed takes images only at its own size"
    ):
        prepare(load(PseudolabelConfig, [str(word) for word in (*ask, "flip,scale")]), quiet())
    assert prepare(load(PseudolabelConfig, [str(word) for word in (*ask, "flip")]), quiet()).consistency == ("flip",)


def test_a_dataset_with_other_opinions_is_refused_by_name(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "labels"
    job = prepare(arguments(photos, output), quiet())
    open_store(str(output)).put("dataset.json", job.dataset.model_dump_json().encode())
    with pytest.raises(UserError, match=r"consistency none -> flip\+scale"):
        prepare(arguments(photos, output, "--consistency", "flip,scale"), quiet())
