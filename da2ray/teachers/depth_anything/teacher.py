"""Depth Anything V2 as a teacher: weights, device and precision around the network."""

import functools
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from da2ray.errors import UserError
from da2ray.storage import printable
from da2ray.teachers.base import LoadOptions, PixelBatch, Prediction
from da2ray.teachers.depth_anything import checkpoint
from da2ray.teachers.depth_anything.dinov2 import PATCH
from da2ray.teachers.depth_anything.dpt import TINY, Config, DepthAnythingV2
from da2ray.teachers.depth_anything.preprocess import preprocess

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""`--precision` -> dtype of the matrix products. The head's tail and everything after it are fp32 in all three."""

SIZES_KEPT = 64
"""Position embeddings kept on the device, one a network size: 2.8 MB each for small at 518 x 686, 11 MB for giant."""

COMPILED_SHAPES = 8192
"""Micro-batch shapes that `torch.compile` specialises for, instead of its 8, before it refuses."""


class DepthAnything:
    """A loaded Depth Anything V2 (`da2ray.teachers.base.Teacher`).

    Precision: fp32 is IEEE fp32 on every device, no TF32. bf16 and fp16 run under autocast; the tail of the head then
    has fp32 tensors and sums, and on CUDA its convolutions may round their inputs to TF32 (10 bits, as fp16; PyTorch's
    default), which leaves no steps in a depth map.

    Args:
        network: with its weights, float32, on the CPU or already on `device`.
        device: where it runs.
        precision: fp32, bf16 or fp16.
        compiled: specialise the network with `torch.compile`: tens of seconds once for each network size, and once more
            for each number of images.

    Raises:
        UserError: the device cannot run that precision.
    """

    def __init__(
        self, network: DepthAnythingV2, device: torch.device, precision: str = "fp32", *, compiled: bool = False
    ) -> None:
        self.device = device
        self.precision = precision
        self._dtype = precision_dtype(precision, device)
        self.network = network.to(device).eval().requires_grad_(False)
        # Tokens seen as images are channels-last; weights that are too save a copy. Whole network on 2 CPU cores,
        # 518 x 686, batch 1: small 0.94 -> 0.82 s.
        self.network.depth_head.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # Kept here and not in the network: an embedding depends on weights, and only a teacher's never change. It is
        # given to the network as an argument, so that compiled code neither interpolates nor sees the cache.
        self._positions = functools.lru_cache(maxsize=SIZES_KEPT)(self.network.pretrained.positions)
        self._forward, self._compiled = self.network.__call__, compiled
        if compiled:
            # Whole graph: past the limit it raises, where it would otherwise go on uncompiled without a word.
            self._forward = torch.compile(self.network, dynamic=False, fullgraph=True)

    def predict(self, batch: PixelBatch) -> Prediction:
        """Depth of a micro-batch: float32 (N, height, width) at `batch.size`, on the teacher's device.

        Raises:
            torch.OutOfMemoryError: the micro-batch is too large for the device.
        """
        with torch.inference_mode():
            images = preprocess(batch)
            return Prediction(self.depth(images), images=images)

    @torch.inference_mode()
    def depth(self, images: Tensor) -> Tensor:
        """The network alone: normalised float32 (N, 3, H, W) on the device -> float32 (N, H, W)."""
        height, width = images.shape[-2:]
        reduced = self._dtype != torch.float32
        if self._compiled:
            _allow_shapes()
        with (
            # Deterministic, since a resumed run must give the same bytes: cuDNN's transposed convolution may not be.
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=reduced),
            torch.autocast(self.device.type, self._dtype, enabled=reduced),
        ):
            return self._forward(images, self._positions(height // PATCH, width // PATCH))


def _allow_shapes() -> None:
    """Raise the limits of `torch.compile` to COMPILED_SHAPES, for the thread that calls: each has a configuration of its own."""
    config: Any = torch._dynamo.config
    for limit in ("recompile_limit", "accumulated_recompile_limit"):
        if getattr(config, limit) < COMPILED_SHAPES:
            setattr(config, limit, COMPILED_SHAPES)


@dataclass(frozen=True, slots=True)
class Variant:
    """A named Depth Anything V2: which network, and where its weights are. Its methods are `TeacherSpec`'s functions.

    Attributes:
        name: the teacher's name.
        config: its size.
        max_depth: metres of the metric head, None where depth is relative.
        weights: hub id, or file beside this module, that is used where `--weights` is not given; None where nothing is
            published.
    """

    name: str
    config: Config
    max_depth: float | None
    weights: str | None

    def identify(self, options: LoadOptions) -> str:
        """sha256 (hex) of the weights file, after its keys and shapes were found to fit."""
        path = checkpoint.locate(self._location(options))
        checkpoint.check(path, self.config, self.name)
        return checkpoint.sha256(path)

    def load(self, options: LoadOptions) -> DepthAnything:
        device = torch_device(options.device)
        precision_dtype(options.precision, device)  # refuse before anything is fetched
        path = checkpoint.locate(self._location(options))
        network = checkpoint.load(path, self.config, self.name, self.max_depth)
        return DepthAnything(network, device, options.precision, compiled=options.compile)

    def _location(self, options: LoadOptions) -> str:
        weights = options.weights or self.weights
        if weights is None:
            raise UserError(f"{self.name} was never released by its authors: give --weights PATH, URL or hub id")
        # Found anew on each machine: the package need not lie at the same path everywhere.
        embedded = Path(__file__).parent / weights
        return str(embedded) if options.weights is None and embedded.exists() else weights


def identify_random_tiny(options: LoadOptions) -> str:
    """sha256 (hex) over the seeded weights' bytes, in the order of their keys."""
    refuse_weights(options, "random-tiny")
    digest = hashlib.sha256()
    for key, tensor in sorted(random_state(TINY).items()):
        digest.update(key.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def load_random_tiny(options: LoadOptions) -> DepthAnything:
    """The tiny network with seeded weights, for demos and tests: a network's work at little cost, and no real depth."""
    refuse_weights(options, "random-tiny")
    device = torch_device(options.device)
    network = DepthAnythingV2(TINY)
    network.load_state_dict(random_state(TINY))
    return DepthAnything(network, device, options.precision, compiled=options.compile)


def random_state(config: Config, seed: int = 0) -> dict[str, Tensor]:
    """Weights from a seed, float32, under which the output depends on the image and is hardly ever zero.

    Uniform numbers scaled to 1 / sqrt(fan in), from NumPy's PCG64: exact arithmetic, so that every machine of a cluster
    has the same bits (torch's normal distribution differs between vector units). LayerScale gammas, CLS and position
    embedding are random too, so that a test sees each of them; the last bias is 2, for otherwise the ReLU may leave
    nothing.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    state = {}
    for key, shape in checkpoint.parameter_shapes(config).items():
        values = torch.from_numpy(random.random(math.prod(shape), dtype=np.float32)).view(shape) * 2 - 1
        if "norm" in key:
            values = 1 + 0.1 * values if key.endswith("weight") else 0.1 * values
        elif key.endswith("weight"):
            values *= math.sqrt(3 / math.prod(shape[1:]))
        elif key.endswith("gamma"):
            values = 0.5 + 0.5 * values
        elif key == "depth_head.scratch.output_conv2.2.bias":
            values = torch.full(shape, 2.0)
        elif key.endswith("bias"):
            values *= 0.1
        state[key] = values
    return state


def refuse_weights(options: LoadOptions, teacher: str) -> None:
    if options.weights is not None:
        raise UserError(
            f"{teacher} takes no weights: drop --weights {printable(options.weights)}, or choose another --teacher"
        )


def torch_device(device: str) -> torch.device:
    """A device that is there.

    Raises:
        UserError: no such device; nothing else is used in its place.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"--device {device} is no device of PyTorch: give auto, cpu or cuda") from error
    if found.type not in {"cpu", "cuda"}:
        raise UserError(f"--device {device} is not supported: give auto, cpu or cuda")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {device}: PyTorch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices here; "
            "give --device cpu or auto, or mend the driver, CUDA_VISIBLE_DEVICES or the torch build"
        )
    return found


def precision_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of a `--precision`.

    Raises:
        UserError: there is no such precision, or `device` has no bf16.
    """
    if precision not in PRECISIONS:
        raise UserError(f"--precision {precision} is unknown: give one of {', '.join(PRECISIONS)}")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"--precision bf16: {torch.cuda.get_device_name(device)} has none; give fp16 or fp32")
    return PRECISIONS[precision]
