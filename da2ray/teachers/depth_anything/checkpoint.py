"""Weights of Depth Anything V2: find the local file of a location, and load the network that its keys and shapes describe.

This module reads `.safetensors`, and the `.pth`, `.pt` and `.bin` files that `torch.save` writes. It reads the latter as
tensors only, so that no code in a file runs. A `.safetensors` file is located and checked without torch.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from da2ray.errors import UserError
from da2ray.storage import local_path, printable, redact
from da2ray.teachers.depth_anything.configs import CONFIGS, Config, parameter_shapes
from da2ray.teachers.depth_anything.keymap import Layout, from_layout, layout_of, shapes_in

if TYPE_CHECKING:
    from torch import Tensor

    from da2ray.teachers.depth_anything.dpt import DepthAnythingV2

SAFETENSORS = ".safetensors"
SUFFIXES = (SAFETENSORS, ".pth", ".pt", ".bin")
HUB_FILE = "model.safetensors"
HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^:]+))?(:(?P<file>.+))?")
NAMED = 3
"""Most offending keys that an error names."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Recognised:
    """The contents of a weights file. They do not tell relative from metric: both have the same keys and shapes."""

    layout: Layout
    config: Config


def locate(weights: str) -> Path:
    """The local file of a weights location, fetched if needed.

    Args:
        weights: a file; a directory that holds `model.safetensors`; any fsspec URL (cached under `$DA2RAY_CACHE/weights`,
            by default `~/.cache/da2ray/weights`, by URL and version); or a hub id `org/name[@revision][:file]` (cached by
            huggingface_hub). A name that exists on disk is a path, not a hub id.

    Raises:
        UserError: the location does not exist or cannot be fetched.
    """
    if "://" in weights:
        return _download(weights)
    path = local_path(weights)
    if path.is_dir():
        path /= HUB_FILE
    if path.is_file():
        return path
    hub = HUB_ID.fullmatch(weights)
    if hub is None or (hub["file"] is None and weights.endswith(SUFFIXES)):
        raise UserError(
            f"weights {printable(path)} do not exist: give --weights a file, a URL or a hub id such as org/name"
        )
    import huggingface_hub  # noqa: PLC0415 - half a second, for hub ids only

    try:
        return Path(huggingface_hub.hf_hub_download(hub["repo"], hub["file"] or HUB_FILE, revision=hub["revision"]))
    except Exception as error:  # the hub's own, its HTTP client's, the disk's
        raise UserError(
            f"weights {printable(weights)} are not a local file and cannot be fetched from the Hugging Face hub "
            f"({_line(error)}): without a network, download them elsewhere and give --weights PATH"
        ) from error


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a weights file's tensors by key, without reading the tensors.

    Raises:
        UserError: the file cannot be read as weights.
    """
    if path.suffix != SAFETENSORS:
        return {key: tuple(tensor.shape) for key, tensor in _read_pickle(path).items()}
    with _readable(path), safe_open(path, "np") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118


def recognise(shapes: Shapes, source: str) -> Recognised:
    """The layout and size of the network that keys and shapes describe.

    They do not show whether the head is relative or metric, or its range: the teacher's name says so. They do not show
    Depth Anything V1 either, which has the same parameters but taps other blocks.

    Args:
        shapes: key -> shape.
        source: the name of the file in errors.

    Raises:
        UserError: this is not a Depth Anything V2, or it has missing, unexpected or misshapen parameters.
    """
    layout = layout_of(shapes)
    if layout is None:
        raise UserError(
            f"{source} are not a Depth Anything V2 checkpoint: expected a key pretrained.cls_token (official) or "
            f"backbone.embeddings.cls_token (Hugging Face), found {_some(shapes, 'keys')}"
        )
    cls = "pretrained.cls_token" if layout is Layout.OFFICIAL else "backbone.embeddings.cls_token"
    width = shapes[cls][-1] if shapes[cls] else 0
    config = next((config for config in CONFIGS if config.encoder.dim == width), None)
    if config is None:
        known = ", ".join(f"{config.name} {config.encoder.dim}" for config in CONFIGS)
        raise UserError(f"{source} hold an encoder {width} wide, which is not a size of Depth Anything V2 ({known})")
    expected = shapes_in(layout, parameter_shapes(config))
    faults = []
    if missing := [key for key in expected if key not in shapes]:
        faults.append(f"missing {_some(missing, 'keys')}")
    if unexpected := [key for key in shapes if key not in expected]:
        faults.append(f"unexpected {_some(unexpected, 'keys')}")
    if misshapen := [key for key in expected if key in shapes and shapes[key] != expected[key]]:
        wrong = [f"{key} {shapes[key]} instead of {expected[key]}" for key in misshapen]
        faults.append(f"misshapen {_some(wrong, 'keys')}")
    if faults:
        raise UserError(f"{source} look like Depth Anything V2 {config.name} but do not fit it: {'; '.join(faults)}")
    return Recognised(layout, config)


def check(path: Path, config: Config, teacher: str) -> Recognised:
    """Recognise a weights file, and refuse it if it does not have the size that `teacher` needs.

    Raises:
        UserError: the file has another size, or `read_shapes` or `recognise` refuses it.
    """
    found = recognise(read_shapes(path), f"weights {path}")
    if found.config != config:
        raise UserError(
            f"weights {path} hold Depth Anything V2 {_size(found.config)}; {teacher} needs {_size(config)}: "
            f"use a --teacher whose name ends in {found.config.size}, or other --weights"
        )
    return found


def load(path: Path, config: Config, teacher: str, max_depth: float | None = None) -> DepthAnythingV2:
    """Load the network of a weights file: float32, on the CPU, in eval mode, without gradients.

    Args:
        path: the file.
        config: the size that it must have.
        teacher: the teacher's name in errors.
        max_depth: largest depth of a metric head in metres, None for a relative head.

    Raises:
        UserError: the file cannot be read or does not fit.
    """
    import torch  # noqa: PLC0415 - only who runs the network needs it

    from da2ray.teachers.depth_anything.dpt import DepthAnythingV2  # noqa: PLC0415 - likewise

    found = check(path, config, teacher)
    with torch.device("meta"):
        network = DepthAnythingV2(config, max_depth)
    state = from_layout(found.layout, _read(path), parameter_shapes(config))
    # A published file may have half precision. The copy also releases the file, which may be memory-mapped.
    state = {key: torch.empty(tensor.shape).copy_(tensor) for key, tensor in state.items()}
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def sha256(path: Path) -> str:
    """The sha256 of a file in hex, computed once in a process for each path, size and modification time."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:  # noqa: ARG001
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix != SAFETENSORS:
        return _read_pickle(path)
    with _readable(path), safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a `torch.save` file by key. A zip file (torch 1.6 and later) is memory-mapped instead of read.

    Training scripts wrap the state dict in `{"model": ...}`, and DistributedDataParallel prefixes its keys with `module.`.
    """
    import torch  # noqa: PLC0415 - for a format that only torch reads

    with _readable(path):
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    for wrapper in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise UserError(f"weights {path} hold a {type(content).__name__}: expected a state dict")
    return {
        str(key).removeprefix("module."): tensor for key, tensor in content.items() if isinstance(tensor, torch.Tensor)
    }


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn any error that a reader raises for a damaged file into a UserError that names the file."""
    try:
        yield
    except Exception as error:  # unpickling garbage raises nearly anything
        if "weights_only" in str(error).lower():
            problem = "it is damaged, or holds Python objects beside the tensors, which are never loaded"
        else:
            problem = _line(error)
        kind = "safetensors" if path.suffix == SAFETENSORS else "a PyTorch checkpoint"
        raise UserError(
            f"weights {path} cannot be read as {kind} ({problem}): fetch them again, or give other --weights"
        ) from error


