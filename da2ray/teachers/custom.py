"""A teacher of the user's own: `--teacher mypkg.mymodule:MyTeacher`. All that such a class needs can be imported from here.

    class MyTeacher:
        kind = "disparity"  # or "depth" or "metric": `Kind`

        def __init__(self, options: LoadOptions) -> None: ...

        def predict(self, batch: PixelBatch) -> Prediction: ...

Besides `kind` it may have these attributes: `size_rule` (`OfficialSize()` unless given), `camera` (`Camera.UNUSED`), `licence`
of its weights, `size_step` where `predict` takes any size whose sides are multiples of that many pixels (`--consistency scale`
asks for a smaller one than the rule's), and `version`, to be changed whenever labels change for a reason that lies neither in
its module's source nor in `--weights`. Its module is imported from the current folder or from what is installed, on every worker.
"""

import hashlib
import importlib
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from da2ray.errors import UserError
from da2ray.storage import printable
from da2ray.teachers.base import Camera, Kind, LoadOptions, PixelBatch, Prediction, TeacherSpec
from da2ray.teachers.depth_anything import checkpoint
from da2ray.teachers.depth_anything.size import OfficialSize
from da2ray.teachers.depth_anything.teacher import torch_device
from da2ray.teachers.registry import UNKNOWN, refuse_options

__all__ = ["Camera", "Kind", "LoadOptions", "OfficialSize", "PixelBatch", "Prediction", "resize"]


def resize(batch: PixelBatch) -> Tensor:
    """The images of a micro-batch at the network's size.

    Bicubic with antialiasing, as Pillow's, image by image, so that no image depends on its neighbours.

    Returns:
        float32 (N, 3, height, width), RGB in [0, 1], (height, width) = `batch.size`, on the device of `batch.pixels`.
    """
    planes = [image.permute(2, 0, 1)[None].float() for image in batch.images()]
    resized = [F.interpolate(image, batch.size, mode="bicubic", antialias=True) for image in planes]
    return torch.cat(resized).div_(255).clamp_(0, 1)


class Checked:
    """A user's teacher whose predictions are what `da2ray.teachers.base.Prediction` says, or an error that says what is not.

    Raises:
        UserError: in `predict`.
    """

    def __init__(self, name: str, teacher: Any, device: torch.device, camera: Camera) -> None:
        self.device = device
        self._name = name
        self._teacher = teacher
        self._camera = camera

    def predict(self, batch: PixelBatch) -> Prediction:
        """float32 (N, height, width) at `batch.size`."""
        with torch.inference_mode():
            prediction = self._teacher.predict(batch)
        if not isinstance(prediction, Prediction):
            raise UserError(f"{self._name}.predict returned a {type(prediction).__name__}: expected a Prediction")
        maps = (len(batch), *batch.size)
        self._check("depth", prediction.depth, maps)
        if prediction.confidence is not None:
            self._check("confidence", prediction.confidence, maps)
        if self._camera is not Camera.UNUSED:
            self._check("focals", prediction.focals, (len(batch),))
        if prediction.images is not None:
            self._check("images", prediction.images, (len(batch), 3, *batch.size))
        return prediction

    def _check(self, what: str, value: object, shape: tuple[int, ...]) -> None:
        if not isinstance(value, Tensor):
            raise UserError(f"{self._name}.predict returned {what} as a {type(value).__name__}: expected a tensor")
        found = (value.dtype, tuple(value.shape), value.device.type)
        expected = (torch.float32, shape, self.device.type)
        if found != expected:
            described = ["{} {} on {}".format(*each) for each in (found, expected)]
            raise UserError(f"{self._name}.predict returned {what} {described[0]}: expected {described[1]}")


