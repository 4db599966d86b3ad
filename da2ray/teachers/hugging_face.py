"""Teachers that run through transformers: `--teacher hf:ORG/NAME[@REVISION]` or `hf:FOLDER`.

`hugging_face_families` lists the known classes of models and what each predicts. da2ray never guesses: it refuses a class that is
not listed.

The library's own image processor preprocesses image by image, and its rule gives the network's size. The library has two kinds
of processors. da2ray always uses the one on Pillow: most of these checkpoints were published with it, and it gives the same
result on every device and with any installed packages. It runs on the CPU, so on CUDA its time adds to the network's.

Labels stay at the network's size: da2ray leaves out the last step of the library's `depth-estimation` pipeline, which resizes
depth to the image's size. It does everything that the pipeline does to the depth's meaning. If the processor pads (ZoeDepth), the
label shows only the image: the padding is cut off as the library does it, and the rest is resized to the network's size.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from da2ray.errors import UserError
from da2ray.storage import printable
from da2ray.teachers.base import Kind, LoadOptions, PixelBatch, Prediction, TeacherSpec
from da2ray.teachers.depth_anything import checkpoint
from da2ray.teachers.depth_anything.teacher import precision_dtype, torch_device
from da2ray.teachers.hugging_face_families import FAMILIES, REFUSED, DepthProImages, Family, ImageProcessor, Output
from da2ray.teachers.hugging_face_files import CONFIG, PROCESSOR, Repository, read_json
from da2ray.teachers.registry import UNKNOWN, refuse_options

PREPROCESSING = "hf-pillow-v1"

LICENCES = {
    "Intel/dpt-large": "Apache-2.0",
    "Intel/dpt-beit-large-512": "MIT",
    "Intel/zoedepth-nyu-kitti": "MIT",
    "LiheYoung/depth-anything-small-hf": "Apache-2.0",
    "apple/DepthPro-hf": "apple-amlr",
    "depth-anything/Depth-Anything-V2-Small-hf": "Apache-2.0",
    "depth-anything/Depth-Anything-V2-Base-hf": "CC-BY-NC-4.0",
    "depth-anything/Depth-Anything-V2-Large-hf": "CC-BY-NC-4.0",
}
"""Licences from the model cards on the hub. For other checkpoints, and for folders, da2ray claims nothing."""

UNUSED_PARAMETERS = "neck.fusion_stage.layers.0.residual_layer1."
"""Parameters that the class has and never uses, because the first fusion has nothing to add. Some published files lack them."""


class HuggingFace:
    """A loaded model of transformers (`da2ray.teachers.base.Teacher`).

    bf16 and fp16 run under autocast, and the model's tail (`Family.tail`) in fp32. On CUDA the tail's convolutions may then
    round their inputs to TF32, which leaves no steps. fp32 is IEEE fp32 on every device, without TF32.
    """

    def __init__(
        self,
        model: Any,
        processor: ImageProcessor,
        family: Family,
        device: torch.device,
        precision: str,
    ) -> None:
        self.device = device
        self._dtype = precision_dtype(precision, device)
        self._model = model.to(device).eval().requires_grad_(False)
        self._processor = processor
        self._family = family
        for name in family.tail:
            _run_in_fp32(self._model.get_submodule(name))
        # ZoeDepth with several heads chooses one by a vote of the whole batch. An image's neighbours must not vote.
        self._alone = len(getattr(model.config, "bin_configurations", ())) > 1

    def predict(self, batch: PixelBatch) -> Prediction:
        """Label a micro-batch. The depth is float32 (N, height, width) at `batch.size`, on the teacher's device.

        Raises:
            torch.OutOfMemoryError: the micro-batch is too large for the device.
        """
        reduced = self._dtype != torch.float32
        with torch.inference_mode():
            images = self._family.prepare(self._processor, batch)
            with (
                # A resumed run must give the same bytes, and cuDNN's transposed convolution may not be deterministic by default.
                torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=reduced),
                torch.autocast(self.device.type, self._dtype, enabled=reduced),
            ):
                parts = [self._model(part) for part in images.split(1 if self._alone else len(images))]
            return self._family.finish(_output(parts), batch)


def _output(parts: list[Any]) -> Output:
    depth = torch.cat([part.predicted_depth.float() for part in parts])
    if getattr(parts[0], "field_of_view", None) is None:
        return Output(depth, None)
    return Output(depth, torch.cat([part.field_of_view.float() for part in parts]))


def _run_in_fp32(module: nn.Module) -> None:
    """Run a module outside autocast, on float32 copies of its inputs."""
    forward = module.forward

    def in_fp32(*args: Any, **kwargs: Any) -> Any:
        device = next(module.parameters()).device.type
        args, kwargs = pytree.tree_map_only(Tensor, Tensor.float, (args, kwargs))
        with torch.autocast(device, enabled=False):
            return forward(*args, **kwargs)

    module.forward = in_fp32


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint of a known class. Its methods serve as `TeacherSpec`'s functions."""

    repository: Repository
    architecture: str

    def identify(self, options: LoadOptions) -> str:
        """The sha256 (hex) of config.json and the weights files, in the order of their names."""
        _refuse(self.repository, options)
        files = {path.name: path for path in [self.repository.need(CONFIG), *self.repository.weights()]}
        lines = [f"{name} {checkpoint.sha256(files[name])}\n" for name in sorted(files)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def load(self, options: LoadOptions) -> HuggingFace:
        _refuse(self.repository, options)
        device = torch_device(options.device)
        precision_dtype(options.precision, device)  # refuse before anything is fetched
        weights = self.repository.weights()
        folder = self.repository.need(CONFIG).parent
        model = _loaded(getattr(transformers, self.architecture), folder, weights[0])
        family = FAMILIES[self.architecture]
        return HuggingFace(model, _processor(self.repository, family), family, device, options.precision)


def spec(source: str, options: Mapping[str, str]) -> TeacherSpec:
    """The spec of a checkpoint. It reads only the small configuration files, and fetches them if needed.

    Args:
        source: a hub id with or without @revision, or a folder.
        options: must be empty; such a teacher takes no options.

    Raises:
        UserError: the checkpoint does not exist, or da2ray does not know what its class predicts.
    """
    name = f"hf:{source}"
    refuse_options(name, options)
    repository = Repository.of(source).pinned()
    architecture = (read_json(repository.need(CONFIG)).get("architectures") or ["none"])[0]
    if architecture not in FAMILIES:
        raise UserError(
            f"--teacher {name} is a {printable(architecture)}: "
            + REFUSED.get(
                architecture,
                f"da2ray knows {', '.join(FAMILIES)}. Add its kind of depth, network size and image processor to "
                "da2ray/teachers/hugging_face_families.py, or write a teacher of your own (MODULE:CLASS)",
            )
        )
    family = FAMILIES[architecture]
    processor = _processor(repository, family)
    config_class = getattr(transformers, architecture).config_class
    try:
        kind = family.kind(_readable(config_class.from_pretrained, repository, CONFIG))
        size_rule = family.size_rule(processor)
    except UserError as error:
        raise UserError(f"--teacher {name}: {error}") from error
    known = Checkpoint(repository, architecture)
    return TeacherSpec(
        name=name,
        kind=kind,
        unit="m" if kind is Kind.METRIC else "",
        licence=LICENCES.get(repository.source, UNKNOWN) if repository.on_hub else UNKNOWN,
        size_rule=size_rule,
        preprocessing=f"{PREPROCESSING}-{checkpoint.sha256(repository.need(PROCESSOR))[:8]}",
        identify=known.identify,
        load=known.load,
        camera=family.camera,
    )


def _processor(repository: Repository, family: Family) -> ImageProcessor:
    """The image processor of a checkpoint. It must have the class that its family was published with."""
    stored = read_json(repository.need(PROCESSOR))
    named = stored.get("image_processor_type") or stored.get("feature_extractor_type") or family.processor
    found = re.sub("(Fast|Pil)$", "", named).replace("FeatureExtractor", "ImageProcessor")
    if found != family.processor:
        raise UserError(
            f"hf:{repository.source}: {PROCESSOR} names {printable(named)}, but da2ray supports its model only with "
            f"{family.processor}"
        )
    if found == DepthProImages.NAME:
        return DepthProImages.of(stored)
    return _readable(getattr(transformers, f"{found}Pil").from_pretrained, repository, PROCESSOR)


def _readable(read: Callable[..., Any], repository: Repository, name: str) -> Any:
    """The library's object for a configuration file.

    Raises:
        UserError: the library cannot use the file.
    """
    folder = repository.need(name).parent
    try:
        return read(folder, local_files_only=True)
    except Exception as error:  # the library's checks raise nearly anything
        raise UserError(f"{folder / name} cannot be used ({type(error).__name__}: {printable(error, 160)})") from error


def _loaded(model_class: Any, folder: Path, weights: Path) -> Any:
    """Load a model with its weights, float32. Every parameter comes from the files, and no code in them runs.

    Raises:
        UserError: the files cannot be read, or lack parameters.
    """
    safe = ".safetensors" in weights.suffixes
    try:
        model, report = model_class.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=safe,
            weights_only=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # unpickling garbage raises nearly anything
        raise UserError(
            f"weights {weights} cannot be read as {model_class.__name__} ({type(error).__name__}: {printable(error, 160)})"
        ) from error
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(UNUSED_PARAMETERS))
    if missing:
        raise UserError(
            f"weights {weights} do not fit {model_class.__name__}: {len(missing)} parameters are missing, such as {missing[0]}"
        )
    return model


def _refuse(repository: Repository, options: LoadOptions) -> None:
    if options.weights is not None:
        raise UserError(
            f"hf:{repository.source} already names its weights: drop --weights {printable(options.weights)}, or give hf:FOLDER "
            "with other weights"
        )
    if options.compile:
        raise UserError(f"--compile is not supported for hf:{repository.source}: drop it")
