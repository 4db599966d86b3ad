"""A teacher through transformers predicts what the library's own pipeline predicts for the same image and weights."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.zoedepth import image_processing_pil_zoedepth

from da2ray.errors import UserError
from da2ray.teachers import hugging_face
from da2ray.teachers.base import Camera, Kind, LoadOptions, PixelBatch, TeacherSpec
from tests.teachers.hugging_face_models import FAMILIES, Built, DepthProProcessor, build

TOLERANCE = 1e-4
TORCH_RESIZE = SimpleNamespace(
    InterpolationMode=SimpleNamespace(BICUBIC="bicubic"),
    resize=lambda depth, size, interpolation, antialias: nn.functional.interpolate(
        depth[None], size, mode=interpolation, antialias=antialias
    )[0],
)
METRIC = {"depth-anything-metric", "zoe", "zoe-heads", "depth-pro", "glpn"}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function: family -> (built model, folder it was saved to). Each family is saved once; tests must not change it."""
    made: dict[str, tuple[Built, Path]] = {}

    def save(family: str) -> tuple[Built, Path]:
        if family not in made:
            built = build(family)
            made[family] = (built, built.save(tmp_path_factory.mktemp(family)))
        return made[family]

    return save


@pytest.fixture
def folder(published: Any, tmp_path: Path) -> Path:
    """A copy of a small MiDaS that a test may damage."""
    return Path(shutil.copytree(published("dpt-large")[1], tmp_path / "checkpoint"))


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """An image of a ramp, an edge and noise: uint8 (height, width, 3)."""
    random = np.random.default_rng(seed)
    image = random.integers(0, 60, (height, width, 3))
    image += np.linspace(0, 120, width, dtype=np.int64)[None, :, None]
    image[height // 3 :, : width // 2] += 60 + 10 * seed
    return image.clip(0, 255).astype(np.uint8)


def batch_of(spec: TeacherSpec, *images: np.ndarray, focals: list[float | None] | None = None) -> PixelBatch:
    (size,) = {spec.size_rule(*image.shape[:2]) for image in images}
    pixels = torch.cat([torch.from_numpy(image).flatten() for image in images])
    return PixelBatch(pixels, [image.shape[:2] for image in images], size, focals=focals)


def teacher_of(folder: Path, **options: Any) -> tuple[TeacherSpec, Any]:
    spec = hugging_face.spec(str(folder), {})
    return spec, spec.load(LoadOptions(**options))


def at_centres(depth: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The pixels of the pipeline's depth, at an image's size, at the centres of the network's pixels."""
    down, across = depth.shape[0] // size[0], depth.shape[1] // size[1]
    assert down % 2 == across % 2 == 1
    return depth[down // 2 :: down, across // 2 :: across]


@pytest.mark.parametrize("family", FAMILIES)
def test_depth_equals_that_of_the_librarys_pipeline(
    family: str, published: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, folder = published(family)
    # The library removes ZoeDepth's padding with torchvision's resize, which equals this torch resize on such tensors.
    monkeypatch.setattr(image_processing_pil_zoedepth, "tvF", TORCH_RESIZE, raising=False)
    pipeline = tf.pipeline("depth-estimation", model=str(folder), image_processor=built.processor, device="cpu")
    spec, teacher = teacher_of(folder)
    shapes = built.sizes
    assert any(height != width for height, width in shapes)
    for height, width in shapes:
        image = photo(height, width)
        batch = batch_of(spec, image)
        depth = teacher.predict(batch).depth
        expected = at_centres(pipeline(Image.fromarray(image))["predicted_depth"], batch.size)
        if family.startswith("zoe"):  # the library overshoots when it removes the padding, and da2ray clamps that
            with torch.inference_mode():
                raw = built.model(**built.processor(Image.fromarray(image), return_tensors="pt"))
            expected = expected.clamp(min=raw.predicted_depth.min())
        assert depth.dtype == torch.float32
        assert depth.shape == (1, *batch.size)
        assert expected.std() > 0.01 * expected.mean(), "constant depth proves nothing"
        torch.testing.assert_close(depth[0], expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_batching_changes_no_label(family: str, published: Any) -> None:
    """Invariant 6: images of different sizes that share a network size get the same labels together and alone."""
    built, folder = published(family)
    spec, teacher = teacher_of(folder)
    height, width = built.sizes[1]
    shapes = [(height, width)] * 2 if family == "glpn" else [(height, width), (2 * height, 2 * width)]
    images = [photo(*shape, seed) for seed, shape in enumerate(shapes)]
    together = teacher.predict(batch_of(spec, *images)).depth
    assert (together[0] - together[1]).abs().max() > 1e-3, "the same depth for every image"
    for image, depth in zip(images, together, strict=True):
        torch.testing.assert_close(depth, teacher.predict(batch_of(spec, image)).depth[0], atol=1e-5, rtol=1e-5)


def test_zoe_depth_with_several_heads_chooses_one_for_each_image(tmp_path: Path) -> None:
    """In the library a batch votes on the head. In this batch the last image disagrees and would be outvoted."""
    built = build("zoe-heads")
    images = [photo(64, 96), photo(64, 96), 255 - photo(64, 96, 5)]
    inputs = [built.processor(Image.fromarray(image), return_tensors="pt")["pixel_values"] for image in images]
    with torch.inference_mode():
        votes = torch.cat([built.model(each).domain_logits for each in inputs])
    preference = votes[:, 0] - votes[:, 1]
    assert (preference[0] - preference[2]).abs() > 1e-3
    built.model.metric_head.mlp_classifier.linear2.bias.data[0] -= (preference[0] + 2 * preference[2]).item() / 3
    spec, teacher = teacher_of(built.save(tmp_path))
    together = teacher.predict(batch_of(spec, *images)).depth
    alone = torch.cat([teacher.predict(batch_of(spec, image)).depth for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    with torch.inference_mode():
        outvoted = built.model(torch.cat(inputs)).predicted_depth[2]
        own = built.model(inputs[2]).predicted_depth[0]
    assert (outvoted - own).abs().max() > 0.1, "the images agree, which proves nothing"


@pytest.mark.parametrize("family", FAMILIES)
def test_kind_unit_and_camera_follow_the_class(family: str, published: Any) -> None:
    _, folder = published(family)
    spec = hugging_face.spec(str(folder), {})
    assert spec.name == f"hf:{folder}"
    assert (spec.kind, spec.unit) == ((Kind.METRIC, "m") if family in METRIC else (Kind.DISPARITY, ""))
    assert spec.camera == (Camera.PREDICTED if family == "depth-pro" else Camera.UNUSED)
    assert spec.licence == "unknown"
    there = pickle.loads(pickle.dumps(spec))  # noqa: S301
    assert there.identify(LoadOptions()) == spec.identify(LoadOptions())
    assert there.size_rule(300, 400) == spec.size_rule(300, 400)


def test_depth_pro_uses_a_known_focal_length_and_else_predicts_one(published: Any) -> None:
    built, folder = published("depth-pro")
    spec, teacher = teacher_of(folder)
    images = [photo(384, 640), photo(256, 300, 1)]
    predicted = teacher.predict(batch_of(spec, *images))
    for image, focal in zip(images, predicted.focals, strict=True):
        with torch.inference_mode():
            outputs = built.model(**built.processor(Image.fromarray(image), return_tensors="pt"))
        (expected,) = built.processor.post_process_depth_estimation(outputs, [image.shape[:2]])
        assert focal.item() == pytest.approx(expected["focal_length"].item(), rel=1e-5)
    given = teacher.predict(batch_of(spec, *images, focals=[1000.0, None]))
    assert given.focals.tolist() == [1000.0, predicted.focals[1].item()]
    torch.testing.assert_close(given.depth[0], predicted.depth[0] * 1000 / predicted.focals[0])
    torch.testing.assert_close(given.depth[1], predicted.depth[1])


SIZES = [(480, 640), (375, 500), (640, 480), (200, 300), (64, 64), (33, 97), (1000, 301), (40, 400)]
RULES: dict[str, tuple[str, Any]] = {
    "Intel/dpt-large": ("dpt-large", tf.DPTImageProcessorPil()),
    "Intel/dpt-beit-large-512": (
        "dpt-beit",
        tf.DPTImageProcessorPil(size={"height": 512, "width": 512}, keep_aspect_ratio=True, ensure_multiple_of=32),
    ),
    "Depth Anything": (
        "depth-anything",
        tf.DPTImageProcessorPil(size={"height": 518, "width": 518}, keep_aspect_ratio=True, ensure_multiple_of=14),
    ),
    "Intel/zoedepth": ("zoe", tf.ZoeDepthImageProcessorPil(ensure_multiple_of=32)),
    "apple/DepthPro-hf": ("depth-pro", DepthProProcessor(160)),
    "vinvino02/glpn": ("glpn", tf.GLPNImageProcessorPil()),
}


@pytest.mark.parametrize("name", RULES)
def test_the_size_rule_equals_that_of_the_published_image_processor(name: str, published: Any, tmp_path: Path) -> None:
    family, processor = RULES[name]
    folder = Path(shutil.copytree(published(family)[1], tmp_path / "checkpoint"))
    processor.save_pretrained(folder)
    rule = hugging_face.spec(str(folder), {}).size_rule
    for height, width in SIZES:
        made = processor(Image.new("RGB", (width, height)), return_tensors="pt")["pixel_values"]
        assert rule(height, width) == tuple(made.shape[2:]), (height, width)
    assert min(rule(2, 5000)) > 0


def test_size_rules_need_neither_torch_nor_transformers() -> None:
    code = "import sys, da2ray.teachers.hugging_face_size; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("family", "precision", "worst"),
    [
        ("dpt-large", "bf16", 0.1),
        ("dpt-large", "fp16", 0.02),
        ("depth-anything", "bf16", 0.1),
        ("zoe", "bf16", 0.1),
        ("depth-pro", "bf16", 0.1),
        ("glpn", "bf16", 0.1),
    ],
)
def test_reduced_precision_stays_near_fp32_and_leaves_no_steps(
    family: str, precision: str, worst: float, published: Any
) -> None:
    built, folder = published(family)
    spec, exact = teacher_of(folder)
    batch = batch_of(spec, photo(*built.sizes[1]))
    reduced = teacher_of(folder, precision=precision)[1].predict(batch).depth
    depth = exact.predict(batch).depth
    assert reduced.dtype == torch.float32
    assert 0 < (reduced - depth).abs().max() < worst * (depth.max() - depth.min() + depth.abs().mean())
    positive = reduced[depth > 0]
    assert len(positive.unique()) > 0.5 * len(positive)  # a tail in bf16 leaves a few hundred


def test_the_fingerprints_preprocessing_changes_with_the_image_processors_file(folder: Path) -> None:
    before = hugging_face.spec(str(folder), {}).preprocessing
    assert before.startswith("hf-pillow-v1-")
    tf.DPTImageProcessorPil(size={"height": 64, "width": 64}, image_mean=[0.4] * 3).save_pretrained(folder)
    assert hugging_face.spec(str(folder), {}).preprocessing != before


def test_weights_may_be_sharded_or_a_pytorch_file_and_the_identity_covers_each_file(folder: Path) -> None:
    spec, teacher = teacher_of(folder)
    batch = batch_of(spec, photo(64, 80))
    # Fixed: this process, so its threads, libraries and instruction set.
    depth, identity = teacher.predict(batch).depth, spec.identify(LoadOptions())
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    parts = {"model-00001-of-00002.safetensors": names[:40], "model-00002-of-00002.safetensors": names[40:]}
    for file, keys in parts.items():
        save_file({key: state[key] for key in keys}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(spec.load(LoadOptions()).predict(batch).depth, depth)
    sharded = spec.identify(LoadOptions())
    other = {key: state[key] + 1 for key in names[40:]}
    save_file(other, folder / "model-00002-of-00002.safetensors", metadata={"format": "pt"})
    assert len({identity, sharded, spec.identify(LoadOptions())}) == 3
    for file in folder.glob("model*"):
        file.unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert torch.equal(spec.load(LoadOptions()).predict(batch).depth, depth)
    config = json.loads((folder / "config.json").read_text())
    before = spec.identify(LoadOptions())
    (folder / "config.json").write_text(json.dumps(config | {"head_in_index": -2}))
    assert spec.identify(LoadOptions()) != before


class Trap:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "run")


def test_code_in_a_weights_file_is_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"dpt.embeddings.cls_token": Trap(tmp_path / "trapped")}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin cannot be read as DPTForDepthEstimation"):
        teacher_of(folder)
    assert not (tmp_path / "trapped").exists()


def test_only_parameters_that_are_never_used_may_be_missing(folder: Path) -> None:
    """Published files lack `residual_layer1` of the first fusion, which has nothing to add."""
    spec, teacher = teacher_of(folder)
    batch = batch_of(spec, photo(64, 80))
    state = load_file(folder / "model.safetensors")
    used = {
        key: value for key, value in state.items() if not key.startswith("neck.fusion_stage.layers.0.residual_layer1")
    }
    assert len(used) == len(state) - 4
    save_file(used, folder / "model.safetensors", metadata={"format": "pt"})
    # Fixed: this process, so its threads, libraries and instruction set.
    assert torch.equal(spec.load(LoadOptions()).predict(batch).depth, teacher.predict(batch).depth)
    del used["head.head.0.weight"]
    save_file(used, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 parameters are missing, such as head\.head\.0\.weight"):
        spec.load(LoadOptions())


def edit(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": ["TimmDepth"]}, "is a TimmDepth: da2ray knows DPTForDepthEstimation, .*Add its kind"),
        ({"architectures": None}, "is a none: da2ray knows"),
        (
            {"architectures": ["PromptDepthAnythingForDepthEstimation"]},
            "it needs a measured depth map with each image",
        ),
        ({"backbone_config": {"model_type": "dinov2"}}, "a DPTForDepthEstimation on dinov2 is not a MiDaS"),
        (
            {"architectures": ["GLPNForDepthEstimation"]},
            "names DPTImageProcessor\\w*, but da2ray supports its model only with GLPNImageProcessor",
        ),
    ],
)
def test_a_class_whose_depth_is_unknown_is_refused(config: dict, message: str, folder: Path) -> None:
    edit(folder / "config.json", **config)
    with pytest.raises(UserError, match=message):
        hugging_face.spec(str(folder), {})


@pytest.mark.parametrize("processor", [{"do_resize": False}, {"do_pad": True, "size_divisor": 14}])
def test_an_image_processor_whose_sizes_are_unknown_is_refused(processor: dict, folder: Path) -> None:
    edit(folder / "preprocessor_config.json", **processor)
    with pytest.raises(UserError, match="such sizes are not supported"):
        hugging_face.spec(str(folder), {})


def test_the_error_for_a_missing_or_broken_file_names_it(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is neither a folder here nor a hub id: give hf:ORG/NAME"):
        hugging_face.spec(str(tmp_path / "nowhere"), {})
    with pytest.raises(UserError, match=r"has no config\.json"):
        hugging_face.spec(str(tmp_path), {})
    spec = hugging_face.spec(str(folder), {})
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(UserError, match="cannot be read as DPTForDepthEstimation"):
        spec.load(LoadOptions())
    (folder / "model.safetensors").unlink()
    for call in (spec.identify, spec.load):
        with pytest.raises(UserError, match=r"has no weights: expected one of model\.safetensors"):
            call(LoadOptions())
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"has no preprocessor_config\.json"):
        hugging_face.spec(str(folder), {})
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        hugging_face.spec(str(folder), {})


def test_options_that_would_be_ignored_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="has no options: drop --teacher-option steps="):
        hugging_face.spec(str(folder), {"steps": "4"})
    spec = hugging_face.spec(str(folder), {})
    for call in (spec.identify, spec.load):
        with pytest.raises(UserError, match="already names its weights: drop --weights some"):
            call(LoadOptions(weights="some"))
        with pytest.raises(UserError, match="--compile is not supported"):
            call(LoadOptions(compile=True))
    with pytest.raises(UserError, match="--device cuda:7"):
        spec.load(LoadOptions(device="cuda:7"))


def test_a_hub_id_is_read_from_the_hubs_cache_at_one_commit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real client runs offline over a cache in its own layout."""
    old, new = "a" * 40, "b" * 40
    cached = tmp_path / "cache" / "models--Intel--dpt-large"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(old)
    shutil.copytree(folder, cached / "snapshots" / old)
    shutil.copytree(folder, cached / "snapshots" / new)
    edit(cached / "snapshots" / new / "config.json", head_in_index=-2)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    spec = hugging_face.spec("Intel/dpt-large", {})
    assert (spec.name, spec.licence) == ("hf:Intel/dpt-large", "Apache-2.0")
    identity = spec.identify(LoadOptions())
    assert identity == hugging_face.spec(str(folder), {}).identify(LoadOptions())
    assert hugging_face.spec(f"Intel/dpt-large@{new}", {}).identify(LoadOptions()) != identity
    (cached / "refs" / "main").write_text(new)  # a new commit is published during a run
    assert spec.identify(LoadOptions()) == identity
    assert hugging_face.spec("Intel/dpt-large", {}).identify(LoadOptions()) != identity
    with pytest.raises(UserError, match=r"hf:org/other: config\.json cannot be fetched .*give hf:FOLDER"):
        hugging_face.spec("org/other", {})
