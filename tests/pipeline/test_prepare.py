"""Cheap checks come first: a mistyped place is found before a hub is asked for a teacher or its weights."""

from pathlib import Path

import pytest

from da2ray.errors import Exit
from da2ray.pipeline import prepare
from tests.jobs import Command
from tests.photos import write_crops
from tests.s3_server import S3Server


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that gets as far as the teacher."""
    monkeypatch.setattr(prepare, "resolve", lambda *_: pytest.fail("a hub may be asked from here on"))


@pytest.mark.usefixtures("no_hub", "s3")
@pytest.mark.parametrize(
    ("images", "output", "says"),
    [
        ("nope", "labels", "no such folder"),
        ("nope.csv", "labels", "nope.csv"),
        ("s3:/bucket/photos", "labels", "s3://"),
        ("s4://bucket/photos", "labels", "s4"),
        ("s3://no-such-bucket-here/photos", "labels", "no-such-bucket-here"),
        ("photos", "file", "not a folder"),
        ("photos", "file/labels", "not a folder"),
        ("photos", "s3:/bucket/labels", "s3://"),
        ("photos", "s4://bucket/labels", "s4"),
        ("photos", "s3://no-such-bucket-here/labels", "no-such-bucket-here"),
        ("photos", "photos", "--output|dataset"),
    ],
)
def test_a_mistyped_place_is_found_before_a_hub_is_asked(
    job_without_ray: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: str, output: str, says: str
) -> None:
    write_crops(tmp_path / "photos", 1)
    (tmp_path / "file").touch()
    (tmp_path / "photos" / "dataset.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    code, _, err = job_without_ray("--images", images, "--output", output)
    assert code == Exit.USAGE
    assert err.startswith("error: ")
    assert len(err.splitlines()) <= 2
    assert any(word in err for word in says.split("|"))


def test_what_is_right_is_not_refused(job_without_ray: Command, tmp_path: Path, s3: S3Server) -> None:
    photos = write_crops(tmp_path / "photos", 1)
    for output in (tmp_path / "a" / "b" / "labels", f"{s3.create_bucket()}/a/labels"):
        code, _, err = job_without_ray("--images", photos, "--output", output, "--teacher", "luminance", "--dry-run")
        assert code == Exit.DONE, err
