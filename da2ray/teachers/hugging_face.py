"""Teachers that run through transformers: `--teacher hf:ORG/NAME[@REVISION]` or `hf:FOLDER`.

What a class of models predicts is known (`hugging_face_families`) and never guessed; a class that is not there is refused. The
library's own image processor preprocesses, image by image, and its rule gives the network's size. Of its two kinds it is always
the one on Pillow, with which most of these checkpoints were published and which is the same on every device and whatever is
installed; it runs on the CPU, and on CUDA its time adds to the network's.
Labels stay at that size: what the library's `depth-estimation` pipeline does last, bringing depth to the image's size, is left
out; all that it does to the depth's meaning is done. Where the processor pads (ZoeDepth), a label shows what the image shows: the
padding is cut off as the library does it, and the rest brought to the network's size.
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
"""As the model cards on the hub say; of others, and of folders, nothing is claimed."""

UNUSED_PARAMETERS = "neck.fusion_stage.layers.0.residual_layer1."
"""The class has them and never runs them: the first fusion has nothing to add. Some published files are without them."""


class HuggingFace:
    """A loaded model of transformers (`da2ray.teachers.base.Teacher`).

    Precision: the model runs under autocast, its tail in fp32 (`Family.tail`; on CUDA its convolutions may then round their
    inputs to TF32, which leaves no steps). fp32 is IEEE fp32 on every device, no TF32.
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
        # ZoeDepth with several heads chooses one by a vote of the whole batch: an image's neighbours must have none.
        self._alone = len(getattr(model.config, "bin_configurations", ())) > 1

    def predict(self, batch: PixelBatch) -> Prediction:
        """Depth of a micro-batch: float32 (N, height, width) at `batch.size`, on the teacher's device.

        Raises:
            torch.OutOfMemoryError: the micro-batch is too large for the device.
        """
        reduced = self._dtype != torch.float32
        with torch.inference_mode():
            images = self._family.prepare(self._processor, batch)
            with (
                # Deterministic, since a resumed run must give the same bytes: cuDNN's transposed convolution may not be.
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
    """Take a module out of autocast, whatever types its inputs then have."""
    forward = module.forward

    def in_fp32(*args: Any, **kwargs: Any) -> Any:
        device = next(module.parameters()).device.type
        args, kwargs = pytree.tree_map_only(Tensor, Tensor.float, (args, kwargs))
        with torch.autocast(device, enabled=False):
            return forward(*args, **kwargs)

    module.forward = in_fp32


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose class is known. Its methods are `TeacherSpec`'s functions."""

    repository: Repository
    architecture: str

    def identify(self, options: LoadOptions) -> str:
        """sha256 (hex) over config.json and the weights' files, in the order of their names."""
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
    """The teacher of a checkpoint, from its small configuration files alone, which are fetched where they must be.

    Args:
        source: hub id with or without @revision, or a folder.
        options: there are none.

    Raises:
        UserError: no such checkpoint, or one of a class whose depth is not known here.
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
                f"known are {', '.join(FAMILIES)}. Another class would need its kind of depth, network size and image "
                "processor in da2ray/teachers/hugging_face_families.py, or a teacher of your own (MODULE:CLASS)",
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
    """The image processor of a checkpoint, which must be of the class that its family is known with."""
    stored = read_json(repository.need(PROCESSOR))
    named = stored.get("image_processor_type") or stored.get("feature_extractor_type") or family.processor
    found = re.sub("(Fast|Pil)$", "", named).replace("FeatureExtractor", "ImageProcessor")
    if found != family.processor:
        raise UserError(
            f"hf:{repository.source}: {PROCESSOR} names {printable(named)}; its model is known only with {family.processor}"
        )
    if found == DepthProImages.NAME:
        return DepthProImages.of(stored)
    return _readable(getattr(transformers, f"{found}Pil").from_pretrained, repository, PROCESSOR)


def _readable(read: Callable[..., Any], repository: Repository, name: str) -> Any:
    """What the library makes of a configuration file; UserError where it can make nothing of it."""
    folder = repository.need(name).parent
    try:
        return read(folder, local_files_only=True)
    except Exception as error:  # the library's checks raise nearly anything
        raise UserError(f"{folder / name} cannot be used ({type(error).__name__}: {printable(error, 160)})") from error


def _loaded(model_class: Any, folder: Path, weights: Path) -> Any:
    """The model with its weights, float32: every parameter from the files, none made up, and no code of theirs run."""
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
            f"hf:{repository.source} names its weights: drop --weights {printable(options.weights)}, or give hf:FOLDER with them"
        )
    if options.compile:
        raise UserError(f"--compile is not supported for hf:{repository.source}: drop it")
