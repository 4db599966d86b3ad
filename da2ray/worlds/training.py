"""Resumable training of a small Depth Anything V2 on rendered worlds: the paper's first stage (arXiv 2406.09414) in small.

Pictures grow during training. Most steps see many small ones: the layout of a world takes longest to learn, and a picture of a
third of the teacher's size shows it for a sixth of the time. The loss compares them at 8/14 of their size, before the head's last
interpolation, where a step costs half as much. The last steps see pictures of the teacher's size, with the loss at full size.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from da2ray.parallel import look_ahead, usable_cores
from da2ray.quality.depth_metrics import FARTHEST
from da2ray.student.losses import (
    GRADIENT_WEIGHT,
    affine_invariant_loss,
    aligned_depth_loss,
    normalised,
    resized_label,
)
from da2ray.teachers.depth_anything.configs import GRID, PATCH, VITT
from da2ray.teachers.depth_anything.dinov2 import Attention
from da2ray.teachers.depth_anything.dpt import DepthAnythingV2
from da2ray.teachers.depth_anything.preprocess import MEAN, STD
from da2ray.teachers.registry import TINY_SIDE
from da2ray.worlds.augment import framed, photographed
from da2ray.worlds.muon import Muon

SIZE = (TINY_SIDE, 336)
"""(height, width) of rendered worlds, which is the teacher's network size for that aspect."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """A resolution of training pictures.

    Attributes:
        sizes: (height, width) of pictures, all with about the same number of patches.
        share: pictures in a step, as a multiple of `Plan.batch_size`.
    """

    sizes: tuple[tuple[int, int], ...]
    share: float


TINIEST = Resolution(((84, 112), (84, 112), (98, 98), (112, 84)), 4)
SMALL = Resolution(((126, 168), (126, 168), (140, 140), (168, 126)), 2)
MEDIUM = Resolution(((168, 224), (168, 224), (196, 196), (224, 168)), 1)
LARGE = Resolution(((252, 336), (252, 336), (294, 294), (336, 252)), 0.5)
STAGES = (
    (0.6, (TINIEST, TINIEST, SMALL)),
    (0.78, (SMALL, MEDIUM)),
    (0.94, (MEDIUM,)),
    (1.0, (LARGE,)),
)
"""The share of the steps up to which each stage lasts, and the resolutions that its steps draw from. On two cores with AVX2 a
picture takes 24 ms at `TINIEST`, 60 at `SMALL`, 119 at `MEDIUM`, 240 at `LARGE`."""
CLEAN_SHARE = 0.4
"""Share of the pictures that stay as rendered. The teacher is judged on such pictures; the others prepare it for photographs."""
WARM_UP = 100
"""Steps over which the learning rate rises."""
DECAY_SHARE = 0.4
"""Share of the steps over which the learning rate falls to 0. It is constant before, so that a run can be made longer."""
WHITENED = 64
"""Worlds from whose patches the patch embedding is initialised."""
NOISE = 0.1
"""Variance that whitening treats as noise, in normalised units: that of the noise that augmentation adds."""
EARLY_GRADIENT_WEIGHT = 0.1
"""Weight of gradient matching until the learning rate falls."""
ANCHOR_WEIGHT = 0.2
"""Weight of the plain difference to the normalised label, whose minimum is moved to 0. The other losses leave scale and shift
free. Without this one, both drift until the network's ReLU cuts off half of a picture or training breaks."""
DEPTH_WEIGHT = 2.0
"""Weight of the difference in log metres, which is sensitive to far things. The paper's two losses compare disparity."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan of training.

    Attributes:
        steps: number of steps.
        batch_size: pictures of `MEDIUM` resolution in a step.
        learning_rate: the peak learning rate.
        weight_decay: the weight decay.
        seed: the seed of everything.
    """

    steps: int
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    seed: int = 0

    def resolutions(self, step: int) -> tuple[Resolution, ...]:
        """The resolutions that a step draws from."""
        return next(drawn for until, drawn in STAGES if step < self.steps * until)

    def is_fine(self, step: int) -> bool:
        """Whether a step's loss is computed at full size."""
        return LARGE in self.resolutions(step)

    def gradient_weight(self, step: int) -> float:
        """The weight of gradient matching: small until the learning rate falls.

        Blurred edges minimise this loss, so early in training it would teach the network to see no edges.
        """
        return GRADIENT_WEIGHT if step >= self.steps * (1 - DECAY_SHARE) else EARLY_GRADIENT_WEIGHT

    def rate(self, step: int) -> float:
        left = (self.steps - step) / (self.steps * DECAY_SHARE)
        return self.learning_rate * min(1.0, (step + 1) / WARM_UP, left)


