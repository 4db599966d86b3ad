"""Marigold through diffusers: `--teacher marigold:ORG/NAME[@REVISION]`, or `marigold:FOLDER` with a saved pipeline.

In fp32 the labels equal what diffusers' own call returns:

    pipeline(image, num_inference_steps=steps, ensemble_size=ensemble, batch_size=MEMBERS_AT_ONCE,
        processing_resolution=resolution, match_input_resolution=False, generator=torch.Generator().manual_seed(seed))

Every image starts from the noise of the same seed. A label then depends only on the image and the options, and not on the other
images of the micro-batch or on earlier images. diffusers is an extra, and is imported only when a pipeline is loaded.
"""

import hashlib
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from da2ray.errors import UserError
from da2ray.storage import printable
from da2ray.teachers.base import Kind, LoadOptions, PixelBatch, Prediction, TeacherSpec, refuse_weights
from da2ray.teachers.depth_anything.checkpoint import sha256
from da2ray.teachers.depth_anything.teacher import precision_dtype, torch_device
from da2ray.teachers.marigold_files import NETWORKS, Repository, find_repository, one_line
from da2ray.teachers.marigold_size import LongSide
from da2ray.teachers.registry import UNKNOWN

PREPROCESSING = "marigold-v1"

LICENCES = {
    "prs-eth/marigold-depth-v1-0": "Apache-2.0",
    "prs-eth/marigold-depth-v1-1": "OpenRAIL++-M",
    "prs-eth/marigold-depth-lcm-v1-0": "Apache-2.0",
}
"""Licences from the model cards on the hub. For other pipelines, and for folders, da2ray claims nothing."""

KINDS = {"depth": Kind.DEPTH, "disparity": Kind.DISPARITY}
"""`prediction_type` of a pipeline -> what its numbers in [0, 1] mean."""

PIPELINES = ("MarigoldDepthPipeline", "MarigoldPipeline")
"""The pipeline's names in diffusers and in its authors' code. marigold-depth-lcm-v1-0 was published with the latter."""

COMPONENTS = {
    "unet": [["diffusers", "UNet2DConditionModel"]],
    "vae": [["diffusers", "AutoencoderKL"]],
    "text_encoder": [["transformers", "CLIPTextModel"]],
    "tokenizer": [["transformers", "CLIPTokenizer"]],
    "scheduler": [["diffusers", "DDIMScheduler"], ["diffusers", "LCMScheduler"]],
}
"""Library and class of each part, as diffusers documents them. Others are refused, because a repository could contain code."""

LARGEST = 2**63 - 1
"""Largest value of an option, which bounds the seed. The scheduler bounds the steps, and the image limits the resolution."""

LEAST_FOR_CONFIDENCE = 3
"""Fewest ensemble members for a confidence. The median of two is one of them, so a deviation from it means nothing."""

MEMBERS_AT_ONCE = 4
"""Ensemble members in one call of the networks, which bounds memory. It is fixed, because it decides a label's last bits."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The values of `--teacher-option`.

    Attributes:
        ensemble: predictions for each image. Each starts from its own noise; they are aligned and merged by their median.
        steps: denoising steps.
        seed: seed of the noise.
        resolution: pixels of the longer side.
    """

    ensemble: int
    steps: int
    seed: int
    resolution: int


def spec(source: str, options: Mapping[str, str]) -> TeacherSpec:
    """The spec of the teacher `marigold:SOURCE`. It reads only the pipeline's index, and fetches that small file for a hub id.

    Args:
        source: a local folder, or a hub id `org/name[@revision]`. A name that exists on disk is a folder, not a hub id.
        options: `ensemble` (default 1), `steps` and `resolution` (default: the pipeline's recommendation), `seed` (default 0).

    Raises:
        UserError: the pipeline does not exist or is not a Marigold depth pipeline, or an option is unknown or out of range.
    """
    repository, index = find_repository(source)
    kind = _kind(source, index)
    settings = _settings(options, index)
    _require(settings.ensemble)
    variant = Variant(repository, settings)
    return TeacherSpec(
        name=f"marigold:{source}",
        kind=kind,
        unit="",
        licence=LICENCES.get(repository.name, UNKNOWN),
        size_rule=LongSide(settings.resolution),
        preprocessing=f"{PREPROCESSING} resolution={settings.resolution} ensemble={settings.ensemble} "
        f"steps={settings.steps} seed={settings.seed}",
        identify=variant.identify,
        load=variant.load,
    )


