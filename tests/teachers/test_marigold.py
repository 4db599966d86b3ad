"""Marigold's labels equal those of diffusers' own pipeline, here a tiny one with random weights."""

import functools
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, LCMScheduler, MarigoldDepthPipeline, UNet2DConditionModel
from diffusers.pipelines.marigold import MarigoldImageProcessor
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from da2ray.errors import UserError
from da2ray.teachers.base import Kind, LoadOptions, PixelBatch, Prediction, TeacherSpec
from da2ray.teachers.marigold import MEMBERS_AT_ONCE, spec
from da2ray.teachers.marigold_size import LongSide
from tests.teachers import batches

RESOLUTION, STEPS = 48, 2
"""The tiny pipeline's recommendations."""

SHAPES = [(60, 96), (35, 56), (120, 192)]
SIZE = (30, 48)
"""The label size of each of the shapes. The VAE needs multiples of 4, so there is padding to cut off."""

batch_of = functools.partial(batches.batch_of, size=SIZE)

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}
SCHEDULERS = {
    "ddim": DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False, timestep_spacing="trailing"),
    "lcm": LCMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two saved pipelines that differ only in the scheduler. Tests must not change them."""
    torch.manual_seed(0)
    blocks = {"block_out_channels": (8, 16, 16), "norm_num_groups": 4, "layers_per_block": 1}
    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel(
            **blocks,
            in_channels=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=4,
        ),
        "vae": AutoencoderKL(
            **blocks, down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3
        ),
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(
                vocab_size=2,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
                hidden_size=16,
                intermediate_size=16,
                num_attention_heads=2,
                num_hidden_layers=1,
            )
        ),
        "tokenizer": CLIPTokenizer({"<|startoftext|>": 0, "<|endoftext|>": 1}, [], model_max_length=77),
    }
    recommended = {"default_denoising_steps": STEPS, "default_processing_resolution": RESOLUTION}
    found = {}
    for name, scheduler in SCHEDULERS.items():
        found[name] = tmp_path_factory.mktemp(name)
        MarigoldDepthPipeline(**parts, scheduler=scheduler, prediction_type="depth", **recommended).save_pretrained(
            found[name]
        )
    return found


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A pipeline that a test may damage."""
    return shutil.copytree(folders["ddim"], tmp_path / "copy")


def edit(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def of(folder: Path, **options: object) -> TeacherSpec:
    return spec(str(folder), {name: str(value) for name, value in options.items()})


def predict(batch: PixelBatch, folder: Path, precision: str = "fp32", **options: object) -> Prediction:
    return of(folder, **options).load(LoadOptions(precision=precision)).predict(batch)


def alone(batch: PixelBatch) -> list[PixelBatch]:
    return [
        PixelBatch(image.flatten(), [shape], batch.size)
        for image, shape in zip(batch.images(), batch.shapes, strict=True)
    ]


def diffusers_own(folder: Path, image: torch.Tensor, seed: int, **settings: int) -> Any:
    """The library's own output for one uint8 (H, W, 3) image."""
    pipeline = MarigoldDepthPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        image.permute(2, 0, 1),
        **settings,
        batch_size=MEMBERS_AT_ONCE,
        match_input_resolution=False,
        output_type="pt",
        output_uncertainty=settings["ensemble_size"] > 2,
        generator=torch.Generator().manual_seed(seed),
    )


# ------------------------------------------------------------------------------------------------ diffusers' own output


@pytest.mark.parametrize(
    ("scheduler", "ensemble", "steps", "seed"),
    [("ddim", 1, 2, 0), ("ddim", 5, 2, 7), ("lcm", 1, 3, 7), ("lcm", 3, 2, 0)],
)
def test_labels_equal_those_of_the_librarys_own_call(
    folders: dict[str, Path], scheduler: str, ensemble: int, steps: int, seed: int
) -> None:
    batch = batch_of(*SHAPES)
    found = predict(batch, folders[scheduler], ensemble=ensemble, steps=steps, seed=seed)
    assert found.depth.shape == (len(SHAPES), *SIZE)
    assert found.depth.dtype == torch.float32
    for i, image in enumerate(batch.images()):
        own = diffusers_own(folders[scheduler], image, seed, ensemble_size=ensemble, num_inference_steps=steps)
        torch.testing.assert_close(found.depth[i], own.prediction[0, 0], atol=1e-4, rtol=0)
        assert own.prediction.std() > 0.01, "a constant map proves nothing"
        if ensemble == 1:
            assert found.confidence is None
            continue
        assert found.confidence is not None
        assert found.confidence.dtype == torch.float32
        assert 0 <= found.confidence.min() < found.confidence.max() <= 1
        torch.testing.assert_close(found.confidence[i], (1 - own.uncertainty[0, 0]).clamp(min=0), atol=1e-4, rtol=0)
    assert (found.depth[0] - found.depth[2]).abs().mean() > 1e-3, "the same map for every image"


