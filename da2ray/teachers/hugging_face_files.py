"""Files of a checkpoint as transformers publishes them: in a folder, or on the Hugging Face hub and then in its cache."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from da2ray.errors import UserError
from da2ray.storage import printable
from da2ray.teachers.depth_anything.checkpoint import HUB_ID

CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""In the order of the library's preference; an index names the files of a checkpoint in several."""


@dataclass(frozen=True, slots=True)
class Repository:
    """Where a checkpoint's files are.

    Attributes:
        source: a folder, or `org/name` on the hub.
        revision: None for a folder; on the hub what the user gave, later the commit, so that all workers have one version.
    """

    source: str
    revision: str | None = None
    on_hub: bool = False

    @classmethod
    def of(cls, source: str) -> "Repository":
        """`FOLDER`, or `ORG/NAME[@REVISION]`. What exists on disk is a folder and no hub id.

        Raises:
            UserError: neither.
        """
        if Path(source).expanduser().is_dir():
            return cls(source)
        hub = HUB_ID.fullmatch(source)
        if hub is None or hub["file"]:
            raise UserError(
                f"hf:{printable(source)} is no folder here and no hub id: give hf:ORG/NAME[@REVISION] or hf:FOLDER"
            )
        return cls(hub["repo"], hub["revision"], on_hub=True)

    def pinned(self) -> "Repository":
        """At the commit that is newest now; the hub's cache keeps each commit in a folder of its name."""
        if not self.on_hub:
            return self
        return Repository(self.source, self.need(CONFIG).parent.name, on_hub=True)

    def find(self, name: str) -> Path | None:
        """A file, fetched where it must be; None where the checkpoint has no such file.

        Raises:
            UserError: it cannot be fetched.
        """
        if not self.on_hub:
            path = Path(self.source).expanduser() / name
            return path if path.is_file() else None
        try:
            return Path(huggingface_hub.hf_hub_download(self.source, name, revision=self.revision))
        except Exception as error:  # the hub's own, its HTTP client's, the disk's
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                return None
            raise UserError(
                f"hf:{self.source}: {name} cannot be fetched from the Hugging Face hub ({type(error).__name__}: "
                f"{printable(error, 160)}): where there is no network, download the checkpoint elsewhere and give hf:FOLDER"
            ) from error

    def need(self, name: str) -> Path:
        """A file that a checkpoint must have.

        Raises:
            UserError: there is none, or it cannot be fetched.
        """
        path = self.find(name)
        if path is None:
            raise UserError(
                f"hf:{self.source} has no {name}: give a checkpoint of transformers, as save_pretrained of a model and its "
                "image processor write it"
            )
        return path

    def weights(self) -> list[Path]:
        """The files of the weights; the first one is the index where there are several.

        Raises:
            UserError: there are none, or they cannot be fetched.
        """
        first = next((path for name in WEIGHTS if (path := self.find(name))), None)
        if first is None:
            raise UserError(f"hf:{self.source} has no weights: expected one of {', '.join(WEIGHTS)}")
        if first.suffix != ".json":
            return [first]
        return [first, *(self.need(name) for name in sorted(set(read_json(first)["weight_map"].values())))]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a small file.

    Raises:
        UserError: it is none.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is no JSON: fetch it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__} where an object was expected: fetch it again")
    return content