@dataclass(frozen=True, slots=True)
class Variant:
    """A pipeline and its settings. The methods serve as `TeacherSpec`'s functions."""

    repository: Repository
    settings: Settings

    def identify(self, options: LoadOptions) -> str:
        """The sha256 (hex) over name and sha256 of every file that is loaded, in alphabetical order."""
        self._check(options)
        folder, names = self.repository.fetch()
        digest = hashlib.sha256()
        for name in names:
            digest.update(f"{name} {sha256(folder / name)}\n".encode())
        return digest.hexdigest()

    def load(self, options: LoadOptions) -> "Marigold":
        self._check(options)
        device = torch_device(options.device)
        precision_dtype(options.precision, device)  # refuse before anything is fetched
        return Marigold(_load(self.repository.fetch()[0]), self.settings, device, options.precision)

    def _check(self, options: LoadOptions) -> None:
        refuse_weights(options, "marigold")
        if options.compile:
            raise UserError("--teacher marigold runs without torch.compile: drop --compile")


class Marigold:
    """A loaded pipeline (`da2ray.teachers.base.Teacher`).

    bf16 and fp16 run under autocast over fp32 weights. The last convolutions of the VAE's encoder and decoder stay fp32, and so
    do the latents between denoising steps: a depth map that was once rounded to bf16 has steps.

    Args:
        pipeline: diffusers' `MarigoldDepthPipeline`, float32, on the CPU or already on `device`.
        settings: ensemble, steps and seed. The resolution comes with each micro-batch.
        device: the device to run on.
        precision: fp32, bf16 or fp16.

    Raises:
        UserError: the device cannot run the precision, or the scheduler does not have that many steps.
    """

    def __init__(self, pipeline: Any, settings: Settings, device: torch.device, precision: str = "fp32") -> None:
        self.device = device
        self.settings = settings
        self._dtype = precision_dtype(precision, device)
        try:
            pipeline.scheduler.set_timesteps(settings.steps)
        except ValueError as error:
            raise UserError(f"--teacher-option steps={settings.steps}: {printable(error)}") from error
        vae = pipeline.vae
        for owner, name in ((vae.encoder, "conv_out"), (vae, "quant_conv"), (vae.decoder, "conv_out")):
            if (layer := getattr(owner, name)) is not None:  # a VAE may have no quant_conv
                setattr(owner, name, Float32(layer))
        # The same processor, without the steps that `_image` does.
        pipeline.image_processor = type(pipeline.image_processor)(
            vae_scale_factor=pipeline.vae_scale_factor, do_normalize=False, do_range_check=False
        )
        pipeline.set_progress_bar_config(disable=True)
        self._pipeline = pipeline.to(device)

    def predict(self, batch: PixelBatch) -> Prediction:
        """Label a micro-batch with depth or disparity in [0, 1].

        The confidence is 1 - uncertainty, and at least 0. The uncertainty is the pipeline's: the median absolute deviation of
        the aligned members from their median at a pixel, as a share of the image's range of depth. An ensemble of fewer than
        `LEAST_FOR_CONFIDENCE` members has no confidence.

        Raises:
            torch.OutOfMemoryError: the micro-batch, or an ensemble of one image, is too large for the device.
        """
        # An ensemble runs image by image, so that its bits do not depend on the micro-batch. A search along numerical
        # gradients aligns it, which turns a difference of 1e-6 between members into up to 0.2 (with random weights).
        at_once = len(batch) if self.settings.ensemble == 1 else 1
        reduced = self._dtype != torch.float32
        with (
            torch.inference_mode(),
            # Deterministic, because a resumed run must give the same bytes.
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=reduced),
            torch.autocast(self.device.type, self._dtype, enabled=reduced),
        ):
            images = torch.cat([self._image(image, batch.size) for image in batch.images()])
            outputs = [self._run(part) for part in images.split(at_once)]
        depth = torch.cat([output.prediction[:, 0] for output in outputs])
        if self.settings.ensemble < LEAST_FOR_CONFIDENCE:
            return Prediction(depth)
        uncertainty = torch.cat([output.uncertainty[:, 0] for output in outputs])
        return Prediction(depth, (1 - uncertainty).clamp(0, 1))

    def _image(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        """Prepare uint8 (H, W, 3) as float32 (1, 3, h, w) in [-1, 1], with the pipeline's processor and in its order.

        The size comes from the read stage: for pixels that were decoded at a reduced scale, the processor would compute another.
        """
        processor = self._pipeline.image_processor
        image = processor.load_image_canonical(pixels.permute(2, 0, 1), self.device)
        return processor.resize_antialias(image * 2.0 - 1.0, size, "bilinear", is_aa=True)

    def _run(self, images: Tensor) -> Any:
        """Run the pipeline on float32 (N, 3, h, w). Its maps are (N, 1, h, w). For an ensemble N must be 1."""
        ensemble = self.settings.ensemble
        # The noise is drawn on the CPU, so that it is the same for all devices. It comes from generators instead of fixed
        # latents, because LCM draws more at each step.
        noise = [torch.Generator().manual_seed(self.settings.seed) for _ in images]
        return self._pipeline(
            images,
            num_inference_steps=self.settings.steps,
            ensemble_size=ensemble,
            batch_size=len(images) if ensemble == 1 else MEMBERS_AT_ONCE,
            processing_resolution=0,  # the images already have their size
            match_input_resolution=False,
            generator=noise if ensemble == 1 else noise[0],
            output_type="pt",
            output_uncertainty=ensemble >= LEAST_FOR_CONFIDENCE,
        )


class Float32(nn.Module):
    """A layer that runs in float32 under autocast."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.layer(x.float())


def _kind(source: str, index: Mapping[str, Any]) -> Kind:
    """The kind of depth that a pipeline's index declares.

    Raises:
        UserError: this is not a Marigold depth pipeline, or it predicts neither affine-invariant depth nor disparity.
    """
    teacher = f"--teacher marigold:{printable(source)}"
    if (found := index.get("_class_name")) not in PIPELINES:
        raise UserError(f"{teacher} is a {printable(found)}: da2ray loads only a {PIPELINES[0]}")
    for component, classes in COMPONENTS.items():
        if (found := index.get(component)) not in classes:
            known = " or ".join(name for _, name in classes)
            raise UserError(f"{teacher} has {printable(found)} as its {component}: da2ray loads only {known}")
    kind = KINDS.get(str(index.get("prediction_type")))
    # Both default to true, as in diffusers.
    if kind is None or not (index.get("scale_invariant", True) and index.get("shift_invariant", True)):
        declared = {key: index.get(key) for key in ("prediction_type", "scale_invariant", "shift_invariant")}
        raise UserError(
            f"{teacher} declares {printable(declared)}: da2ray supports only affine-invariant depth and disparity"
        )
    return kind


def _settings(options: Mapping[str, str], index: Mapping[str, Any]) -> Settings:
    """The settings from the user's options, else from the pipeline's recommendation, else from our defaults.

    Raises:
        UserError: an option is unknown, not a number or out of range, or is neither given nor recommended.
    """
    steps, resolution = index.get("default_denoising_steps"), index.get("default_processing_resolution")
    values = {"ensemble": "1", "steps": str(steps), "seed": "0", "resolution": str(resolution)}
    for name, value in options.items():
        if name not in values:
            raise UserError(f"--teacher-option {printable(name)} is unknown: marigold takes {', '.join(values)}")
        values[name] = value
    for name, value in values.items():
        least = 0 if name == "seed" else 1
        if not (value.isascii() and value.isdecimal() and least <= int(value) <= LARGEST):
            option = f"{name}={printable(value)}" + ("" if name in options else " (from the pipeline)")
            raise UserError(f"--teacher-option {option}: give a whole number of at least {least}")
    return Settings(**{name: int(value) for name, value in values.items()})


def _require(ensemble: int) -> None:
    """Refuse at once if a package is not installed. `_load` finds out whether it works.

    Raises:
        UserError: a package is not installed.
    """
    needed = ("diffusers", "transformers", "scipy") if ensemble > 1 else ("diffusers", "transformers")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise UserError(f"--teacher marigold needs {' and '.join(missing)}: pip install 'da2ray[diffusers]'")


def _load(folder: Path) -> Any:
    """Load diffusers' pipeline from a folder: float32, on the CPU, in eval mode.

    Raises:
        UserError: diffusers cannot be imported, or the files do not fit its classes.
    """
    try:
        diffusers, transformers = importlib.import_module("diffusers"), importlib.import_module("transformers")
        classes = (diffusers.UNet2DConditionModel, diffusers.AutoencoderKL, transformers.CLIPTextModel)
        pipeline = diffusers.MarigoldDepthPipeline
    except Exception as error:  # the libraries import on first use, and raise any error
        raise UserError(
            f"diffusers cannot be imported ({one_line(error)}): install versions of torch and torchvision that fit it"
        ) from error
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    parts, gaps = {}, []
    try:
        for network, cls in zip(NETWORKS, classes, strict=True):
            parts[network], info = cls.from_pretrained(
                folder, subfolder=network, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
            parts[network].float()  # files may have half precision
            gaps += [f"{network}'s {key}" for key in info["missing_keys"]]
        loaded = pipeline.from_pretrained(folder, local_files_only=True, **parts)
    except Exception as error:  # the libraries' own, safetensors', the disk's
        raise UserError(
            f"{folder} cannot be loaded as a pipeline ({one_line(error)}): fetch or save it again"
        ) from error
    if gaps:  # the libraries fill them with random numbers
        raise UserError(f"{folder} lacks {len(gaps)} parameters, such as {gaps[0]}: fetch or save it again")
    return loaded
