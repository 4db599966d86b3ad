"""Bad usage ends with exit code 2 and one or two lines that say what to change. Ray does not start and no image is read."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file

from da2ray.labels.dataset import create_or_open
from da2ray.storage import open_store
from da2ray.teachers.depth_anything.configs import TINY
from da2ray.teachers.depth_anything.teacher import random_state
from tests.jobs import JOB, Command
from tests.labels.samples import info
from tests.s3_server import S3Server

Refused = Callable[..., str]


@pytest.fixture
def refused(job_without_ray: Command) -> Refused:
    """Run the job, check that its message suits a user, and return its stderr."""

    def run(*args: object) -> str:
        code, _, message = job_without_ray(*args)
        assert code == 2, message
        lines = message.splitlines()
        assert lines[0].startswith("error: ")
        assert 1 <= len(lines) <= 2, message
        assert len(message) <= 600, message  # the list of all teachers takes most of it
        assert "Traceback" not in message
        return message.removeprefix("error: ")

    return run


@pytest.fixture
def job(photos: Path, tmp_path: Path) -> Callable[..., list[object]]:
    """The options of a valid command with some changed. None leaves an option out."""

    def make(**changes: object) -> list[object]:
        options = {"images": photos, "output": tmp_path / "labels", "teacher": "luminance"} | changes
        given = {f"--{name.replace('_', '-')}": value for name, value in options.items() if value is not None}
        return [part for option in given.items() for part in option]

    return make


Job = Callable[..., list[object]]


@pytest.mark.parametrize("output", ["file", "file/labels", "link", "link/labels"])
@pytest.mark.parametrize("dry", [True, False])
def test_an_output_that_cannot_be_a_folder_is_refused_by_a_dry_run_too(
    refused: Refused, job: Job, tmp_path: Path, output: str, dry: bool
) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    stderr = refused(*job(output=tmp_path / output), *(["--dry-run"] if dry else []))
    assert f"{tmp_path / output.partition('/')[0]} is not a folder" in stderr
    assert "choose another --output" in stderr
    assert not (tmp_path / "nowhere").exists()


def test_the_error_for_an_unknown_teacher_proposes_a_name(refused: Refused, job: Job, tmp_path: Path) -> None:
    message = refused(*job(teacher="depth-anything-v2-smal"))
    assert "depth-anything-v2-smal" in message
    assert "did you mean depth-anything-v2-small" in message
    assert not (tmp_path / "labels").exists()


def test_a_dataset_of_another_fingerprint_is_not_mixed(
    refused: Refused, job: Job, photos: Path, tmp_path: Path
) -> None:
    store = open_store(str(tmp_path / "labels"))
    create_or_open(store, info(source=str(photos)))
    before = store.get("dataset.json")
    message = refused(*job())
    assert "--output" in message
    assert str(tmp_path / "labels") in message
    assert "weights_sha256" in message
    assert store.get("dataset.json") == before
    assert [key for batch in store.list() for key in batch["key"].to_pylist()] == ["dataset.json"]


def test_a_dataset_of_the_other_format_names_the_option(refused: Refused, job: Job, tmp_path: Path) -> None:
    create_or_open(open_store(str(tmp_path / "labels")), info(format="zarr"))
    assert "--format zarr" in refused(*job())


def test_a_source_that_is_not_there_is_named(refused: Refused, job: Job, tmp_path: Path) -> None:
    message = refused(*job(images=tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in message
    assert not (tmp_path / "labels").exists()


def test_a_manifest_that_is_not_there_is_named(refused: Refused, job: Job, tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere.csv") in refused(*job(images=tmp_path / "nowhere.csv"))


def test_a_source_without_images_says_what_was_looked_for(refused: Refused, job: Job, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    message = refused(*job(images=tmp_path / "empty"))
    assert str(tmp_path / "empty") in message
    assert ".jpg" in message


def test_a_source_of_an_unknown_scheme_is_named(refused: Refused, job: Job) -> None:
    assert "nothing://" in refused(*job(images="nothing://here"))


def test_an_output_below_a_file_cannot_be_written_to(refused: Refused, job: Job, tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("in the way")
    message = refused(*job(output=tmp_path / "file.txt" / "labels"))
    assert str(tmp_path / "file.txt") in message
    assert "--output" in message


def test_an_output_on_a_read_only_file_system_cannot_be_written_to(refused: Refused, job: Job) -> None:
    message = refused(*job(output="/proc/da2ray/labels"))
    assert "/proc/da2ray/labels" in message
    assert "--output" in message


@pytest.mark.parametrize("client", ["obstore", "fsspec"])
def test_s3_credentials_that_are_wrong_are_said_to_be(
    refused: Refused, job: Job, s3: S3Server, monkeypatch: pytest.MonkeyPatch, client: str
) -> None:
    bucket = s3.create_bucket()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    message = refused(*job(images=f"{bucket}/photos", storage_client=client))
    assert f"{bucket}/photos" in message


@pytest.mark.parametrize("client", ["obstore", "fsspec"])
def test_a_bucket_that_is_not_there_is_named(refused: Refused, job: Job, s3: S3Server, client: str) -> None:
    message = refused(*job(images="s3://da2ray-no-such-bucket/photos", storage_client=client))
    assert "s3://da2ray-no-such-bucket" in message


@pytest.mark.parametrize("client", ["obstore", "fsspec"])
def test_an_s3_identity_that_may_only_read_cannot_be_written_with(
    refused: Refused, job: Job, s3: S3Server, monkeypatch: pytest.MonkeyPatch, client: str
) -> None:
    bucket = s3.create_bucket()
    for name, value in s3.reader_env.items():
        monkeypatch.setenv(name, value)
    message = refused(*job(output=f"{bucket}/labels", storage_client=client))
    assert f"{bucket}/labels" in message
    assert "--output" in message


def test_weights_of_another_network_say_what_was_expected_and_found(refused: Refused, job: Job, tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    save_file(random_state(TINY), path)
    message = refused(*job(teacher="depth-anything-v2-small", weights=path))
    assert str(path) in message
    assert "depth-anything-v2-small" in message
    assert not (tmp_path / "labels").exists()


def test_weights_that_are_not_there_or_none_at_all_are_named(refused: Refused, job: Job, tmp_path: Path) -> None:
    assert "gone.pth" in refused(*job(teacher="depth-anything-v2-small", weights=tmp_path / "gone.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    assert "text.pth" in refused(*job(teacher="depth-anything-v2-small", weights=tmp_path / "text.pth"))
    assert "--weights" in refused(*job(weights=tmp_path / "any.pth"))
    assert "--weights" in refused(*job(teacher="depth-anything-v2-giant"))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("shard_size", "0"),
        ("batch_size", "many"),
        ("limit", "-1"),
        ("max_aspect", "0.5"),
        ("max_failed", "lots"),
        ("actors", "3:1"),
        ("actors", "x"),
        ("format", "csv"),
        ("decode", "quick"),
        ("precision", "int8"),
        ("device", "tpu"),
    ],
)
def test_a_value_that_is_wrong_names_its_option(refused: Refused, job: Job, option: str, value: str) -> None:
    message = refused(*job(**{option: value}))
    assert f"--{option.replace('_', '-')}" in message
    assert value in message


def test_an_option_that_is_not_one_or_is_missing_is_named(refused: Refused, job: Job, tmp_path: Path) -> None:
    assert "--colour" in refused(*job(colour="red"))
    assert "--images is required" in refused(*job(images=None))
    assert "--output is required" in refused(*job(output=None))
    config = tmp_path / "job.yaml"
    config.write_text("colour: red\n")
    assert "--colour" in refused(*job(config=config))
    assert "nowhere.yaml" in refused(*job(config=tmp_path / "nowhere.yaml"))
    config.write_text("- a\n- b\n")
    assert "job.yaml" in refused(*job(config=config))


def test_cuda_without_a_gpu_is_refused_and_not_replaced(
    refused: Refused, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert "--device cuda" in refused(*job(device="cuda"))


def test_the_script_itself_exits_2_with_nothing_but_the_error(photos: Path, tmp_path: Path) -> None:
    command = [sys.executable, JOB, "--images", photos, "--output", tmp_path / "labels", "--teacher", "no-such"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: no teacher is named no-such")
    assert len(finished.stderr.splitlines()) <= 2
