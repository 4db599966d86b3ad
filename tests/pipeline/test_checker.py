"""A run with a second teacher stores scores, masks, metres and focal lengths. Errors name wrong options."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import da2ray
from da2ray.commands.options import load
from da2ray.commands.pseudolabel import PseudolabelConfig
from da2ray.errors import UserError
from da2ray.images.decode import DecodeMode, Limits, decode
from da2ray.labels.reader import Labels
from da2ray.labels.schema import SCORE_COLUMNS
from da2ray.labels.upkeep.verify import verify
from da2ray.pipeline.prepare import prepare
from da2ray.pipeline.run import pseudolabel
from da2ray.quality.consistency import compare
from da2ray.storage import open_store
from da2ray.teachers.base import Kind, LoadOptions, PixelBatch
from da2ray.teachers.registry import resolve
from tests.jobs import RunJob
from tests.photos import REASONS

FILM = 0xA405
ASSUMED_FOCAL = 777.0
TAPE = f'''
import torch
from da2ray.teachers.custom import Camera, LoadOptions, OfficialSize, PixelBatch, Prediction, resize


class HalfSize:
    def __call__(self, height, width):
        height, width = OfficialSize()(height, width)
        return height // 28 * 14, width // 28 * 14


class Tape:
    """Metres in proportion to the focal length; darker is nearer."""

    kind, camera, size_rule, licence = "metric", Camera.ASSUMED, HalfSize(), "MIT"

    def __init__(self, options: LoadOptions) -> None:
        pass

    def predict(self, batch: PixelBatch) -> Prediction:
        assert batch.size != OfficialSize()(*batch.shapes[0])
        focals = torch.tensor([focal or {ASSUMED_FOCAL} for focal in batch.focals])
        return Prediction((1 + 4 * resize(batch).mean(1)) * focals[:, None, None] / {ASSUMED_FOCAL}, focals=focals)
'''


@pytest.fixture(scope="module")
def path_of_tape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tape")
    (folder / "tape_measure.py").write_text(TAPE)
    return folder


@pytest.fixture(scope="module")
def images(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos. The EXIF of chelsea.jpg says 50 mm, as on 35 mm film."""
    folder = tmp_path_factory.mktemp("images")
    for path in photos.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    exif = Image.Exif()
    exif[0x8769] = {FILM: 50}
    Image.open(photos / "chelsea.jpg").save(folder / "chelsea.jpg", exif=exif)
    return folder


@pytest.fixture(scope="module")
def labels(run_job: RunJob, images: Path, path_of_tape: Path, tmp_path_factory: pytest.TempPathFactory) -> Labels:
    output = tmp_path_factory.mktemp("checked")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path_of_tape))
        finished = run_job(
            *("--images", images, "--output", output, "--teacher", "luminance", "--checker", "tape_measure:Tape"),
            *("--shard-size", 6, "--batch-size", 3),
            env={"PYTHONPATH": str(path_of_tape)},
        )
    assert finished.code == 0, finished
    assert "luminance checked by tape_measure:Tape" in finished.stdout
    return da2ray.open_labels(str(output))


