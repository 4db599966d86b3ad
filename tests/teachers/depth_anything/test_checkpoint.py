"""Weights load from every place where they are published. The error for a file that does not fit says what was expected."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save_file
from torch import Tensor

from da2ray.errors import UserError
from da2ray.teachers.depth_anything import checkpoint
from da2ray.teachers.depth_anything.configs import CONFIGS, TINY, VITB, VITS, Config, parameter_shapes
from da2ray.teachers.depth_anything.dpt import DepthAnythingV2
from da2ray.teachers.depth_anything.keymap import Layout, to_hf
from da2ray.teachers.depth_anything.teacher import random_state
from tests.teachers.depth_anything import reference

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    return random_state(TINY)


def assert_holds(network: DepthAnythingV2, state: State) -> None:
    loaded = network.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


WRITERS: dict[str, Callable[[State, Path], Any]] = {
    "official.pth": torch.save,
    "legacy.pth": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "wrapped.pth": lambda state, path: torch.save({"model": {f"module.{k}": v for k, v in state.items()}}, path),
    "hf.bin": lambda state, path: torch.save(to_hf(state), path),
    "memory.safetensors": lambda state, path: save_file(to_hf(state, Layout.HF_MEMORY), path),
    "official.safetensors": save_file,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_container_and_layout_loads_to_the_same_bits(name: str, state: State, tmp_path: Path) -> None:
    WRITERS[name](state, tmp_path / name)
    assert_holds(checkpoint.load(tmp_path / name, TINY, "tiny"), state)


def test_a_folder_that_transformers_saved_loads_to_the_same_bits(state: State, tmp_path: Path) -> None:
    reference.build(TINY, state).save_pretrained(tmp_path)
    assert_holds(checkpoint.load(checkpoint.locate(str(tmp_path)), TINY, "tiny"), state)


def test_half_precision_weights_become_float32(state: State, tmp_path: Path) -> None:
    path = tmp_path / "half.pth"
    torch.save({key: tensor.half() for key, tensor in state.items()}, path)
    network = checkpoint.load(path, TINY, "tiny")
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_a_loaded_network_outlives_its_file(state: State, tmp_path: Path) -> None:
    """Truncating a memory-mapped file that a network uses would kill the process."""
    path = tmp_path / "tiny.pth"
    torch.save(state, path)
    network = checkpoint.load(path, TINY, "tiny")
    os.truncate(path, 0)
    assert_holds(network, state)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_the_shapes_that_files_are_checked_by_are_those_of_the_network(config: Config) -> None:
    with torch.device("meta"):
        state = DepthAnythingV2(config).state_dict()
    assert list(parameter_shapes(config).items()) == [(key, tuple(tensor.shape)) for key, tensor in state.items()]


def test_sizes_are_recognised_by_shapes_alone() -> None:
    for config in (VITS, VITB):
        for layout in Layout:
            shapes = checkpoint.shapes_in(layout, parameter_shapes(config))
            assert checkpoint.recognise(shapes, "it") == checkpoint.Recognised(layout, config)


def test_the_error_for_weights_of_another_size_names_both_sizes(state: State, tmp_path: Path) -> None:
    path = tmp_path / "tiny.pth"
    torch.save(state, path)
    with pytest.raises(UserError) as caught:
        checkpoint.load(path, VITS, "depth-anything-v2-small")
    message = str(caught.value)
    assert f"weights {path} hold Depth Anything V2 random-tiny (tiny, 64 wide)" in message
    assert "depth-anything-v2-small needs small (vits, 384 wide)" in message
    assert "--weights" in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda _: {"encoder.weight": torch.ones(1)}, "expected a key pretrained.cls_token (official) or "),
        (lambda _: {"encoder.weight": torch.ones(1)}, "found encoder.weight"),
        (lambda _: {f"layer.{i}": torch.ones(1) for i in range(12)}, "found 12 keys such as layer.0, layer.1, layer.2"),
        (lambda _: {}, "found no keys"),
        (lambda s: s | {"pretrained.cls_token": torch.ones(1, 1, 500)}, "hold an encoder 500 wide"),
        (lambda s: s | {"pretrained.cls_token": torch.tensor(1.0)}, "hold an encoder 0 wide"),
        (
            lambda s: {k: v for k, v in s.items() if "ls1" not in k},
            "missing 4 keys such as pretrained.blocks.0.ls1.gamma",
        ),
        (lambda s: s | {"pretrained.register_tokens": torch.ones(1)}, "unexpected pretrained.register_tokens"),
        (
            lambda s: s | {"pretrained.pos_embed": torch.ones(1, 257, 64)},
            "misshapen pretrained.pos_embed (1, 257, 64) instead of (1, 1370, 64)",
        ),
        (lambda _: [torch.ones(1)], "hold a list: expected a state dict"),
    ],
)
def test_the_error_for_a_checkpoint_that_does_not_fit_says_what_was_expected_and_found(
    change: Callable[[State], object], expected: str, state: State, tmp_path: Path
) -> None:
    path = tmp_path / "odd.pth"
    torch.save(change(state), path)
    with pytest.raises(UserError) as caught:
        checkpoint.load(path, TINY, "tiny")
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


class Bomb:
    """An object whose pickle creates a folder when it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("suffix", checkpoint.SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"garbage" * 100, b"\x80\x02", b"PK\x03\x04", b"\xff" * 64])