def _download(url: str) -> Path:
    """Download the current object of an fsspec URL. The copy's name changes with the object, so a copy is never stale."""
    import fsspec  # noqa: PLC0415 - for URLs only
    from fsspec.implementations.local import LocalFileSystem  # noqa: PLC0415

    try:
        filesystem, remote = fsspec.url_to_fs(url)
        if isinstance(filesystem, LocalFileSystem):
            return locate(remote)
        info = filesystem.info(remote)
        version = [str(info.get(key)) for key in ("ETag", "etag", "LastModified", "mtime", "size")]
        digest = hashlib.sha256("\n".join([url, *version]).encode()).hexdigest()[:16]
        folder = local_path(os.environ.get("DA2RAY_CACHE") or "~/.cache/da2ray") / "weights"
        # The name must not contain a URL's signature, which would also hide the suffix.
        target = folder / f"{digest}-{Path(redact(remote)).name}"
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            # Several actors of a node may fetch at once: each uses its own temporary file, and the last rename wins.
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                filesystem.get_file(remote, str(Path(temporary) / "weights"))
                (Path(temporary) / "weights").replace(target)
    except UserError:
        raise
    except Exception as error:  # every filesystem has errors of its own
        raise UserError(
            f"weights {printable(url)} cannot be fetched ({_line(error)}): check the access to it, or give --weights PATH"
        ) from error
    return target


def _line(error: Exception) -> str:
    """The type of an error and the first sentence or line of its message, shortened."""
    first = printable(re.split(r"\n|\. ", str(error).strip(), maxsplit=1)[0], 160)
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _some(items: Iterable[str], noun: str) -> str:
    items = list(items)
    if not items:
        return f"no {noun}"
    if len(items) <= NAMED:
        return ", ".join(items)
    return f"{len(items)} {noun} such as {', '.join(items[:NAMED])}"


def _size(config: Config) -> str:
    return f"{config.size} ({config.name}, {config.encoder.dim} wide)"
