"""What teachers out of torch.hub repositories share: the repository, the user's consent to run it, weights, identity.

A repository is a folder with a `hubconf.py`, or a commit on GitHub, which is fetched once and kept under
`$DA2RAY_CACHE/hub` (by default `~/.cache/da2ray/hub`). Only a commit, never a branch or a tag: every machine of a cluster, and
every later run, must run the same code. The fetch is ours and not torch.hub's, which prints, asks at the terminal, and cannot
hand over the files without running them; torch.hub then loads the folder.

Weights are read here, as tensors only, and never by the repository: its `pretrained=True` would ignore missing parameters,
which stay random, and leave no file to hash. By default they are the files that it would load.
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
from da2ray.storage import printable
from da2ray.teachers.base import LoadOptions, PixelBatch, SizeRule, Teacher
from da2ray.teachers.depth_anything import checkpoint
from da2ray.teachers.depth_anything.teacher import precision_dtype, torch_device

HUBCONF = "hubconf.py"
GITHUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+):(?P<commit>[0-9a-f]{40})")
GITHUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:.*)?")
ARCHIVE = "https://github.com/{name}/archive/{commit}.zip"
SOURCES = {".py", ".json", ".yaml", ".yml"}
"""Suffixes of what decides how a network is built and run."""

WRAPPERS = ("model_state_dict", "state_dict", "model")
"""Keys under which training scripts keep the state dict; the first is Metric3D's."""


@dataclass(frozen=True, slots=True)
class HubModel:
    """A network that a function of a repository's `hubconf.py` builds. Picklable.

    Attributes:
        teacher: what `--teacher` says.
        repo: a folder, or `org/name:commit`.
        entry: the function.
        arguments: its arguments, by name; with them it loads no weights.
        weights: where the published weights are, as `--weights` says it.
    """

    teacher: str
    repo: str
    entry: str
    arguments: tuple[tuple[str, str | bool], ...]
    weights: str

    def identify(self, options: LoadOptions) -> str:
        """sha256 (hex) over that of the weights file and those of the repository's sources. Runs none of its code.

        Raises:
            UserError: its code may not run, or the repository or the weights are missing. Whether they fit each other is
                seen when they are loaded.
        """
        self.check(options)
        sources = sources_sha256(find_repo(self.repo))
        weights = checkpoint.sha256(self._weights(options))
        return hashlib.sha256(f"weights {weights}\nsources {sources}\n".encode()).hexdigest()

    def network(self, options: LoadOptions) -> nn.Module:
        """The network with its weights: float32, on the CPU, in eval mode, without gradients.

        Raises:
            UserError: as `identify`, or the repository's code fails, or the weights do not fit the network.
        """
        self.check(options)
        folder, weights = find_repo(self.repo), self._weights(options)
        network = self._build(folder)
        refuse_mixed_sources(network, folder, self.teacher)
        fill(network, weights, self.teacher)
        return network.eval().requires_grad_(False)

    def check(self, options: LoadOptions) -> None:
        """Refuse what cannot be, before anything is fetched or run."""
        if not options.trust_remote_code:
            raise UserError(
                f"{self.teacher} runs Python code that is not da2ray's: {self.entry} in {HUBCONF} of {self.origin()} and "
                "what it imports; read it, then give --trust-remote-code, or choose another --teacher"
            )
        if options.compile:
            raise UserError(
                f"{self.teacher} cannot be compiled, its code is written to be run as it is: drop --compile"
            )

    def origin(self) -> str:
        """Where its code comes from, for a user."""
        github = GITHUB.fullmatch(self.repo)
        return f"https://github.com/{github['name']} at {github['commit']}" if github else printable(self.repo)

    def _weights(self, options: LoadOptions) -> Path:
        return checkpoint.locate(options.weights or self.weights)

    def _build(self, folder: Path) -> nn.Module:
        try:
            # What the code says while it is imported ("xFormers not available") is for its own developers.
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
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
                f"{self.teacher}: {self.entry} of {folder} gave a {type(network).__name__} and no torch Module"
            )
        return network


def parse_repo(options: Mapping[str, str], teacher: str, published: str) -> str:
    """The repository that `--teacher-option` names, `published` where it names none.

    Raises:
        UserError: there is another option.
    """
    if unknown := [key for key in options if key != "repo"]:
        raise UserError(
            f"--teacher {teacher} has no option {printable(unknown[0])}: it has repo (a folder, or ORG/NAME:COMMIT on GitHub)"
        )
    return options.get("repo", published)


