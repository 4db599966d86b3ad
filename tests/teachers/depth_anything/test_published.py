"""Weights of another kind than the teacher are refused by their config.json, and the error names the teacher that fits."""

import json
import logging
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors
from safetensors.torch import save_file

from da2ray.errors import UserError
from da2ray.teachers.base import LoadOptions
from da2ray.teachers.depth_anything.configs import VITS
from da2ray.teachers.depth_anything.keymap import to_hf
from da2ray.teachers.depth_anything.published import check_published
from da2ray.teachers.depth_anything.teacher import random_state
from da2ray.teachers.registry import resolve

RELATIVE, INDOOR, OUTDOOR = (
    "depth-anything-v2-small",
    *(f"depth-anything-v2-metric-{s}-small" for s in ("indoor", "outdoor")),
)
RANGES = {RELATIVE: None, INDOOR: 20.0, OUTDOOR: 80.0}
V2, V1 = {"out_indices": [3, 6, 9, 12]}, {"out_indices": [9, 10, 11, 12]}
METRIC = {"model_type": "depth_anything", "depth_estimation_type": "metric"}
FITTING = [
    ({"model_type": "depth_anything"}, RELATIVE),
    ({"depth_estimation_type": "relative", "max_depth": 1, "backbone_config": V2}, RELATIVE),
    (
        {**METRIC, "max_depth": 20, "backbone_config": {"out_features": ["stage3", "stage6", "stage9", "stage12"]}},
        INDOOR,
    ),
    ({**METRIC, "max_depth": 80.0, "backbone_config": V2}, OUTDOOR),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").touch()
    return tmp_path


def check(folder: Path, content: object, teacher: str) -> None:
    (folder / "config.json").write_text(json.dumps(content))
    check_published(str(folder), folder / "model.safetensors", VITS, teacher, RANGES[teacher])


@pytest.mark.parametrize(("content", "fitting"), FITTING)
@pytest.mark.parametrize("teacher", RANGES)
def test_only_the_teacher_that_fits_takes_weights(content: dict, fitting: str, teacher: str, folder: Path) -> None:
    if teacher == fitting:
        check(folder, content, teacher)
        return
    with pytest.raises(UserError, match=f"--teacher {fitting},"):
        check(folder, content, teacher)


@pytest.mark.parametrize(
    "content",
    [
        {"backbone_config": V1},
        {"backbone_config": {"out_features": ["stage9", "stage10", "stage11", "stage12"]}},
        {**METRIC, "max_depth": 35},
        METRIC,
        {"model_type": "prompt_depth_anything"},
    ],
)
@pytest.mark.parametrize("teacher", RANGES)
def test_weights_without_a_named_teacher_are_sent_to_transformers(content: dict, teacher: str, folder: Path) -> None:
    with pytest.raises(UserError, match=f"--teacher hf:{folder},"):
        check(folder, content, teacher)


def test_a_damaged_config_is_a_user_error(folder: Path) -> None:
    for text in ("", "{", "[]"):
        (folder / "config.json").write_text(text)
        with pytest.raises(UserError, match=r"config\.json"):
            check_published(str(folder), folder / "model.safetensors", VITS, RELATIVE, None)


def test_a_plain_file_says_once_what_it_cannot_tell(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("depth.pth", "model.safetensors"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            check_published(str(tmp_path / name), tmp_path / name, VITS, OUTDOOR, 80.0)
        assert len(caplog.records) == 1
        assert "cannot tell relative from metric" in caplog.text


def test_the_config_of_a_hub_id_is_fetched_with_its_revision(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "config.json").write_text(json.dumps({**METRIC, "max_depth": 20}))
    calls = []

    def download(repo: str, file: str, revision: str | None) -> str:
        calls.append((repo, file, revision))
        return str(folder / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(UserError, match=INDOOR):
        check_published("org/name@v1", folder / "model.safetensors", VITS, OUTDOOR, 80.0)
    assert calls == [("org/name", "config.json", "v1")]


def test_a_config_that_cannot_be_fetched_is_a_user_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(UserError, match="cannot be fetched"):
        check_published("org/name", folder / "model.safetensors", VITS, OUTDOOR, 80.0)


def test_a_teacher_checks_the_folder_before_it_identifies_its_weights(tmp_path: Path) -> None:
    save_file(
        {key: value.contiguous() for key, value in to_hf(random_state(VITS)).items()}, tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_text(json.dumps({**METRIC, "max_depth": 20}))
    options = LoadOptions(device="cpu", precision="fp32", weights=str(tmp_path))
    assert resolve(INDOOR).identify(options)
    for teacher in (OUTDOOR, RELATIVE):
        with pytest.raises(UserError, match=f"--teacher {INDOOR},"):
            resolve(teacher).identify(options)
