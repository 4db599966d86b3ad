"""The named teachers of Depth Anything V2. Importing this module needs no torch."""

from dataclasses import dataclass
from pathlib import Path

from da2ray.errors import UserError
from da2ray.teachers.base import LoadOptions, Teacher
from da2ray.teachers.depth_anything import checkpoint
from da2ray.teachers.depth_anything.configs import Config
from da2ray.teachers.depth_anything.published import check_published


@dataclass(frozen=True, slots=True)
class Variant:
    """A named Depth Anything V2: its network, and where its weights are. Its methods serve as `TeacherSpec`'s functions.

    Attributes:
        name: the teacher's name.
        config: the network's size.
        max_depth: largest depth of the metric head in metres, None if depth is relative.
        weights: the hub id, or the file beside this module, that is used without `--weights`; None if nothing is published.
    """

    name: str
    config: Config
    max_depth: float | None
    weights: str | None

    def identify(self, options: LoadOptions) -> str:
        """The sha256 (hex) of the weights file, after a check that its keys and shapes, and its config.json, fit."""
        path = checkpoint.locate(self._location(options))
        checkpoint.check(path, self.config, self.name)
        if options.weights is not None:
            check_published(options.weights, path, self.config, self.name, self.max_depth)
        return checkpoint.sha256(path)

    def load(self, options: LoadOptions) -> Teacher:
        """Load the teacher on its device."""
        from da2ray.teachers.depth_anything.teacher import load_weights  # noqa: PLC0415 - torch

        return load_weights(self._location(options), self.config, self.name, self.max_depth, options)

    def _location(self, options: LoadOptions) -> str:
        weights = options.weights or self.weights
        if weights is None:
            raise UserError(f"{self.name} was never released by its authors: give --weights PATH, URL or hub id")
        # Each machine looks for the file itself, because the package may have another path there.
        embedded = Path(__file__).parent / weights
        return str(embedded) if options.weights is None and embedded.exists() else weights