def test_the_size_rule_equals_that_of_the_librarys_processor() -> None:
    rule = LongSide(768)
    assert rule(480, 640) == (576, 768)
    for height, width in [
        (480, 640),
        (640, 480),
        (333, 1000),
        (768, 768),
        (1, 700),
        (4000, 3001),
        (97, 31),
        (769, 768),
    ]:
        resized = MarigoldImageProcessor.resize_to_max_edge(torch.zeros(1, 1, height, width), 768, "bilinear")
        assert rule(height, width) == tuple(resized.shape[2:])
    assert rule(1, 5000) == (1, 768)  # the library refuses such an image


def test_pixels_decoded_at_a_reduced_scale_get_the_size_of_the_whole_image(folders: dict[str, Path]) -> None:
    batch = batch_of((45, 68), size=(32, 48))
    assert LongSide(RESOLUTION)(45, 68) != batch.size
    assert predict(batch, folders["ddim"]).depth.shape == (1, 32, 48)


@pytest.mark.parametrize(("precision", "worst", "mean"), [("bf16", 0.1, 0.02), ("fp16", 0.02, 0.002)])
def test_reduced_precision_stays_near_fp32_and_leaves_no_steps(
    folders: dict[str, Path], precision: str, worst: float, mean: float
) -> None:
    batch = batch_of(*SHAPES)
    exact, reduced = predict(batch, folders["ddim"]).depth, predict(batch, folders["ddim"], precision).depth
    difference = (exact - reduced).abs() / (exact.max() - exact.min())
    assert 0 < difference.max() < worst
    assert difference.mean() < mean
    assert reduced.dtype == torch.float32
    assert len(reduced.unique()) > 0.9 * len(exact.unique())  # a tail in bf16 leaves a few hundred


# --------------------------------------------------------------------------------------- invariants 5 and 6 of the design


@pytest.mark.parametrize(("scheduler", "ensemble"), [("ddim", 1), ("lcm", 1), ("lcm", 3)])
def test_a_label_depends_neither_on_the_micro_batch_nor_on_what_came_before(
    folders: dict[str, Path], scheduler: str, ensemble: int
) -> None:
    teacher = of(folders[scheduler], ensemble=ensemble, steps=3).load(LoadOptions())
    batch = batch_of(*SHAPES[:2])
    together = teacher.predict(batch)
    torch.manual_seed(1)  # schedulers draw from the global generator if they get no other
    again = teacher.predict(batch)
    # Fixed: this process, so its threads, libraries and instruction set.
    assert torch.equal(together.depth, again.depth)
    for i, single in enumerate(alone(batch)):
        found = teacher.predict(single)
        # An ensemble's alignment amplifies differences, so its members must be equal.
        torch.testing.assert_close(found.depth[0], together.depth[i], atol=0 if ensemble > 1 else 1e-5, rtol=0)