def find_repo(repo: str) -> Path:
    """The folder of a repository, fetched where it is a commit on GitHub that is not here yet.

    Raises:
        UserError: there is no such repository, or it cannot be fetched.
    """
    folder = Path(repo).expanduser().resolve()
    if folder.is_dir():
        if not (folder / HUBCONF).is_file():
            raise UserError(
                f"--teacher-option repo={printable(repo)} has no {HUBCONF}: give the folder of a torch.hub repository"
            )
        return folder
    if github := GITHUB.fullmatch(repo):
        return _fetch(github["name"], github["commit"])
    if GITHUB_NAME.fullmatch(repo):
        name = repo.partition(":")[0]
        raise UserError(
            f"--teacher-option repo={printable(repo)} is no folder here, and on GitHub may be other code tomorrow: give "
            f"repo={name}:COMMIT with all 40 digits (`git ls-remote https://github.com/{name}` shows them)"
        )
    raise UserError(
        f"--teacher-option repo={printable(repo)} does not exist: give a folder, or ORG/NAME:COMMIT on GitHub"
    )


def sources_sha256(folder: Path) -> str:
    """sha256 (hex) over names and contents of a repository's source and configuration files, hidden ones left out."""
    digest = hashlib.sha256()
    for path in sorted(path.relative_to(folder) for path in folder.rglob("*") if path.suffix in SOURCES):
        if (folder / path).is_file() and not any(part.startswith(".") for part in path.parts):
            content = hashlib.sha256((folder / path).read_bytes()).hexdigest()
            digest.update(f"{path.as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def refuse_mixed_sources(network: nn.Module, folder: Path, teacher: str) -> None:
    """Refuse a network of which a part comes from another copy of the repository that this process imported before.

    Raises:
        UserError: so it is. Repositories call their packages by plain names, and Python imports a name once.
    """
    for part in network.modules():
        name = type(part).__module__
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and (folder / name.partition(".")[0]).exists() and not Path(file).resolve().is_relative_to(folder):
            raise UserError(
                f"{teacher}: this process has imported {name} from {file} before, so that it cannot be imported from {folder}: "
                "use one repository for both teachers"
            )


def fill(network: nn.Module, path: Path, teacher: str) -> None:
    """Load weights into a network. What the file has beyond the network's own is left out, as the repositories do.

    Raises:
        UserError: the file cannot be read, or a parameter is missing or of another shape.
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
            f"{len(misshapen)} of another shape ({found}): give the --weights of this model"
        )
    network.load_state_dict(state, strict=False)


def load_teacher(
    model: HubModel,
    make: Callable[[nn.Module, torch.device, torch.dtype], Teacher],
    size_rule: SizeRule,
    options: LoadOptions,
) -> Teacher:
    """A teacher on its device, after it has labelled one small grey image.

    Code that cannot run here says so before a run begins: some packages are looked for only when the network runs, and some
    operations are there for some devices and precisions only.

    Args:
        model: what to load.
        make: network, device, dtype of the matrix products -> teacher.
        size_rule: of the teacher.
        options: how it is run.

    Raises:
        UserError: as `HubModel.network`, or the device or the precision is not there, or the code fails.
        torch.OutOfMemoryError: the device has no room for it.
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
    """Where a network runs at a precision: fp32 is IEEE fp32, without TF32; bf16 and fp16 run under autocast.

    Deterministic, since a resumed run must give the same bytes.
    """
    reduced = dtype != torch.float32
    with (
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=reduced),
        torch.autocast(device.type, dtype, enabled=reduced),
    ):
        yield


def _fetch(name: str, commit: str) -> Path:
    cache = Path(os.environ.get("DA2RAY_CACHE") or "~/.cache/da2ray").expanduser() / "hub"
    folder = cache / f"{name.replace('/', '_')}_{commit}"
    if not folder.is_dir():
        url = ARCHIVE.format(name=name, commit=commit)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with fsspec.open(url) as file:
                archive = zipfile.ZipFile(io.BytesIO(file.read()))
            # Several actors of a node may fetch at once: each into its own folder, and the first rename wins.
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
                f"{url} cannot be fetched ({_line(error)}): where there is no network, clone the repository elsewhere and "
                "give --teacher-option repo=FOLDER"
            ) from error
    return find_repo(str(folder))


def _read(path: Path) -> dict[str, Tensor]:
    """Key -> tensor of a `.safetensors` file, or of what `torch.save` wrote, of which nothing but tensors is loaded."""
    try:
        if path.suffix == checkpoint.SAFETENSORS:
            return safetensors.torch.load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # unpickling garbage raises nearly anything
        raise UserError(
            f"weights {path} cannot be read ({_line(error)}): give a file of tensors, .safetensors or torch.save's"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise UserError(f"weights {path} hold a {type(content).__name__} where a state dict was expected")
    return {str(key).removeprefix("module."): tensor for key, tensor in content.items() if isinstance(tensor, Tensor)}


def _remedy(error: BaseException) -> str:
    """What went wrong in a repository's code, and what to do about it. Metric3D catches its own import errors."""
    root: BaseException | None = error
    while root is not None and not isinstance(root, ImportError):
        root = root.__cause__ or root.__context__
    if root is not None:
        return f"{_line(root)}\nInstall what it needs, on every machine: the repository's requirements name it, with versions"
    return f"{_line(error)}\nMend that, or give another repository with --teacher-option repo=FOLDER"


def _line(error: BaseException) -> str:
    """The type of an error and the first line of its message, shortened."""
    return printable(f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0], 200)
