"""A teacher class that the user wrote: `--teacher mypkg.mymodule:MyTeacher`.

Everything that such a class needs can be imported from this module.

    class MyTeacher:
        kind = "disparity"  # or "depth" or "metric": `Kind`

        def __init__(self, options: LoadOptions) -> None: ...

        def predict(self, batch: PixelBatch) -> Prediction: ...

Besides `kind`, the class may have these attributes:

- `size_rule`: the network size of an image; `OfficialSize()` by default.
- `camera`: how the teacher uses focal lengths; `Camera.UNUSED` by default.
- `licence`: the licence of its weights.
- `size_step`: set it if `predict` takes any size whose sides are multiples of that many pixels. `--consistency scale` needs it,
  because it asks for a smaller size than the rule's.
- `version`: change it whenever labels change for a reason that lies neither in the module's source nor in `--weights`.

Every worker imports the module from the current folder or from the installed packages.
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
    """Resize the images of a micro-batch to the network's size.

    The resize is bicubic with antialiasing, like Pillow's. It runs image by image, so no image depends on its neighbours.

    Returns:
        float32 (N, 3, height, width), RGB in [0, 1], (height, width) = `batch.size`, on the device of `batch.pixels`.
    """
    planes = [image.permute(2, 0, 1)[None].float() for image in batch.images()]
    resized = [F.interpolate(image, batch.size, mode="bicubic", antialias=True) for image in planes]
    return torch.cat(resized).div_(255).clamp_(0, 1)


class Checked:
    """A wrapper of a user's teacher that checks each prediction against `da2ray.teachers.base.Prediction`."""

    def __init__(self, name: str, teacher: Any, device: torch.device, camera: Camera) -> None:
        self.device = device
        self._name = name
        self._teacher = teacher
        self._camera = camera

    def predict(self, batch: PixelBatch) -> Prediction:
        """The user's prediction of a micro-batch, with maps of shape (N, height, width) at `batch.size`.

        Raises:
            UserError: the prediction has a wrong type, dtype, shape or device.
        """
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
    """A teacher named `MODULE:CLASS`. Its methods serve as `TeacherSpec`'s functions and import the class where they run."""

    name: str

    def identify(self, options: LoadOptions) -> str:
        """The sha256 (hex) of the source of the class's module and, if given, of the weights file."""
        digest = hashlib.sha256(Path(inspect.getfile(self.find())).read_bytes())
        if options.weights is not None:
            digest.update(checkpoint.sha256(checkpoint.locate(options.weights)).encode())
        return digest.hexdigest()

    def load(self, options: LoadOptions) -> Checked:
        device = torch_device(options.device)
        found = self.find()
        if options.weights is not None:  # fetches a URL or a hub id
            options = replace(options, weights=str(checkpoint.locate(options.weights)))
        return Checked(self.name, found(options), device, Camera(getattr(found, "camera", Camera.UNUSED)))

    def find(self) -> type:
        """Import and return the class.

        Raises:
            UserError: the module does not exist, its import fails, or it has no such class.
        """
        module_name, _, class_name = self.name.partition(":")
        # Ray does the same for its workers. Python puts a script's own folder on the path, but not the current folder.
        folder = str(Path.cwd())
        if folder not in sys.path:
            sys.path.insert(0, folder)
        try:
            module = importlib.import_module(module_name)
        except Exception as error:  # it is the user's code
            if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
                raise UserError(
                    f"--teacher {self.name}: there is no module {error.name} in {folder} or among the installed packages: "
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
    """The spec of a user's teacher class.

    Args:
        name: `MODULE:CLASS`.
        options: must be empty; such a teacher takes no options.

    Raises:
        UserError: the class does not exist or is not a teacher.
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
    """The member of the enumeration `choices` that the class attribute names."""
    value = getattr(found, attribute, default)
    if value not in list(choices):
        described = "missing" if value is None else f"{value!r}"
        known = ", ".join(map(repr, map(str, choices)))
        raise UserError(f"--teacher {name}: the class attribute {attribute} is {described}: set it to one of {known}")
    return choices(value)


def _size_step(name: str, found: type) -> int | None:
    step = getattr(found, "size_step", None)
    if step is not None and not (isinstance(step, int) and step > 0):
        raise UserError(
            f"--teacher {name}: the class attribute size_step is {step!r}: set it to a number of pixels or None"
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
            f"--teacher {name}: its size_rule returns {size!r} for (480, 640): expected (height, width) in pixels"
        )
