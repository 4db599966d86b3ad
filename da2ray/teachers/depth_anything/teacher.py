"""Depth Anything V2 as a teacher: the network with its weights, device and precision."""

import functools
import hashlib
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from da2ray.errors import UserError
from da2ray.teachers.base import LoadOptions, PixelBatch, Prediction, refuse_weights
from da2ray.teachers.depth_anything import checkpoint
from da2ray.teachers.depth_anything.configs import PATCH, TINY, Config, parameter_shapes
from da2ray.teachers.depth_anything.dpt import DepthAnythingV2
from da2ray.teachers.depth_anything.preprocess import preprocess

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""`--precision` -> dtype of the matrix products. The head's tail and everything after it are fp32 at all three."""

SIZES_KEPT = 64
"""Position embeddings kept on the device, one for each network size: 2.8 MB each for small at 518 x 686, 11 MB for giant."""

COMPILED_SHAPES = 8192
"""Micro-batch shapes that `torch.compile` specialises for before it refuses; its default is 8."""


class DepthAnything:
    """A loaded Depth Anything V2 (`da2ray.teachers.base.Teacher`).

    fp32 is IEEE fp32 on every device, without TF32. bf16 and fp16 run under autocast. The tail of the head then still has
    fp32 tensors and sums. On CUDA its convolutions may round their inputs to TF32 (10 bits, like fp16; PyTorch's default),
    which leaves no steps in a depth map.

    Args:
        network: the network with its weights, float32, on the CPU or already on `device`.
        device: the device to run on.
        precision: fp32, bf16 or fp16.
        compiled: whether to specialise the network with `torch.compile`. This takes tens of seconds for each network size,
            and again for each number of images.

    Raises:
        UserError: the device cannot run the precision.
    """

    def __init__(
        self, network: DepthAnythingV2, device: torch.device, precision: str = "fp32", *, compiled: bool = False
    ) -> None:
        self.device = device
        self.precision = precision
        self._dtype = precision_dtype(precision, device)
        self.network = network.to(device).eval().requires_grad_(False)
        # Tokens viewed as images are channels-last. Weights in the same format save a copy: the whole network takes 0.82 s
        # instead of 0.94 s (small, 518 x 686, batch 1, 2 CPU cores).
        self.network.depth_head.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # The cache is here and not in the network: an embedding depends on the weights, and only a teacher's weights never
        # change. The network gets it as an argument, so that compiled code neither interpolates nor sees the cache.
        self._positions = functools.lru_cache(maxsize=SIZES_KEPT)(self.network.pretrained.positions)
        self._forward, self._compiled = self.network.__call__, compiled
        if compiled:
            # With fullgraph it raises past the limit; without, it would silently go on uncompiled.
            self._forward = torch.compile(self.network, dynamic=False, fullgraph=True)

    def predict(self, batch: PixelBatch) -> Prediction:
        """Label a micro-batch. The depth is float32 (N, height, width) at `batch.size`, on the teacher's device.

        Raises:
            torch.OutOfMemoryError: the micro-batch is too large for the device.
        """
        with torch.inference_mode():
            images = preprocess(batch)
            return Prediction(self.depth(images), images=images)

    @torch.inference_mode()
    def depth(self, images: Tensor) -> Tensor:
        """Run the network alone: normalised float32 (N, 3, H, W) on the device -> float32 (N, H, W)."""
        height, width = images.shape[-2:]
        reduced = self._dtype != torch.float32
        if self._compiled:
            _allow_shapes()
        with (
            # A resumed run must give the same bytes, and cuDNN's transposed convolution may not be deterministic by default.
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=reduced),
            torch.autocast(self.device.type, self._dtype, enabled=reduced),
        ):
            return self._forward(images, self._positions(height // PATCH, width // PATCH))


def _allow_shapes() -> None:
    """Raise the limits of `torch.compile` to COMPILED_SHAPES in the calling thread. Each thread has its own configuration."""
    config: Any = torch._dynamo.config
    for limit in ("recompile_limit", "accumulated_recompile_limit"):
        if getattr(config, limit) < COMPILED_SHAPES:
            setattr(config, limit, COMPILED_SHAPES)


def load_weights(
    location: str, config: Config, name: str, max_depth: float | None, options: LoadOptions
) -> DepthAnything:
    """Load the teacher `name` with the weights at a location.

    Raises:
        UserError: the device or the precision does not exist here, or the weights do not fit.
    """
    device = torch_device(options.device)
    precision_dtype(options.precision, device)  # refuse before anything is fetched
    network = checkpoint.load(checkpoint.locate(location), config, name, max_depth)
    return DepthAnything(network, device, options.precision, compiled=options.compile)


def identify_random_tiny(options: LoadOptions) -> str:
    """The sha256 (hex) of the seeded weights' bytes, in the order of their keys."""
    refuse_weights(options, "random-tiny")
    digest = hashlib.sha256()
    for key, tensor in sorted(random_state(TINY).items()):
        digest.update(key.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def load_random_tiny(options: LoadOptions) -> DepthAnything:
    """Load the tiny network with seeded weights. For demos and tests: it does a network's work at little cost, without depth."""
    refuse_weights(options, "random-tiny")
    device = torch_device(options.device)
    network = DepthAnythingV2(TINY)
    network.load_state_dict(random_state(TINY))
    return DepthAnything(network, device, options.precision, compiled=options.compile)


def random_state(config: Config, seed: int = 0) -> dict[str, Tensor]:
    """Make float32 weights from a seed. With them the output depends on the image and is hardly ever zero.

    The weights are uniform numbers scaled to 1 / sqrt(fan in), from NumPy's PCG64. Its arithmetic is exact, so that every
    machine of a cluster has the same bits (torch's normal distribution differs between vector units). LayerScale gammas, CLS
    and position embedding are random too, so that a test sees each of them. The last bias is 2, because otherwise the ReLU
    may leave only zeros.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    state = {}
    for key, shape in parameter_shapes(config).items():
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


def torch_device(device: str) -> torch.device:
    """The torch device of a `--device`.

    Raises:
        UserError: the device does not exist. No other device is used in its place.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"--device {device} is not a device of PyTorch: give auto, cpu or cuda") from error
    if found.type not in {"cpu", "cuda"}:
        raise UserError(f"--device {device} is not supported: give auto, cpu or cuda")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {device}: PyTorch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices here; "
            "give --device cpu or auto, or fix the driver, CUDA_VISIBLE_DEVICES or the torch build"
        )
    return found


def precision_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of a `--precision`.

    Raises:
        UserError: the precision is unknown, or `device` does not support bf16.
    """
    if precision not in PRECISIONS:
        raise UserError(f"--precision {precision} is unknown: give one of {', '.join(PRECISIONS)}")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(
            f"--precision bf16: {torch.cuda.get_device_name(device)} does not support it; give fp16 or fp32"
        )
    return PRECISIONS[precision]