def test_garbage_is_a_user_error(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"garbage{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read") as caught:
        checkpoint.load(path, TINY, "tiny")
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
@pytest.mark.parametrize("name", ["official.pth", "legacy.pth", "official.safetensors"])
def test_a_truncated_file_is_a_user_error(name: str, share: float, state: State, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](state, path)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load(path, TINY, "tiny")


def test_code_in_a_pickle_is_refused_and_not_run(state: State, tmp_path: Path) -> None:
    path, proof = tmp_path / "code.pth", tmp_path / "ran"
    torch.save(state | {"config": Bomb(str(proof))}, path)
    with pytest.raises(UserError, match="never loaded"):
        checkpoint.load(path, TINY, "tiny")
    assert not proof.exists()


@pytest.mark.parametrize("weights", ["missing.pth", "checkpoints/missing.pth", "/nowhere/missing", "a/b/c"])
def test_a_missing_path_is_not_asked_of_the_hub(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(UserError, match="do not exist: give --weights"):
        checkpoint.locate(weights)


def test_the_error_for_a_folder_without_weights_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.safetensors do not exist"):
        checkpoint.locate(str(tmp_path))


@pytest.mark.parametrize(
    ("weights", "asked"),
    [
        ("org/name", ("org/name", "model.safetensors", None)),
        ("org/name:depth.pth", ("org/name", "depth.pth", None)),
        ("org/name@v1:sub/depth.pth", ("org/name", "sub/depth.pth", "v1")),
    ],
)
def test_a_hub_id_names_repository_revision_and_file(
    weights: str, asked: tuple[str, str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def download(repo: str, file: str, revision: str | None) -> str:
        calls.append((repo, file, revision))
        return "/cache/file"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert checkpoint.locate(weights) == Path("/cache/file")
    assert calls == [asked]


def test_a_name_that_exists_on_disk_is_not_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("the hub was asked"))
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").touch()
    assert checkpoint.locate("org/name") == Path("org/name")


@pytest.mark.parametrize(
    "error",
    [
        errors.LocalEntryNotFoundError("no network\nand more"),
        errors.OfflineModeIsEnabled("offline"),
        errors.EntryNotFoundError("no such file"),
        errors.HFValidationError("bad id"),
        ConnectionError("refused"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_unreachable_hub_is_a_user_error_that_names_weights(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(UserError, match=r"give --weights PATH") as caught:
        checkpoint.locate("org/name")
    assert type(error).__name__ in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_each_version_of_a_url_is_fetched_once(state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DA2RAY_CACHE", str(tmp_path))
    memory = fsspec.filesystem("memory")
    url = "memory://weights/tiny.pth"
    torch.save(state, tmp_path / "tiny.pth")
    memory.pipe("/weights/tiny.pth", (tmp_path / "tiny.pth").read_bytes())
    first = checkpoint.locate(url)
    assert first.parent == tmp_path / "weights"
    assert_holds(checkpoint.load(first, TINY, "tiny"), state)
    stamp = first.stat().st_mtime_ns
    assert checkpoint.locate(url) == first
    assert first.stat().st_mtime_ns == stamp
    memory.pipe("/weights/tiny.pth", b"another version")
    assert checkpoint.locate(url).read_bytes() == b"another version"
    assert sorted((tmp_path / "weights").iterdir()) == sorted({first, checkpoint.locate(url)}), (
        "a temporary file was left"
    )


def test_a_failed_fetch_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DA2RAY_CACHE", str(tmp_path))
    memory = fsspec.filesystem("memory")
    memory.pipe("/weights/cut.pth", b"whole")

    def get_file(_: str, local: str) -> None:
        Path(local).write_bytes(b"who")
        raise ConnectionResetError("cut")

    monkeypatch.setattr(type(memory), "get_file", lambda _, *paths: get_file(*paths))
    with pytest.raises(UserError, match=r"cannot be fetched \(ConnectionResetError: cut\)"):
        checkpoint.locate("memory://weights/cut.pth")
    assert list((tmp_path / "weights").iterdir()) == []


@pytest.mark.parametrize("url", ["memory://weights/none.pth", "nosuch://weights/none.pth"])
def test_a_url_that_cannot_be_read_is_a_user_error(url: str) -> None:
    with pytest.raises(UserError, match="cannot be fetched"):
        checkpoint.locate(url)


def test_a_file_url_is_read_in_place(tmp_path: Path) -> None:
    (tmp_path / "tiny.pth").touch()
    assert checkpoint.locate(f"file://{tmp_path}/tiny.pth") == tmp_path / "tiny.pth"


def test_the_hash_follows_the_file(tmp_path: Path) -> None:
    path = tmp_path / "tiny.pth"
    path.write_bytes(b"abc")
    assert checkpoint.sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    path.write_bytes(b"abcd")
    assert checkpoint.sha256(path) == "88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589"