def new_network(seed: int) -> DepthAnythingV2:
    """An untrained tiny network. Its position embedding is the sine-cosine one, which is not trained."""
    torch.manual_seed(seed)
    network = DepthAnythingV2(VITT)
    encoder = network.pretrained
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.normal_(encoder.cls_token, std=0.02)
    with torch.no_grad():
        encoder.pos_embed.copy_(sine_positions(VITT.encoder.dim))
        # The first outputs must be positive, so that the ReLU does not cut them off.
        network.depth_head.scratch.output_conv2[2].bias.fill_(1.0)  # type: ignore[operator]
    encoder.pos_embed.requires_grad_(False)
    for block in encoder.blocks:
        _mimic_trained_attention(block.attn, VITT.encoder.heads)  # type: ignore[arg-type]
    return network


def _mimic_trained_attention(attention: Attention, heads: int) -> None:
    """Initialise attention like trained attention: query x key near the identity, value x projection near its negative.

    Tokens then attend to places like their own from the first step (mimetic initialisation, arXiv 2305.09828).
    """
    dim = attention.proj.in_features
    width = dim // heads

    def near(noise: float, identity: float) -> tuple[Tensor, Tensor, Tensor]:
        return torch.linalg.svd(noise * torch.randn(dim, dim) / dim**0.5 + identity * torch.eye(dim))

    with torch.no_grad():
        query, key, value = attention.qkv.weight.split(dim)
        for head in range(heads):
            rows = slice(head * width, (head + 1) * width)
            u, s, vh = near(0.7, 0.7)
            query[rows] = (u[:, :width] * s[:width].sqrt()).T
            key[rows] = vh[:width] * s[:width, None].sqrt()
        u, s, vh = near(0.4, -0.4)
        value.copy_(vh * s[:, None].sqrt())
        attention.proj.weight.copy_(u * s.sqrt())


def whiten_patches(network: DepthAnythingV2, images: NDArray[np.uint8]) -> None:
    """Set the patch embedding to whitened principal components of the patches in uint8 images (N, H, W, 3).

    The raw pixels of a patch are strongly correlated, and a linear embedding learns slowly from them.
    """
    patches = F.unfold(_normal(images), PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1)
    centred = patches - patches.mean(0)
    strength, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
    strongest = slice(-network.config.encoder.dim, None)
    weight = directions[:, strongest] / (strength[strongest] + NOISE).sqrt()
    proj = network.pretrained.patch_embed.proj
    with torch.no_grad():
        proj.weight.copy_((0.5 * weight.T).view_as(proj.weight))
        nn.init.zeros_(proj.bias)  # type: ignore[arg-type]


