"""The files of a Marigold pipeline as diffusers saves it: in a folder, or on the Hugging Face hub and in its cache."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download

from da2ray.errors import UserError
from da2ray.storage import local_path, printable

INDEX = "model_index.json"
NETWORKS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
"""Folder of a network -> the name of its weights file, without `.safetensors` and the number of a part."""

FILES = (
    *(INDEX, "scheduler/scheduler_config.json", "tokenizer/*.json", "tokenizer/merges.txt"),
    *(f"{folder}/config.json" for folder in NETWORKS),
    *(
        f"{folder}/{stem}{end}"
        for folder, stem in NETWORKS.items()
        for end in (".safetensors", ".safetensors.index.json", "-?????-of-?????.safetensors")
    ),
)
"""The files that are fetched, hashed and loaded. Repositories also hold half-precision and pickled copies of the weights."""

HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>.+))?")


@dataclass(frozen=True, slots=True)
class Repository:
    """Where the files of a pipeline are.

    Attributes:
        name: a local folder, or a hub id `org/name`.
        commit: the commit of the hub's repository, so that all machines of a run load the same files; None for a folder.
    """

    name: str
    commit: str | None

    def fetch(self) -> tuple[Path, list[str]]:
        """The local folder of the pipeline, and the names of the `FILES` in it, in alphabetical order.

        Raises:
            UserError: the files cannot be fetched, or a network's weights are missing.
        """
        folder = Path(self.name)
        if self.commit is not None:
            try:
                folder = Path(snapshot_download(self.name, revision=self.commit, allow_patterns=[*FILES]))
            except Exception as error:  # the hub's own, its HTTP client's, the disk's
                raise _unreachable(self.name, error) from error
        names = sorted(path.relative_to(folder).as_posix() for pattern in FILES for path in folder.glob(pattern))
        for network, stem in NETWORKS.items():
            if not any(name.startswith(f"{network}/") and name.endswith(".safetensors") for name in names):
                raise UserError(
                    f"{folder} has no {network}/{stem}.safetensors: da2ray loads Marigold's weights only in this format"
                )
        return folder, names


def find_repository(source: str) -> tuple[Repository, dict[str, Any]]:
    """Find the repository of a pipeline, and read its index.

    Raises:
        UserError: the pipeline does not exist, cannot be fetched, or has no readable index.
    """
    path = local_path(source)
    if path.is_dir():
        repository, index = Repository(str(path.absolute()), None), path / INDEX
    elif (hub := HUB_ID.fullmatch(source)) is None:
        raise UserError(
            f"marigold:{printable(source)} is neither a folder nor a hub id such as org/name or org/name@main"
        )
    else:
        try:
            index = Path(hf_hub_download(hub["repo"], INDEX, revision=hub["revision"]))
        except Exception as error:  # as in `Repository.fetch`
            raise _unreachable(source, error) from error
        repository = Repository(hub["repo"], index.parent.name)  # the hub's cache has a folder for each commit
    try:
        return repository, dict(json.loads(index.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"marigold:{printable(source)} has no readable {INDEX} ({one_line(error)}): give a pipeline that diffusers saved"
        ) from error


def one_line(error: Exception) -> str:
    """The type of an error and its message in one line, shortened."""
    return f"{type(error).__name__}: {printable(error, 160)}"


def _unreachable(source: str, error: Exception) -> UserError:
    return UserError(
        f"marigold:{printable(source)} is not a local folder and cannot be fetched from the Hugging Face hub "
        f"({one_line(error)}): without a network, give --teacher marigold:FOLDER"
    )
