"""The common part of teachers from torch.hub repositories: the repository, the user's consent to run it, weights and identity.

A repository is a folder with a `hubconf.py`, or a commit on GitHub. da2ray fetches a commit once and keeps it under
`$DA2RAY_CACHE/hub` (by default `~/.cache/da2ray/hub`). It takes only a commit, never a branch or a tag, because every machine
of a cluster and every later run must run the same code. da2ray fetches by itself and lets torch.hub load the folder: torch.hub's
own fetch prints, asks at the terminal, and cannot hand over the files without running them.

This module reads the weights, as tensors only. The repository never does: its `pretrained=True` would ignore missing parameters,
which stay random, and would leave no file to hash. The default weights are the files that the repository would load.
"""

import contextlib
import hashlib
import io
import os
import re
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import safetensors.torch
import torch
from torch import Tensor, nn

from da2ray.errors import UserError
from da2ray.storage import local_path, printable
from da2ray.teachers.base import LoadOptions, PixelBatch, SizeRule, Teacher
from da2ray.teachers.depth_anything import checkpoint
from da2ray.teachers.depth_anything.teacher import precision_dtype, torch_device

HUBCONF = "hubconf.py"
GITHUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+):(?P<commit>[0-9a-f]{40})")
GITHUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:.*)?")
ARCHIVE = "https://github.com/{name}/archive/{commit}.zip"
SOURCES = {".py", ".json", ".yaml", ".yml"}
"""Suffixes of the files that decide how a network is built and run."""

WRAPPERS = ("model_state_dict", "state_dict", "model")
"""Keys under which training scripts store the state dict. The first is Metric3D's."""


@dataclass(frozen=True, slots=True)
class HubModel:
    """A network that a function of a repository's `hubconf.py` builds. Picklable.

    Attributes:
        teacher: the value of `--teacher`.
        repo: a folder, or `org/name:commit`.
        entry: the function's name.
        arguments: the function's arguments by name. They keep it from loading weights.
        weights: the location of the published weights, in the form of `--weights`.
    """

    teacher: str
    repo: str
    entry: str
    arguments: tuple[tuple[str, str | bool], ...]
    weights: str

    def identify(self, options: LoadOptions) -> str:
        """The sha256 (hex) over the hashes of the weights file and of the repository's sources. Runs none of its code.

        Raises:
            UserError: the repository's code may not run, or the repository or the weights are missing. Only loading shows
                whether they fit each other.
        """
        self.check(options)
        sources = sources_sha256(find_repo(self.repo))
        weights = checkpoint.sha256(self._weights(options))
        return hashlib.sha256(f"weights {weights}\nsources {sources}\n".encode()).hexdigest()

    def network(self, options: LoadOptions) -> nn.Module:
        """Build the network and load its weights: float32, on the CPU, in eval mode, without gradients.

        Raises:
            UserError: `identify` would raise, the repository's code fails, or the weights do not fit the network.
        """
        self.check(options)
        folder, weights = find_repo(self.repo), self._weights(options)
        network = self._build(folder)
        refuse_mixed_sources(network, folder, self.teacher)
        fill(network, weights, self.teacher)
        return network.eval().requires_grad_(False)

    def check(self, options: LoadOptions) -> None:
        """Refuse impossible options before anything is fetched or run.

        Raises:
            UserError: the user did not consent to run the code, or asked to compile it.
        """
        if not options.trust_remote_code:
            raise UserError(
                f"{self.teacher} runs Python code that is not part of da2ray: {self.entry} in {HUBCONF} of {self.origin()} and "
                "its imports. Read it and give --trust-remote-code, or choose another --teacher"
            )
        if options.compile:
            raise UserError(
                f"{self.teacher} cannot be compiled, because its code is not written for it: drop --compile"
            )

    def origin(self) -> str:
        """The source of the code, for messages."""
        github = GITHUB.fullmatch(self.repo)
        return f"https://github.com/{github['name']} at {github['commit']}" if github else printable(self.repo)

    def _weights(self, options: LoadOptions) -> Path:
        return checkpoint.locate(options.weights or self.weights)

    def _build(self, folder: Path) -> nn.Module:
        try:
            # The messages of the code during its import ("xFormers not available") are for its own developers.
            output = io.StringIO()
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                network = torch.hub.load(
                    str(folder), self.entry, source="local", trust_repo=True, verbose=False, **dict(self.arguments)
                )
        except Exception as error:  # somebody else's code
            raise UserError(
                f"{self.teacher}: {self.entry} in {HUBCONF} of {folder} failed: {_remedy(error)}"
            ) from error
        if not isinstance(network, nn.Module):
            raise UserError(
                f"{self.teacher}: {self.entry} of {folder} returned a {type(network).__name__} instead of a torch Module"
            )
        return network