@pytest.fixture
def tape(path_of_tape: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(str(path_of_tape))
    return "tape_measure:Tape"


def test_every_label_has_the_checkers_scores_and_mask(labels: Labels) -> None:
    assert labels.info.created_by.checker.teacher == "tape_measure:Tape"
    assert labels.info.created_by.checker.kind is Kind.METRIC
    assert verify(labels.store, labels.info.format).findings == []
    labelled = [label for label in labels if label.status == "labelled"]
    assert len(labelled) == sum(reason is None for reason in REASONS.values())
    for label in labelled:
        unasked = {"flip_mean", "flip_p90", "scale_mean", "scale_p90"}
        # Luminance goes below 0, and such maps have no far class.
        sometimes = {"jpeg_quality", "depth_range", "edge_alignment", "far_share"}
        assert set(SCORE_COLUMNS.names) - unasked - sometimes <= set(label.scores) <= set(SCORE_COLUMNS.names) - unasked
        assert ("jpeg_quality" in label.scores) == label.key.endswith(".jpg")
        assert label.mask.shape == label.depth.shape
        assert (label.mask.dtype, label.mask_bits) == (np.uint8, 2)
        assert 0 < label.scores["checker_mean"] < label.scores["checker_p90"]
    # The inverse is not a straight line, so pixels agree well, badly and in between.
    assert len(np.unique(np.concatenate([label.mask.ravel() for label in labelled]))) == 4
    rows = labels.index.to_pylist()
    assert [row["mask_source"] for row in rows] == ["checker" if row["status"] == "labelled" else None for row in rows]
    assert all(row["checker_mean"] is None for row in rows if row["status"] != "labelled")


def test_the_score_is_that_of_the_two_teachers_alone(labels: Labels, images: Path, tape: str) -> None:
    label = labels.by_key("astronaut.jpg")
    specs = [resolve("luminance"), resolve(tape)]
    image = decode(
        (images / label.key).read_bytes(), size_rule=specs[0].size_rule, limits=Limits(), mode=DecodeMode.EXACT
    )
    pixels, shapes = torch.from_numpy(image.pixels.reshape(-1).copy()), [image.pixels.shape[:2]]
    depth, metres = (
        spec.load(LoadOptions()).predict(PixelBatch(pixels, shapes, spec.size_rule(*shapes[0]), focals=[None])).depth
        for spec in specs
    )
    metres = torch.nn.functional.interpolate(metres[:, None], depth.shape[1:], mode="bilinear")[:, 0]
    found = compare(depth, 1 / metres)
    assert label.scores["checker_mean"] == pytest.approx(found.mean.item(), rel=1e-3)
    assert label.scores["checker_p90"] == pytest.approx(found.p90.item(), rel=1e-3)


def test_relative_labels_read_in_metres_and_rows_say_which_focal_length_that_rests_on(labels: Labels) -> None:
    rows = {row["key"]: row for row in labels.index.to_pylist()}
    assert (rows["astronaut.jpg"]["focal"], rows["astronaut.jpg"]["focal_source"]) == (ASSUMED_FOCAL, "assumed")
    from_exif = 50 * np.hypot(200, 133) / np.hypot(36, 24)
    assert rows["chelsea.jpg"]["focal"] == pytest.approx(from_exif, rel=1e-5)
    assert rows["chelsea.jpg"]["focal_source"] == "exif"
    assert rows["text.jpg"]["focal"] is None
    for label in labels:
        if label.depth is None:
            assert label.metres is None
            continue
        row = rows[label.key]
        # The checker's metres are 1 to 5 and depend on its focal length.
        middle = np.median(label.metres) * ASSUMED_FOCAL / row["focal"]
        assert 1 < middle < 5, label.key
        assert label.metres.dtype == np.float32
        assert 0 < row["metric_residual"] < 0.5
        line = np.float32(row["metric_scale"]) * label.depth + np.float32(row["metric_shift"])
        np.testing.assert_array_equal(label.metres[line > 0], (1 / line)[line > 0])


# ------------------------------------------------------------------------------------------------------- without Ray


def arguments(images: Path, output: Path, *more: object) -> PseudolabelConfig:
    command = ["--images", images, "--output", output, "--teacher", "luminance", *more]
    return load(PseudolabelConfig, [str(word) for word in command])


def test_a_dry_run_says_what_a_checker_costs(photos: Path, tmp_path: Path) -> None:
    printed = io.StringIO()
    config = arguments(photos, tmp_path / "labels", "--checker", "random-tiny", "--dry-run")
    assert pseudolabel(config, Console(file=printed, width=200)) == 0
    assert "passes     1 an image through luminance, 1 through random-tiny (checker)" in printed.getvalue()


def test_another_checker_is_another_fingerprint_and_none_keeps_the_old_one(photos: Path, tmp_path: Path) -> None:
    def fingerprint(*more: object) -> str:
        return prepare(arguments(photos, tmp_path / "labels", *more), Console(file=io.StringIO())).fingerprint

    plain = fingerprint()
    assert plain == fingerprint("--mask-bits", 2)
    assert len({plain, fingerprint("--checker", "random-tiny"), fingerprint("--mask-bits", 4)}) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--checker", "luminance"], "--checker luminance is the teacher itself"),
        (["--checker", "lumenance"], "no teacher is named lumenance: did you mean luminance"),
        (["--checker", "random-tiny", "--checker-weights", "x.pth"], "drop --checker-weights x.pth"),
        (["--checker-weights", "x.pth"], "give --checker too"),
        (["--mask-bits", 9], "--mask-bits"),
    ],
)
def test_a_wrong_option_is_named(photos: Path, tmp_path: Path, options: list[object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        prepare(arguments(photos, tmp_path / "labels", *options), Console(file=io.StringIO()))


def test_a_dataset_checked_by_another_teacher_is_refused_by_name(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "labels"
    job = prepare(arguments(photos, output), Console(file=io.StringIO()))
    open_store(str(output)).put("dataset.json", job.dataset.model_dump_json().encode())
    with pytest.raises(UserError, match=r"checker None -> random-tiny"):
        prepare(arguments(photos, output, "--checker", "random-tiny"), Console(file=io.StringIO()))