@dataclass(frozen=True, slots=True)
class Custom:
    """`MODULE:CLASS`. Its methods are `TeacherSpec`'s functions; the class is imported where they run."""

    name: str

    def identify(self, options: LoadOptions) -> str:
        """sha256 (hex) over the source of the class's module and, where they are given, the weights' file."""
        digest = hashlib.sha256(Path(inspect.getfile(self.find())).read_bytes())
        if options.weights is not None:
            digest.update(checkpoint.sha256(checkpoint.locate(options.weights)).encode())
        return digest.hexdigest()

    def load(self, options: LoadOptions) -> Checked:
        device = torch_device(options.device)
        found = self.find()
        if options.weights is not None:  # a URL or hub id is fetched here
            options = replace(options, weights=str(checkpoint.locate(options.weights)))
        return Checked(self.name, found(options), device, Camera(getattr(found, "camera", Camera.UNUSED)))

    def find(self) -> type:
        """The class.

        Raises:
            UserError: no such module, or it cannot be imported, or it has no such class.
        """
        module_name, _, class_name = self.name.partition(":")
        # As Ray does for its workers. A script's own folder is on the path, the one it was started from is not.
        folder = str(Path.cwd())
        if folder not in sys.path:
            sys.path.insert(0, folder)
        try:
            module = importlib.import_module(module_name)
        except Exception as error:  # it is the user's code
            if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
                raise UserError(
                    f"--teacher {self.name}: there is no module {error.name} in {folder} and none is installed: "
                    "run from the folder that holds it, or set PYTHONPATH"
                ) from error
            raise UserError(
                f"--teacher {self.name}: importing {module_name} failed ({type(error).__name__}: {printable(error, 160)})"
            ) from error
        found = getattr(module, class_name, None)
        if not inspect.isclass(found):
            raise UserError(f"--teacher {self.name}: {inspect.getfile(module)} has no class {class_name}")
        return found


def spec(name: str, options: Mapping[str, str]) -> TeacherSpec:
    """The teacher of a class of the user's.

    Args:
        name: `MODULE:CLASS`.
        options: there are none.

    Raises:
        UserError: there is no such class, or it is no teacher.
    """
    refuse_options(name, options)
    custom = Custom(name)
    found = custom.find()
    if not callable(getattr(found, "predict", None)):
        raise UserError(f"--teacher {name} has no method predict(self, batch: PixelBatch) -> Prediction")
    kind = _member(Kind, name, found, "kind", None)
    camera = _member(Camera, name, found, "camera", Camera.UNUSED)
    size_rule = getattr(found, "size_rule", OfficialSize())
    _check_size_rule(name, size_rule)
    return TeacherSpec(
        name=name,
        kind=kind,
        unit="m" if kind is Kind.METRIC else "",
        licence=getattr(found, "licence", UNKNOWN),
        size_rule=size_rule,
        preprocessing=f"custom-{getattr(found, 'version', 1)}",
        identify=custom.identify,
        load=custom.load,
        camera=camera,
        size_step=_size_step(name, found),
    )


def _member(choices: Any, name: str, found: type, attribute: str, default: Any) -> Any:
    """The member of an enumeration that a class attribute names."""
    value = getattr(found, attribute, default)
    if value not in list(choices):
        said = "missing" if value is None else f"{value!r}"
        raise UserError(
            f"--teacher {name}: its class attribute {attribute} is {said}: give one of {', '.join(map(repr, map(str, choices)))}"
        )
    return choices(value)


def _size_step(name: str, found: type) -> int | None:
    step = getattr(found, "size_step", None)
    if step is not None and not (isinstance(step, int) and step > 0):
        raise UserError(
            f"--teacher {name}: its class attribute size_step is {step!r}: give a number of pixels, or None"
        )
    return step


def _check_size_rule(name: str, size_rule: Any) -> None:
    try:
        size = size_rule(480, 640)
    except Exception as error:  # it is the user's code
        raise UserError(
            f"--teacher {name}: its size_rule fails for (480, 640): {type(error).__name__}: {printable(error, 160)}"
        ) from error
    if not (isinstance(size, tuple) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)):
        raise UserError(
            f"--teacher {name}: its size_rule makes {size!r} of (480, 640): expected (height, width) in pixels"
        )