def parse_repo(options: Mapping[str, str], teacher: str, published: str) -> str:
    """The repository that `--teacher-option repo=` names, or `published` by default.

    Raises:
        UserError: the user gave an option other than `repo`.
    """
    if unknown := [key for key in options if key != "repo"]:
        raise UserError(
            f"--teacher {teacher} has no option {printable(unknown[0])}: it takes repo (a folder, or ORG/NAME:COMMIT on GitHub)"
        )
    return options.get("repo", published)


def find_repo(repo: str) -> Path:
    """The folder of a repository. Fetches a commit on GitHub that is not in the cache.

    Raises:
        UserError: the repository does not exist or cannot be fetched.
    """
    folder = local_path(repo).resolve()
    if folder.is_dir():
        if not (folder / HUBCONF).is_file():
            raise UserError(
                f"--teacher-option repo={printable(repo)} contains no {HUBCONF}: give the folder of a torch.hub repository"
            )
        return folder
    if github := GITHUB.fullmatch(repo):
        return _fetch(github["name"], github["commit"])
    if GITHUB_NAME.fullmatch(repo):
        name = repo.partition(":")[0]
        raise UserError(
            f"--teacher-option repo={printable(repo)} is not a folder here, and on GitHub its code may change: give "
            f"repo={name}:COMMIT with all 40 digits (`git ls-remote https://github.com/{name}` shows them)"
        )
    raise UserError(
        f"--teacher-option repo={printable(repo)} does not exist: give a folder, or ORG/NAME:COMMIT on GitHub"
    )