def test_the_same_image_twice_in_a_micro_batch_gets_the_same_noise(folders: dict[str, Path]) -> None:
    image = batch_of(SHAPES[0]).pixels
    for ensemble in (1, 3):
        depth = predict(PixelBatch(image.repeat(2), [SHAPES[0]] * 2, SIZE), folders["lcm"], ensemble=ensemble).depth
        torch.testing.assert_close(depth[0], depth[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("changed", [{"seed": 1}, {"steps": 1}, {"ensemble": 2}, {"resolution": 46}])
def test_every_option_changes_the_label_and_the_fingerprint(folders: dict[str, Path], changed: dict[str, int]) -> None:
    before, after = of(folders["ddim"]), of(folders["ddim"], **changed)
    assert before.preprocessing == "marigold-v1 resolution=48 ensemble=1 steps=2 seed=0"
    assert before.preprocessing != after.preprocessing
    assert before.identify(LoadOptions()) == after.identify(LoadOptions())
    size = after.size_rule(*SHAPES[0])
    batch = batch_of(SHAPES[0], size=size)
    found = after.load(LoadOptions()).predict(batch)
    assert found.confidence is None
    if size == SIZE:
        assert (found.depth - before.load(LoadOptions()).predict(batch).depth).abs().mean() > 1e-3
    else:
        assert size == found.depth.shape[1:] == (28, 46)


# -------------------------------------------------------------------------------------------------------------- weights


def test_the_identity_covers_exactly_the_files_that_are_loaded_in_any_folder(
    folders: dict[str, Path], copy: Path
) -> None:
    identity = of(folders["ddim"]).identify(LoadOptions())
    assert of(copy).identify(LoadOptions()) == identity
    for ignored in ("README.md", "unet/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.bin"):
        (copy / ignored).write_text("not read")
        assert of(copy).identify(LoadOptions()) == identity
    seen = {identity}
    for read in ("scheduler/scheduler_config.json", "tokenizer/tokenizer.json", "unet/config.json", "model_index.json"):
        edit(copy / read, changed=1)
        seen.add(of(copy).identify(LoadOptions()))
    for network in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        weights = load_file(copy / f"{network}.safetensors")
        save_file(
            {key: value + (key == min(weights)) for key, value in weights.items()}, copy / f"{network}.safetensors"
        )
        seen.add(of(copy).identify(LoadOptions()))
    assert len(seen) == 8


@pytest.mark.parametrize("network", ["unet/diffusion_pytorch_model", "text_encoder/model"])
def test_missing_parameters_are_refused_and_not_made_up(copy: Path, network: str) -> None:
    weights = load_file(copy / f"{network}.safetensors")
    key = max(weights)
    del weights[key]
    save_file(weights, copy / f"{network}.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 parameters, such as .* fetch or save it again"):
        of(copy).load(LoadOptions())


def test_only_safetensors_are_loaded(copy: Path) -> None:
    weights = copy / "vae/diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.rename(weights.with_suffix(".fp16.safetensors"))
    for call in (of(copy).identify, of(copy).load):
        with pytest.raises(UserError, match=r"has no vae/diffusion_pytorch_model\.safetensors"):
            call(LoadOptions())


def test_damaged_weights_are_a_user_error(copy: Path) -> None:
    (copy / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot be loaded as a pipeline"):
        of(copy).load(LoadOptions())


def test_a_hub_id_is_pinned_to_the_current_commit_of_its_revision(folders: dict[str, Path], tmp_path: Path) -> None:
    """The real client runs without a network over a cache in its own layout. The spec does not import diffusers."""
    commit, name = "0123456789" * 4, "prs-eth/marigold-depth-v1-1"
    cache = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
    shutil.copytree(folders["ddim"], cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "v9").write_text(commit)
    code = f"""if True:
        import pickle, sys
        from da2ray.errors import UserError
        from da2ray.teachers.base import LoadOptions
        from da2ray.teachers.marigold import spec
        found = pickle.loads(pickle.dumps(spec("{name}@v9", {{}})))
        print(found.name, found.licence, found.identify.__self__.repository.commit, found.identify(LoadOptions()))
        assert not {{"diffusers", "transformers", "ray"}} & set(sys.modules)
        try:
            spec("{name}", {{}})
        except UserError as error:
            print(error)
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    known, unknown = done.stdout.splitlines()
    identity = of(folders["ddim"]).identify(LoadOptions())
    assert known == f"marigold:{name}@v9 OpenRAIL++-M {commit} {identity}"
    assert f"marigold:{name} is not a local folder and cannot be fetched from the Hugging Face hub" in unknown


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": "0"}, "steps=0: give a whole number of at least 1"),
        ({"ensemble": "x"}, "ensemble=x: give a whole number of at least 1"),
        ({"ensemble": "0"}, "ensemble=0: give"),
        ({"seed": "-1"}, "seed=-1: give a whole number of at least 0"),
        ({"seed": str(2**64)}, "seed=18446744073709551616: give"),
        ({"resolution": "7.5"}, "resolution=7.5: give"),
        ({"sedd": "1"}, "sedd is unknown: marigold takes ensemble, steps, seed, resolution"),
    ],
)
def test_wrong_options_are_user_errors(folders: dict[str, Path], options: Mapping[str, str], message: str) -> None:
    with pytest.raises(UserError, match=f"--teacher-option {message}"):
        spec(str(folders["ddim"]), options)


def test_an_option_that_the_pipeline_does_not_recommend_must_be_given(copy: Path) -> None:
    edit(copy / "model_index.json", default_denoising_steps=None)
    with pytest.raises(UserError, match=r"--teacher-option steps=None \(from the pipeline\): give a whole number"):
        of(copy)
    assert "steps=4" in of(copy, steps=4).preprocessing


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_more_steps_than_the_scheduler_has_are_a_user_error(folders: dict[str, Path], scheduler: str) -> None:
    with pytest.raises(UserError, match="--teacher-option steps=1001: "):
        of(folders[scheduler], steps=1001).load(LoadOptions())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "MarigoldNormalsPipeline"}, "is a MarigoldNormalsPipeline: da2ray loads only a MarigoldDepth"),
        ({"_class_name": ["pipeline", "MarigoldDepthPipeline"]}, "loads only a MarigoldDepthPipeline"),
        ({"unet": ["my_unet", "UNet2DConditionModel"]}, "as its unet: da2ray loads only UNet2DConditionModel"),
        ({"scheduler": ["diffusers", "EulerDiscreteScheduler"]}, "loads only DDIMScheduler or LCMScheduler"),
        ({"prediction_type": None}, "supports only affine-invariant depth and disparity"),
        ({"prediction_type": "normals"}, "supports only affine-invariant depth and disparity"),
        ({"shift_invariant": False}, "supports only affine-invariant depth and disparity"),
    ],
)
def test_pipelines_of_another_meaning_or_with_code_of_their_own_are_refused(
    copy: Path, change: dict[str, Any], message: str
) -> None:
    edit(copy / "model_index.json", **change)
    with pytest.raises(UserError, match=message):
        of(copy)


def test_disparity_and_the_authors_own_name_of_the_pipeline_are_known(copy: Path) -> None:
    assert (of(copy).kind, of(copy).unit, of(copy).licence) == (Kind.DEPTH, "", "unknown")
    edit(copy / "model_index.json", prediction_type="disparity", _class_name="MarigoldPipeline")
    assert of(copy).kind is Kind.DISPARITY
    assert predict(batch_of(SHAPES[0]), copy).depth.std() > 0.01


def test_a_source_that_is_not_a_pipeline_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no readable model_index\.json"):
        of(tmp_path)
    with pytest.raises(UserError, match="is neither a folder nor a hub id such as org/name"):
        of(tmp_path / "none")


def test_weights_and_compile_are_refused(folders: dict[str, Path]) -> None:
    found = of(folders["ddim"])
    for call in (found.identify, found.load):
        with pytest.raises(UserError, match="marigold takes no weights: drop --weights"):
            call(LoadOptions(weights="some.safetensors"))
        with pytest.raises(UserError, match="drop --compile"):
            call(LoadOptions(compile=True))


@pytest.mark.parametrize(("package", "ensemble"), [("diffusers", 1), ("scipy", 3)])
def test_the_error_for_a_missing_package_names_the_extra(
    folders: dict[str, Path], package: str, ensemble: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(UserError, match=rf"needs {package}: pip install 'da2ray\[diffusers\]'"):
        of(folders["ddim"], ensemble=ensemble)


# ----------------------------------------------------------------------------------------------- output and read tasks


def test_nothing_is_printed(folders: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    predict(batch_of(SHAPES[0]), folders["lcm"], ensemble=2)
    assert capfd.readouterr() == ("", "")


def test_the_size_rule_travels_to_read_tasks_without_torch(folders: dict[str, Path]) -> None:
    rule = pickle.dumps(of(folders["ddim"]).size_rule)
    code = f"import pickle, sys; print(pickle.loads({rule!r})(60, 96), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{SIZE} False"