def sine_positions(dim: int) -> Tensor:
    """The sine-cosine position embedding, (1, 1 + GRID^2, dim) (arXiv 2111.06377).

    It has zeros for CLS, then half the channels for the row and half for the column.
    """
    frequency = 1 / 10000 ** (torch.arange(dim // 4) / (dim / 4))
    angle = torch.arange(GRID)[:, None] * frequency
    side = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows = side[:, None].expand(GRID, GRID, -1)
    columns = side[None].expand(GRID, GRID, -1)
    grid = torch.cat([rows, columns], dim=2).reshape(GRID * GRID, dim)
    return torch.cat([torch.zeros(1, dim), grid])[None]


class Training:
    """A network in training, with its optimisers and its step. `folder` stores its checkpoint.

    Args:
        folder: the folder of `checkpoint.pt`; a new `Training` continues from it.
        arrays: chunks of (uint8 (N, H, W, 3), float16 (N, H, W)), as `WorldStore.arrays` returns them.
        plan: the plan. A resumed run may have more or fewer steps.
        device: the device to train on. Matrix products are in bfloat16 if the device has it, else in float32.
        initial: weights to start from instead of random ones, if there is no checkpoint yet.
    """

    def __init__(
        self,
        folder: Path,
        arrays: list[tuple[np.ndarray, np.ndarray]],
        plan: Plan,
        device: torch.device,
        initial: Path | None = None,
    ) -> None:
        self.step = 0
        self._path = folder / "checkpoint.pt"
        self._arrays = arrays
        self._plan = plan
        self._device = device
        self.network = new_network(plan.seed)
        if initial is not None:
            self.network.load_state_dict(load_file(initial))
        elif not self._path.exists():
            whiten_patches(self.network, np.asarray(arrays[0][0][:WHITENED]))
        self.network = self.network.to(device).train()
        # Tokens viewed as images are channels-last. With such weights the head's backward pass takes a third of the time on CPU.
        self.network.depth_head.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimisers = optimisers(self.network, plan)
        if self._path.exists():
            self._restore()

    def run(self) -> Iterator[float]:
        """Train to the plan's end, and yield each step's loss."""
        # One thread makes 120 pictures a second, too few for a GPU. A batch depends only on its step's number.
        threads = max(1, usable_cores() // 2)
        for images, label in look_ahead(self._batch, range(self.step, self._plan.steps), threads, "batches"):
            yield self._learn(images.to(self._device), label.to(self._device))

    def save(self) -> None:
        """Save everything that a later run needs to continue."""
        state = {
            "step": self.step,
            "network": self.network.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self._optimisers],
        }
        part = self._path.with_suffix(".part")
        torch.save(state, part)
        part.replace(self._path)

    def _restore(self) -> None:
        state: dict[str, Any] = torch.load(self._path, map_location=self._device, weights_only=True)
        self.step = state["step"]
        self.network.load_state_dict(state["network"])
        for optimiser, kept in zip(self._optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)

    def _learn(self, images: Tensor, label: Tensor) -> float:
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self._plan.rate(self.step)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=has_bfloat16(self._device)):
            prediction = self._predict(images, full=self._plan.is_fine(self.step))
        target = resized_label(label, (prediction.shape[-2], prediction.shape[-1]))
        loss = affine_invariant_loss(prediction, target, self._plan.gradient_weight(self.step))
        loss = loss + DEPTH_WEIGHT * aligned_depth_loss(prediction, target, FARTHEST)
        anchor = normalised(target)
        loss = loss + ANCHOR_WEIGHT * F.smooth_l1_loss(prediction, anchor - anchor.amin((1, 2), keepdim=True))
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in self.network.parameters() if p.grad is not None], 1.0)
        for optimiser in self._optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step += 1
        return float(loss.detach())

    def _predict(self, images: Tensor, *, full: bool) -> Tensor:
        """Predict disparity before the network's ReLU: (N, H, W) if `full`, else (N, 8/14 H, 8/14 W)."""
        encoder, head = self.network.pretrained, self.network.depth_head
        rows, columns = images.shape[-2] // PATCH, images.shape[-1] // PATCH
        taps = encoder(images, encoder.positions(rows, columns))
        if full:
            return head(taps, rows, columns)
        return head.scratch.output_conv2(head.fused(taps, rows, columns)).squeeze(1).float()

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step, which depends only on its number: float32 (N, 3, H, W) normalised, float32 (N, H, W) disparity."""
        rng = np.random.Generator(np.random.PCG64([self._plan.seed, step]))
        resolutions = self._plan.resolutions(step)
        resolution = resolutions[rng.integers(len(resolutions))]
        size = resolution.sizes[rng.integers(len(resolution.sizes))]
        images, labels = [], []
        for _ in range(int(self._plan.batch_size * resolution.share)):
            pictures, disparities = self._arrays[rng.integers(len(self._arrays))]
            one = rng.integers(len(pictures))
            picture, label = framed(pictures[one], disparities[one], size, rng)
            images.append(picture if rng.random() < CLEAN_SHARE else photographed(picture, rng))
            labels.append(label)
        return _normal(np.stack(images)), torch.from_numpy(np.stack(labels))


def optimisers(network: DepthAnythingV2, plan: Plan) -> list[torch.optim.Optimizer]:
    """The optimisers: Muon for the matrices of the blocks, AdamW for the rest."""
    inner = [p for p in network.pretrained.blocks.parameters() if p.ndim == 2]
    known = {id(p) for p in inner}
    outer = [p for p in network.parameters() if p.requires_grad and id(p) not in known]
    rate, decay = plan.learning_rate, plan.weight_decay
    return [
        Muon(inner, lr=rate, weight_decay=decay),
        torch.optim.AdamW(outer, lr=rate, weight_decay=decay, betas=(0.9, 0.98)),
    ]


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products are faster than float32 ones. Emulated with AVX2 alone, they take ten times as long."""
    return device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _normal(images: NDArray[np.uint8]) -> Tensor:
    """Normalise pictures for the network: uint8 (N, H, W, 3) -> float32 (N, 3, H, W)."""
    pixels = torch.tensor(images).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