def sources_sha256(folder: Path) -> str:
    """The sha256 (hex) over names and contents of a repository's source and configuration files, without hidden files."""
    digest = hashlib.sha256()
    for path in sorted(path.relative_to(folder) for path in folder.rglob("*") if path.suffix in SOURCES):
        if (folder / path).is_file() and not any(part.startswith(".") for part in path.parts):
            content = hashlib.sha256((folder / path).read_bytes()).hexdigest()
            digest.update(f"{path.as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def refuse_mixed_sources(network: nn.Module, folder: Path, teacher: str) -> None:
    """Refuse a network if this process has already imported a part of it from another copy of the repository.

    Repositories give their packages plain names, and Python imports a name only once.

    Raises:
        UserError: a module of the network comes from another folder.
    """
    for part in network.modules():
        name = type(part).__module__
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and (folder / name.partition(".")[0]).exists() and not Path(file).resolve().is_relative_to(folder):
            raise UserError(
                f"{teacher}: this process has already imported {name} from {file}, so it cannot import it from {folder}: "
                "use one repository for both teachers"
            )


def fill(network: nn.Module, path: Path, teacher: str) -> None:
    """Load weights into a network. Like the repositories, ignore parameters in the file that the network does not have.

    Raises:
        UserError: the file cannot be read, or a parameter is missing or has another shape.
    """
    state = _read(path)
    wanted = network.state_dict()
    missing = [key for key in wanted if key not in state]
    misshapen = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    if missing or misshapen:
        key = (missing or misshapen)[0]
        found = f"no {key}" if missing else f"{key} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
        raise UserError(
            f"weights {path} do not fit {teacher}: {len(missing)} of its {len(wanted)} parameters are missing and "
            f"{len(misshapen)} have another shape ({found}): give the --weights of this model"
        )
    network.load_state_dict(state, strict=False)


def load_teacher(
    model: HubModel,
    make: Callable[[nn.Module, torch.device, torch.dtype], Teacher],
    size_rule: SizeRule,
    options: LoadOptions,
) -> Teacher:
    """Load a teacher on its device and let it label one small grey image.

    This shows before a run starts whether the code can run here. Some code imports packages only when the network runs, and
    some operations exist only for some devices and precisions.

    Args:
        model: the network to load.
        make: network, device, dtype of the matrix products -> teacher.
        size_rule: the teacher's size rule.
        options: how to run the teacher.

    Raises:
        UserError: `HubModel.network` raises, the device or the precision is not available, or the code fails.
        torch.OutOfMemoryError: the network does not fit on the device.
    """
    model.check(options)
    device = torch_device(options.device)
    dtype = precision_dtype(options.precision, device)
    network = model.network(options)
    height, width = 48, 64
    grey = torch.full((height * width * 3,), 128, dtype=torch.uint8, device=device)
    try:
        teacher = make(network, device, dtype)
        teacher.predict(PixelBatch(grey, [(height, width)], size_rule(height, width)))
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # somebody else's code
        raise UserError(
            f"{model.teacher}: the code of {model.origin()} fails here, with --device {options.device} "
            f"--precision {options.precision}: {_remedy(error)}"
        ) from error
    return teacher


@contextlib.contextmanager
def running(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """A context in which a network runs at a precision: fp32 is IEEE fp32 without TF32; bf16 and fp16 run under autocast.

    Everything in it is deterministic, because a resumed run must give the same bytes.
    """
    reduced = dtype != torch.float32
    with (
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=reduced),
        torch.autocast(device.type, dtype, enabled=reduced),
    ):
        yield


def _fetch(name: str, commit: str) -> Path:
    cache = local_path(os.environ.get("DA2RAY_CACHE") or "~/.cache/da2ray") / "hub"
    folder = cache / f"{name.replace('/', '_')}_{commit}"
    if not folder.is_dir():
        url = ARCHIVE.format(name=name, commit=commit)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with fsspec.open(url) as file:
                archive = zipfile.ZipFile(io.BytesIO(file.read()))
            # Several actors of a node may fetch at once: each uses its own folder, and the first rename wins.
            with tempfile.TemporaryDirectory(dir=cache) as temporary:
                archive.extractall(temporary)
                (top,) = Path(temporary).iterdir()
                try:
                    top.rename(folder)
                except OSError:
                    if not folder.is_dir():
                        raise
        except Exception as error:  # the HTTP client's, the archive's, the disk's
            raise UserError(
                f"{url} cannot be fetched ({_line(error)}): without a network, clone the repository elsewhere and "
                "give --teacher-option repo=FOLDER"
            ) from error
    return find_repo(str(folder))


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors by key of a `.safetensors` file or of a `torch.save` file. From the latter it loads only tensors."""
    try:
        if path.suffix == checkpoint.SAFETENSORS:
            return safetensors.torch.load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # unpickling garbage raises nearly anything
        raise UserError(
            f"weights {path} cannot be read ({_line(error)}): give a .safetensors file, or a torch.save file of tensors"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise UserError(f"weights {path} hold a {type(content).__name__}: expected a state dict")
    return {str(key).removeprefix("module."): tensor for key, tensor in content.items() if isinstance(tensor, Tensor)}


def _remedy(error: BaseException) -> str:
    """A description of an error in a repository's code, and what to do about it."""
    root: BaseException | None = error  # Metric3D catches its own import errors, so look for one among the causes
    while root is not None and not isinstance(root, ImportError):
        root = root.__cause__ or root.__context__
    if root is not None:
        return f"{_line(root)}\nInstall it on every machine: the repository's requirements name the package and its version"
    return f"{_line(error)}\nFix that, or give another repository with --teacher-option repo=FOLDER"


def _line(error: BaseException) -> str:
    """The type of an error and the first line of its message, shortened."""
    return printable(f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0], 200)
