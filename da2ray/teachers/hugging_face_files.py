"""The files of a transformers checkpoint: in a folder, or on the Hugging Face hub and in its cache."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from da2ray.errors import UserError
from da2ray.storage import local_path, printable
from da2ray.teachers.depth_anything.checkpoint import HUB_ID

CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Names of weights files, in the order of the library's preference. An index names the files of a sharded checkpoint."""


@dataclass(frozen=True, slots=True)
class Repository:
    """Where a checkpoint's files are.

    Attributes:
        source: a folder, or `org/name` on the hub.
        revision: None for a folder. On the hub first the user's revision, and after `pinned` the commit, so that all workers
            have the same version.
        on_hub: whether `source` is on the hub.
    """

    source: str
    revision: str | None = None
    on_hub: bool = False

    @classmethod
    def of(cls, source: str) -> "Repository":
        """Parse `FOLDER` or `ORG/NAME[@REVISION]`. A name that exists on disk is a folder, not a hub id.

        Raises:
            UserError: the source is neither.
        """
        if local_path(source).is_dir():
            return cls(source)
        hub = HUB_ID.fullmatch(source)
        if hub is None or hub["file"]:
            raise UserError(
                f"hf:{printable(source)} is neither a folder here nor a hub id: give hf:ORG/NAME[@REVISION] or hf:FOLDER"
            )
        return cls(hub["repo"], hub["revision"], on_hub=True)

    def pinned(self) -> "Repository":
        """The same repository at the revision's current commit."""
        if not self.on_hub:
            return self
        # The hub's cache keeps each commit in a folder named after it.
        return Repository(self.source, self.need(CONFIG).parent.name, on_hub=True)

    def find(self, name: str) -> Path | None:
        """The local path of a file, fetched if needed, or None if the checkpoint has no such file.

        Raises:
            UserError: the file cannot be fetched.
        """
        if not self.on_hub:
            path = local_path(self.source) / name
            return path if path.is_file() else None
        try:
            return Path(huggingface_hub.hf_hub_download(self.source, name, revision=self.revision))
        except Exception as error:  # the hub's own, its HTTP client's, the disk's
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                return None
            raise UserError(
                f"hf:{self.source}: {name} cannot be fetched from the Hugging Face hub ({type(error).__name__}: "
                f"{printable(error, 160)}): without a network, download the checkpoint elsewhere and give hf:FOLDER"
            ) from error

    def need(self, name: str) -> Path:
        """The local path of a file that a checkpoint must have.

        Raises:
            UserError: the checkpoint has no such file, or it cannot be fetched.
        """
        path = self.find(name)
        if path is None:
            raise UserError(
                f"hf:{self.source} has no {name}: give a transformers checkpoint, as the save_pretrained of a model and of its "
                "image processor writes it"
            )
        return path

    def weights(self) -> list[Path]:
        """The weights files. If there are several, the first one is the index.

        Raises:
            UserError: the checkpoint has no weights, or they cannot be fetched.
        """
        first = next((path for name in WEIGHTS if (path := self.find(name))), None)
        if first is None:
            raise UserError(f"hf:{self.source} has no weights: expected one of {', '.join(WEIGHTS)}")
        if first.suffix != ".json":
            return [first]
        return [first, *(self.need(name) for name in sorted(set(read_json(first)["weight_map"].values())))]


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a small file.

    Raises:
        UserError: the file does not hold a JSON object.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: fetch it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__} instead of a JSON object: fetch it again")
    return content
