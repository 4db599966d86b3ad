"""An embedded Ray keeps its files in a folder whose sockets it can name, or the user is told what to change."""

import io
from pathlib import Path

import pytest
from ray._private.utils import validate_socket_filepath
from rich.console import Console

from da2ray.errors import UserError
from da2ray.pipeline.control import embedded
from da2ray.pipeline.control.embedded import FOLDER_BYTES, ray_folder


def chosen(monkeypatch: pytest.MonkeyPatch, **variables: object) -> tuple[str, str]:
    """The folder, and the message for the user."""
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    out = io.StringIO()
    return ray_folder(Console(file=out, width=1000)), out.getvalue()


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder in place of /tmp/ray."""
    monkeypatch.setattr(embedded, "SHORT_FOLDER", str(tmp_path / "short"))
    return embedded.SHORT_FOLDER


def test_ray_tmpdir_goes_before_tmpdir(tmp_path: Path, short: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(str(tmp_path / "b" / "ray")) <= 200
    monkeypatch.setattr(embedded, "FOLDER_BYTES", 200)
    assert chosen(monkeypatch, RAY_TMPDIR=tmp_path / "a", TMPDIR=tmp_path / "b") == (str(tmp_path / "a" / "ray"), "")
    assert chosen(monkeypatch, TMPDIR=tmp_path / "b") == (str(tmp_path / "b" / "ray"), "")
    assert chosen(monkeypatch, RAY_TMPDIR="", TMPDIR="") == (short, "")


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
@pytest.mark.parametrize("name", ["slurm_jobdir_" * 5, "ö" * 40])
def test_a_folder_that_is_too_long_is_replaced_and_named(
    tmp_path: Path, short: str, monkeypatch: pytest.MonkeyPatch, variable: str, name: str
) -> None:
    folder, told = chosen(monkeypatch, **{variable: tmp_path / name})
    assert folder == short
    assert variable in told
    assert short in told


def test_the_longest_folder_that_is_used_has_room_for_a_socket() -> None:
    folder = "/" + "x" * (FOLDER_BYTES - 1)
    validate_socket_filepath(f"{folder}/session_2026-11-28_06-05-12_123456_4194304/sockets/plasma_store.1")


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "FOLDER_BYTES", 200)
    file = tmp_path / "file"
    file.touch()
    for place in (file, file / "below", "/proc/no"):
        with pytest.raises(UserError, match="RAY_TMPDIR"):
            chosen(monkeypatch, RAY_TMPDIR=place)
