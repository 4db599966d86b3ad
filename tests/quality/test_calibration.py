"""Calibration finds planted scores with their direction, and finds nothing in random scores."""

import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from rich.console import Console

from da2ray.errors import UserError
from da2ray.labels.commits import commit_shard
from da2ray.labels.dataset import create_or_open
from da2ray.labels.quantise import quantise
from da2ray.labels.reader import Label, Labels, open_labels
from da2ray.labels.schema import INDEX
from da2ray.labels.scores import Bad
from da2ray.labels.shards.base import Masks
from da2ray.labels.shards.formats import build_shard
from da2ray.labels.snapshots import create_snapshot
from da2ray.quality.calibration import Calibration, calibrate
from da2ray.quality.calibration_tables import print_calibration
from da2ray.quality.judging import auroc_error
from da2ray.quality.truth import ErrorKind, Truth, pixel_errors
from da2ray.storage import open_store
from da2ray.teachers.base import Kind
from tests.labels.samples import FINGERPRINT, info
from tests.s3_server import S3Server

COUNT = 110
SIZE = (28, 42)


def metres(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """float32 (H, W): a ground that rises to a wall, with a box in front of it; the same at any size."""
    y, x = ((np.arange(side) + 0.5) / side for side in size)
    depth = 2 + 6 * (1 - y)[:, None] ** 2 + np.zeros(size)
    depth[(y > 0.5)[:, None] & (np.abs(x - 0.3 - 0.4 * (seed % 7) / 7) < 0.15)[None]] = 1.5
    return depth.astype(np.float32)


def write_truth(folder: Path, count: int = COUNT) -> None:
    """Write ground truth at twice the size of the labels, in a subfolder like the keys."""
    (folder / "set").mkdir(parents=True)
    for number in range(count):
        np.save(folder / "set" / f"{number:03d}.npy", metres(number, (56, 84)))


def write_labels(folder: Path, scores: Callable[[int, float], dict[str, float]]) -> Labels:
    """Write labels whose noise grows with a hidden badness in [0, 1). Half of each map is noisy, and the mask knows which."""
    rng = np.random.default_rng(0)
    rows, qs, levels = [], [], []
    for number, badness in enumerate(rng.permutation(COUNT) / COUNT):
        noise = np.zeros(SIZE)
        noise[:, : SIZE[1] // 2] = 0.3 * badness * rng.standard_normal((SIZE[0], SIZE[1] // 2))
        made = quantise(torch.tensor(3 / metres(number) - 1 + noise, dtype=torch.float32)[None], 12)
        qs.append(made.q[0].numpy())
        levels.append(np.where(np.abs(noise) > 0.05, 0, np.where(noise == 0, 3, 2)).astype(np.uint8))
        rows.append(
            dict.fromkeys(INDEX.names)
            | {"key": f"set/{number:03d}.jpg", "uri": f"/{number}", "status": "labelled", "plan": "p", "shard": 0, "row": number,
               "network_height": SIZE[0], "network_width": SIZE[1], "kind": "disparity", "scale": made.scale.item(),
               "offset": made.offset.item(), "fingerprint": FINGERPRINT, "mask_bits": 2, "mask_source": "flip+scale",
               **scores(number, float(badness))}
        )  # fmt: skip
    store = open_store(str(folder))
    create_or_open(store, info())
    built = build_shard(pa.Table.from_pylist(rows, schema=INDEX), qs, "parquet", Masks(2, levels))
    commit_shard(store, "p", 0, built, FINGERPRINT)
    create_snapshot(store, ["p"], FINGERPRINT)
    return open_labels(str(folder))


def planted(number: int, badness: float) -> dict[str, float]:
    """Scores: one bad if high, one bad if low, one random, one the wrong way round, one constant."""
    rng = np.random.default_rng(1000 + number)
    return {
        "flip_p90": badness + 0.1 * rng.random(),
        "blur": 100 * (1.5 - badness) + 10 * rng.random(),
        "brightness": rng.random(),
        "edge_alignment": badness,  # by its meaning, low is bad
        "aspect": 1.5,
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    folder = tmp_path_factory.mktemp("calibration")
    write_truth(folder / "truth")
    return calibrate(write_labels(folder / "labels", planted), str(folder / "truth"))


def test_a_planted_score_is_found_with_its_direction_and_a_cut_that_finds_the_worst(found: Calibration) -> None:
    scores = {score.name: score for score in found.scores}
    high, low, nothing = scores["flip_p90"], scores["blur"], scores["brightness"]
    assert (high.bad, low.bad) == (Bad.HIGH, Bad.LOW)
    assert high.spearman > 0.9 > -0.9 > low.spearman
    assert min(high.auroc, low.auroc) > 0.95
    assert 0.08 < high.removes < 0.25
    assert high.rule.startswith("flip_p90 < 0.")
    assert low.rule.startswith("blur > ")
    assert low.verdict == "yes"
    assert nothing.verdict.startswith("no")
    assert abs(nothing.spearman) < 0.35
    assert found.constant == ("aspect",)


def test_a_score_that_costs_passes_must_beat_those_that_do_not_and_mean_what_it_says(found: Calibration) -> None:
    scores = {score.name: score for score in found.scores}
    assert scores["flip_p90"].passes == 1
    assert scores["flip_p90"].verdict == "no: a free one does"
    assert scores["edge_alignment"].verdict == "no: the wrong way round"


def test_a_mask_that_knows_the_errors_has_them_at_its_lowest_level(found: Calibration) -> None:
    mask = found.mask
    assert mask is not None
    assert mask.errors[0] > mask.errors[2] > mask.errors[3]
    assert math.isnan(mask.errors[1])  # no pixel is at this level
    assert mask.ratio == pytest.approx(mask.errors[0] / mask.errors[3])
    assert sum(mask.shares) == pytest.approx(1)
    assert mask.aurg > 0.3
    assert mask.verdict == "yes"
    assert mask.passes == pytest.approx(1 + 4 / 9)  # flip and scale


def test_the_true_error_is_that_of_the_aligned_label() -> None:
    depth = metres(0)
    label = Label("a.jpg", "", "labelled", None, None, Kind.DISPARITY, (5 / depth + 2).astype(np.float32), None, {})
    exact = pixel_errors(label, metres(0, (3 * SIZE[0], 3 * SIZE[1])), ErrorKind.ABS_REL)
    assert exact is not None
    assert exact.max() < 1e-3
    # Metric labels are not aligned: a factor of 1.1 is an error of 0.1 everywhere.
    metric = replace(label, kind=Kind.METRIC, depth=depth * np.float32(1.1))
    off = pixel_errors(metric, depth, ErrorKind.ABS_REL)
    assert off == pytest.approx(0.1, abs=1e-5)
    relative = replace(label, kind=Kind.DEPTH, depth=depth * np.float32(0.1) - np.float32(0.05))
    assert np.max(pixel_errors(relative, depth, ErrorKind.ABS_REL)) < 1e-3
    # Unknown pixels have no error; if hardly any pixel is known, the label is not judged.
    holes = depth.copy()
    holes[:14] = np.nan
    partly = pixel_errors(label, holes, ErrorKind.ABS_REL)
    assert partly is not None
    assert np.isnan(partly[:14]).all()
    assert np.isfinite(partly[14:]).all()
    assert pixel_errors(label, np.full(SIZE, np.nan, np.float32), ErrorKind.ABS_REL) is None


def test_a_label_that_says_nothing_has_a_disparity_error_of_about_one() -> None:
    depth = metres(0)
    label = Label("a.jpg", "", "labelled", None, None, Kind.DISPARITY, np.ones(SIZE, np.float32), None, {})
    nothing = pixel_errors(label, depth, ErrorKind.DISPARITY)
    assert nothing is not None
    assert 0.9 < nothing.mean() < 1.3  # the fit is to the mean; the unit is the deviation from the median
    constant = np.full(SIZE, 2, np.float32)
    assert pixel_errors(label, constant, ErrorKind.DISPARITY) is None


def test_truth_is_metres_in_npy_or_millimetres_in_png_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a/one.npy", np.array([[1.5, 0], [np.inf, np.nan]], np.float32))
    Image.fromarray(np.array([[1500, 0], [250, 65535]], np.uint16)).save(tmp_path / "a/two.png")
    np.save(tmp_path / "three.npy", np.zeros((2, 2, 3), np.float32))
    (tmp_path / "four.npy").write_bytes(b"no array")
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "five.png")
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "six.npy").write_bytes(pickled.getvalue())
    truth = Truth(str(tmp_path))
    np.testing.assert_array_equal(truth.of("a/one.jpeg"), [[1.5, np.nan], [np.nan, np.nan]])
    np.testing.assert_allclose(truth.of("a/two.jpg"), [[1.5, np.nan], [0.25, 65.535]])
    assert not truth.has("one.jpg")
    for key in ("three.jpg", "four.jpg", "five.jpg", "six.jpg"):
        with pytest.raises(UserError, match=f"{key[:-4]}\\.(npy|png)"):
            truth.of(key)


@pytest.mark.parametrize("client", ["obstore", "fsspec"])
def test_truth_may_lie_in_an_object_store(s3: S3Server, tmp_path: Path, client: Literal["obstore", "fsspec"]) -> None:
    np.save(tmp_path / "depth.npy", metres(1))
    url = f"{s3.create_bucket()}/truth"
    open_store(url).put("a folder/ü 1.npy", (tmp_path / "depth.npy").read_bytes())
    np.testing.assert_array_equal(Truth(url, client).of("a folder/ü 1.webp"), metres(1))


def test_an_error_about_too_little_truth_names_a_file_that_is_missing(tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "labels", planted)
    write_truth(tmp_path / "truth", 3)
    with pytest.raises(UserError, match=r"3 of 110 labelled images .* set/000.jpg needs set/000.npy or .png"):
        calibrate(labels, str(tmp_path / "truth"))


def test_the_table_says_what_the_json_says(found: Calibration) -> None:
    console = Console(record=True, width=200)
    print_calibration(found, console)
    text = console.export_text()
    stored = json.loads(found.to_json())
    assert stored["mask"]["errors"][1] is None
    for score in stored["scores"]:
        assert score["name"] in text
    assert f"{stored['mean_error']:.4f}" in text
    assert len(stored["errors"]) == COUNT


def test_the_standard_error_of_an_auroc_is_that_of_hanley_and_mcneil() -> None:
    # Their example: an area of 0.893 from 51 abnormal and 58 normal images has a standard error of 0.032.
    assert auroc_error(0.893, 51, 58) == pytest.approx(0.032, abs=1e-3)
