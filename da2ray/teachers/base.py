"""What a teacher is: its size rule, known without weights, and `predict`, which needs them.

The read stage runs on machines without weights or a GPU and needs only `TeacherSpec`; the label stage loads the `Teacher`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # read and write tasks go without torch: it costs each process 1.3 s and 200 MB
    from collections.abc import Callable, Sequence

    import torch


class Kind(StrEnum):
    """What the numbers of a label mean."""

    DISPARITY = "disparity"  # affine-invariant, larger = nearer
    DEPTH = "depth"  # affine-invariant, larger = farther
    METRIC = "metric"  # metres, larger = farther


class Camera(StrEnum):
    """What a teacher does with an image whose focal length is not known."""

    UNUSED = "unused"  # the focal length never matters
    ASSUMED = "assumed"  # it takes a documented one
    PREDICTED = "predicted"  # it finds one out by itself


class SizeRule(Protocol):
    """Picklable: (height, width) of an image as displayed -> (height, width) at which the network sees it, in pixels."""

    def __call__(self, height: int, width: int) -> tuple[int, int]: ...


@dataclass(frozen=True, slots=True)
class PixelBatch:
    """A micro-batch: images of any source sizes that share one network size.

    Attributes:
        pixels: uint8, 1-D: the images' H x W x 3 RGB values one after another, on the teacher's device.
        shapes: (H, W) of each image in `pixels`.
        size: the network's (height, width), one for all.
        scaled: True where pixels were decoded at a reduced scale for speed (`--decode scaled`): the resize may then be the
            fastest one instead of the official float bicubic.
        focals: focal length of each image in pixels of its (H, W) in `shapes`, None where it is not known; None for all
            where the teacher's spec says that it is unused.
    """

    pixels: torch.Tensor
    shapes: Sequence[tuple[int, int]]
    size: tuple[int, int]
    scaled: bool = False
    focals: Sequence[float | None] | None = None

    def __len__(self) -> int:
        return len(self.shapes)

    def images(self) -> list[torch.Tensor]:
        """The images as uint8 (H, W, 3) views of `pixels`."""
        parts = self.pixels.split([height * width * 3 for height, width in self.shapes])
        return [part.view(height, width, 3) for part, (height, width) in zip(parts, self.shapes, strict=True)]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a teacher says of a micro-batch.

    Attributes:
        depth: float32 (N, height, width), in the teacher's kind and unit.
        confidence: float32 (N, height, width) in [0, 1], larger = surer; None where the model gives none.
        focals: float32 (N,) the focal length that was used, in pixels of each image's (H, W) in the batch; None where the
            teacher's spec says that it is unused.
        images: float32 (N, 3, height, width), the images as `da2ray.teachers.depth_anything.preprocess.preprocess` makes them
            of the batch, if the teacher has them at hand anyway: scores of the images are then made of these.
    """

    depth: torch.Tensor
    confidence: torch.Tensor | None = None
    focals: torch.Tensor | None = None
    images: torch.Tensor | None = None


class Teacher(Protocol):
    """A loaded model. `predict` is called with autograd off, from one thread at a time unless the spec says `concurrent`."""

    device: torch.device

    def predict(self, batch: PixelBatch) -> Prediction:
        """Preprocess on the device, run the network, return float32 depth at the network's size.

        Raises:
            torch.OutOfMemoryError: the micro-batch is too large for the device.
        """
        ...


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a teacher is run.

    Attributes:
        weights: path, URL or hub id; None for the teacher's own.
        device: a torch device string, already resolved.
        precision: fp32, bf16 or fp16.
        compile: specialise the network with `torch.compile`.
        trust_remote_code: code that comes with the weights may run.
    """

    weights: str | None = None
    device: str = "cpu"
    precision: str = "fp32"
    compile: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class TeacherSpec:
    """A teacher by name, before any weights are loaded. Picklable: it travels to the workers.

    Attributes:
        name: what `--teacher` says.
        kind, unit: what its depth means; unit is "m" for metric, "" otherwise.
        licence: SPDX id of the weights, shown where a user picks the teacher.
        size_rule: network size of an image.
        preprocessing: a word for the fingerprint that changes whenever preprocessing would change a label.
        identify: options -> sha256 (hex) of the weights that would be loaded. Raises UserError where they are missing or
            do not fit this teacher, saying what was expected and what was found. Reads no more than it must.
        load: options -> the teacher on its device. Raises UserError likewise.
        concurrent: `predict` may run in several threads at once, which on CPU is faster.
        camera: whether an image's focal length matters, and what is done where it is not known.
        size_step: `predict` takes batches of any size whose sides are multiples of this, not only those of `size_rule`; None
            where the teacher has no such choice.
    """

    name: str
    kind: Kind
    unit: str
    licence: str
    size_rule: SizeRule
    preprocessing: str
    identify: Callable[[LoadOptions], str]
    load: Callable[[LoadOptions], Teacher]
    concurrent: bool = False
    camera: Camera = Camera.UNUSED
    size_step: int | None = None
