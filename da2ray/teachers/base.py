"""The teacher protocol: a size rule that needs no weights, and `predict`, which does.

The read stage runs on machines without weights or a GPU and needs only a `TeacherSpec`. The label stage loads the `Teacher`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from da2ray.errors import UserError
from da2ray.storage import printable

if TYPE_CHECKING:  # read and write tasks do without torch, which costs each process 1.3 s and 200 MB
    from collections.abc import Callable, Sequence

    import torch


class Kind(StrEnum):
    """What the numbers of a label mean."""

    DISPARITY = "disparity"  # affine-invariant, larger = nearer
    DEPTH = "depth"  # affine-invariant, larger = farther
    METRIC = "metric"  # metres, larger = farther


class Camera(StrEnum):
    """What a teacher does with an image whose focal length is unknown."""

    UNUSED = "unused"  # the teacher never uses a focal length
    ASSUMED = "assumed"  # the teacher takes a documented focal length
    PREDICTED = "predicted"  # the teacher predicts the focal length


class SizeRule(Protocol):
    """The network size of an image: (height, width) as displayed -> (height, width) for the network, in pixels. Picklable."""

    def __call__(self, height: int, width: int) -> tuple[int, int]: ...


@dataclass(frozen=True, slots=True)
class PixelBatch:
    """A micro-batch: images of any source sizes that share one network size.

    Attributes:
        pixels: uint8, 1-D: the images' H x W x 3 RGB values one after another, on the teacher's device.
        shapes: (H, W) of each image in `pixels`.
        size: the network's (height, width), the same for all images.
        scaled: True if the pixels were decoded at a reduced scale for speed (`--decode scaled`). The resize may then be the
            fastest one instead of the official float bicubic.
        focals: the focal length of each image in pixels of its (H, W) in `shapes`, None for an image whose focal length is
            unknown. The whole list is None if the teacher's spec says that it does not use focal lengths.
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
    """A teacher's output for a micro-batch.

    Attributes:
        depth: float32 (N, height, width), in the teacher's kind and unit.
        confidence: float32 (N, height, width) in [0, 1], larger = surer; None if the model has no confidence.
        focals: float32 (N,), the focal lengths that were used, in pixels of each image's (H, W) in the batch; None if the
            teacher's spec says that it does not use focal lengths.
        images: float32 (N, 3, height, width), the batch as `da2ray.teachers.depth_anything.preprocess.preprocess` returns it.
            A teacher that has this tensor anyway hands it over, and the image scores are computed from it.
    """

    depth: torch.Tensor
    confidence: torch.Tensor | None = None
    focals: torch.Tensor | None = None
    images: torch.Tensor | None = None


class Teacher(Protocol):
    """A loaded model.

    `predict` is called with autograd off, and from one thread at a time unless the spec says `concurrent`.
    """

    device: torch.device

    def predict(self, batch: PixelBatch) -> Prediction:
        """Preprocess on the device, run the network, and return float32 depth at the network's size.

        Raises:
            torch.OutOfMemoryError: the micro-batch is too large for the device.
        """
        ...


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load and run a teacher.

    Attributes:
        weights: path, URL or hub id; None for the teacher's default weights.
        device: a torch device string, already resolved.
        precision: fp32, bf16 or fp16.
        compile: whether to specialise the network with `torch.compile`.
        trust_remote_code: whether code that comes with the weights may run.
    """

    weights: str | None = None
    device: str = "cpu"
    precision: str = "fp32"
    compile: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class TeacherSpec:
    """The description of a teacher, without its weights. Picklable, because it travels to the workers.

    Attributes:
        name: the value of `--teacher`.
        kind, unit: what the depth means; the unit is "m" for metric depth and "" otherwise.
        licence: SPDX id of the weights' licence, shown when a user picks the teacher.
        size_rule: the network size of an image.
        preprocessing: a word in the fingerprint; it changes whenever a change of the preprocessing would change a label.
        identify: options -> sha256 (hex) of the weights that `load` would load. Raises UserError if they are missing or do
            not fit this teacher; the message says what was expected and what was found. Reads no more than it must.
        load: options -> the teacher on its device. Raises UserError for the same reasons.
        concurrent: whether `predict` may run in several threads at once, which is faster on CPU.
        camera: whether an image's focal length matters, and what the teacher does if it is unknown.
        size_step: `predict` takes batches of any size whose sides are multiples of this many pixels, not only the sizes of
            `size_rule`. None if the teacher takes only those.
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


def refuse_weights(options: LoadOptions, teacher: str) -> None:
    """Check that no weights are given to a teacher that has none.

    Raises:
        UserError: weights are given.
    """
    if options.weights is not None:
        raise UserError(
            f"{teacher} takes no weights: drop --weights {printable(options.weights)}, or choose another --teacher"
        )
