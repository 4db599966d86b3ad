"""The demo runs the real job and shows each photograph beside its depth."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from da2ray.benchmark.photos import packaged_photos
from da2ray.commands.demo import DemoConfig, demo
from da2ray.labels.reader import open_labels
from da2ray.report.contact_sheet import contact_sheet


def test_the_demo_shows_every_labelled_photograph_beside_its_depth(
    own_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its own Ray, because the demo promises to work without a cluster.
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    printed = io.StringIO()
    assert demo(DemoConfig(folder=str(tmp_path)), Console(file=printed, soft_wrap=True)) == 0
    labels = open_labels(str(tmp_path / "labels"))
    labelled = [label for label in labels if label.depth is not None]
    assert len(labels) == len(packaged_photos())
    assert len(labelled) > 20
    assert f"{len(labelled)} photographs beside their depth: {tmp_path / 'contact_sheet.png'}" in printed.getvalue()
    assert str(tmp_path / "labels") in printed.getvalue()
    assert "depth-anything-v2-tiny is embedded" in printed.getvalue()
    assert all(
        {"blur", "flip_p90", "scale_p90"} <= label.scores.keys() and label.mask is not None for label in labelled
    )
    assert "<html" in (tmp_path / "report.html").read_text()

    sheet = np.asarray(Image.open(tmp_path / "contact_sheet.png").convert("RGB"))
    boxes = contact_sheet(labels, tmp_path / "again.png")
    assert list(boxes) == [label.key for label in labelled]
    for key, (left, top, right, bottom) in boxes.items():
        pair = sheet[top:bottom, left:right]
        for name, part in (("photograph", pair[:, : (right - left) // 2]), ("depth", pair[:, (right - left) // 2 :])):
            assert part.std() > 1, f"{name} of {key} is one colour"

    assert len(contact_sheet(labels, tmp_path / "few.png", most=3)) == 3
