"""The teacher around the network: precision, batching, compilation, identity, and errors that name the option to change."""

import functools
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from da2ray.errors import UserError
from da2ray.teachers.base import LoadOptions, PixelBatch
from da2ray.teachers.depth_anything import checkpoint
from da2ray.teachers.depth_anything.configs import TINY
from da2ray.teachers.depth_anything.dpt import DepthAnythingV2
from da2ray.teachers.depth_anything.keymap import to_hf
from da2ray.teachers.depth_anything.teacher import (
    DepthAnything,
    identify_random_tiny,
    load_random_tiny,
    precision_dtype,
    random_state,
)
from da2ray.teachers.depth_anything.variant import Variant
from tests.teachers import batches

SIZE = (140, 182)
batch_of = functools.partial(batches.batch_of, size=SIZE)
TINY_VARIANT = Variant("tiny-from-file", TINY, None, None)


SHAPES: Sequence[tuple[int, int]] = [(150, 200), (300, 390), (140, 182)]


def depth_of(batch: PixelBatch, precision: str = "fp32") -> torch.Tensor:
    return load_random_tiny(LoadOptions(precision=precision)).predict(batch).depth


def test_depth_is_float32_at_the_network_size_and_detached() -> None:
    prediction = load_random_tiny(LoadOptions()).predict(batch_of(*SHAPES))
    assert prediction.depth.shape == (3, *SIZE)
    assert prediction.depth.dtype == torch.float32
    assert prediction.depth.isfinite().all()
    assert not prediction.depth.requires_grad
    assert prediction.confidence is None


def test_random_tiny_is_the_same_in_every_process() -> None:
    batch = batch_of(*SHAPES)
    # Fixed: this process, so its threads, libraries and instruction set.
    assert torch.equal(depth_of(batch), depth_of(batch))
    # A fixed value, so that the test notices other bits from another NumPy or another machine: datasets store this hash.
    assert identify_random_tiny(LoadOptions()) == "0199bee6ff15b6ba7d5f9890c6ccf3ae3c8653a9ad1bd7171e8962c3c7caea3d"


def test_the_output_of_random_tiny_depends_on_the_image() -> None:
    depth = depth_of(batch_of(*SHAPES))
    assert (depth > 0).float().mean() > 0.9
    assert (depth.std(dim=(1, 2)) > 0.1).all(), "constant maps"
    assert (depth[0] - depth[2]).abs().mean() > 0.01, "the same map for every image"


@pytest.mark.parametrize(("precision", "noise"), [("fp32", 1e-5), ("bf16", 0.03), ("fp16", 0.004)])
def test_batch_of_one_and_of_many_agree_within_the_noise_of_the_precision(precision: str, noise: float) -> None:
    """Invariant 6. The noise is a share of the depth's range."""
    together = depth_of(batch_of(*SHAPES), precision)
    images = batch_of(*SHAPES).images()
    for image, shape, depth in zip(images, SHAPES, together, strict=True):
        alone = depth_of(PixelBatch(image.flatten(), [shape], SIZE), precision)[0]
        assert (alone - depth).abs().max() <= noise * (depth.max() - depth.min())


@pytest.mark.parametrize(("precision", "worst", "mean"), [("bf16", 0.1, 0.01), ("fp16", 0.01, 0.001)])
def test_reduced_precision_stays_near_fp32_and_leaves_no_steps(precision: str, worst: float, mean: float) -> None:
    batch = batch_of(*SHAPES)
    exact, reduced = depth_of(batch), depth_of(batch, precision)
    difference = (exact - reduced).abs() / (exact.max() - exact.min())
    assert 0 < difference.max() < worst
    assert difference.mean() < mean
    assert reduced.dtype == torch.float32
    assert len(reduced[0].unique()) > 10_000  # a tail in bf16 leaves about 400


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_network_agrees_and_compiles_once_for_each_size(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # AOTAutograd without the code generator makes the graph that a GPU compiles, without minutes of a C++ build.
    compile_, asked = torch.compile, []

    def without_codegen(network: DepthAnythingV2, **options: bool) -> Callable[..., torch.Tensor]:
        asked.append(options)
        return compile_(network, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", without_codegen)
    sizes = [SIZE, (518, 518), (112, 112), SIZE]
    batches = [batch_of((150, 200), size=size) for size in sizes]
    teacher = load_random_tiny(LoadOptions(precision=precision, compile=True))
    assert asked == [{"dynamic": False, "fullgraph": True}]
    torch._dynamo.utils.counters.clear()
    for batch in batches:
        exact = depth_of(batch, precision)
        assert (teacher.predict(batch).depth - exact).abs().max() <= 0.02 * (exact.max() - exact.min())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == len(set(sizes))


@pytest.mark.slow
def test_every_thread_may_compile_more_sizes_than_torch_s_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher is loaded in one thread and called in another, and torch has a configuration for each thread."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    # 2 instead of 8, so that the test compiles less.
    monkeypatch.setattr(torch._dynamo.config._config["recompile_limit"], "default", 2)
    teacher = load_random_tiny(LoadOptions(compile=True))
    sizes = [(14, 14), (14, 28), (28, 28)]
    with ThreadPoolExecutor(1) as pool:
        depths = list(pool.map(lambda size: teacher.depth(torch.zeros(1, 3, *size)), sizes))
    assert [depth.shape[1:] for depth in depths] == sizes


def test_the_position_embedding_of_a_size_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = load_random_tiny(LoadOptions())
    calls = []
    interpolate = torch.nn.functional.interpolate

    def counted(*args: torch.Tensor, mode: str, **options: object) -> torch.Tensor:
        calls.append(mode)
        return interpolate(*args, mode=mode, **options)

    monkeypatch.setattr(torch.nn.functional, "interpolate", counted)
    for _ in range(3):
        teacher.depth(torch.zeros(1, 3, *SIZE))
    assert calls.count("bicubic") == 1


def test_a_weights_file_gives_the_same_depth_as_the_network_it_was_written_from(tmp_path: Path) -> None:
    state, batch = random_state(TINY), batch_of(*SHAPES)
    save_file(to_hf(state), tmp_path / "tiny.safetensors")
    torch.save(state, tmp_path / "tiny.pth")
    for name in ("tiny.safetensors", "tiny.pth"):
        loaded = TINY_VARIANT.load(LoadOptions(weights=str(tmp_path / name)))
        # Fixed: this process, so its threads, libraries and instruction set.
        assert torch.equal(loaded.predict(batch).depth, depth_of(batch))


def test_a_metric_variant_predicts_metres_within_its_range(tmp_path: Path) -> None:
    torch.save(random_state(TINY), tmp_path / "tiny.pth")
    variant = Variant("metric", TINY, 20.0, str(tmp_path / "tiny.pth"))
    depth = variant.load(LoadOptions()).predict(batch_of(*SHAPES)).depth
    assert 10 < depth.max() < 20
    assert depth.min() > 0


def test_the_identity_is_the_hash_of_the_file_and_comes_after_its_check(tmp_path: Path) -> None:
    path = tmp_path / "tiny.pth"
    torch.save(random_state(TINY), path)
    assert TINY_VARIANT.identify(LoadOptions(weights=str(path))) == checkpoint.sha256(path)
    torch.save({"pretrained.cls_token": torch.zeros(1, 1, 64)}, path)
    with pytest.raises(UserError, match="missing 126 keys"):
        TINY_VARIANT.identify(LoadOptions(weights=str(path)))


def test_refusals_come_before_weights_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "locate", lambda weights: pytest.fail(f"{weights} was fetched"))
    for options, message in [
        (LoadOptions(weights="org/name", device="cuda:7"), "--device cuda:7: PyTorch .* sees . CUDA devices"),
        (LoadOptions(weights="org/name", device="meta"), "--device meta is not supported"),
        (LoadOptions(weights="org/name", device="gpu"), "--device gpu is not a device"),
        (
            LoadOptions(weights="org/name", precision="int8"),
            "--precision int8 is unknown: give one of fp32, bf16",
        ),
        (LoadOptions(), "never released by its authors: give --weights"),
    ]:
        with pytest.raises(UserError, match=message):
            TINY_VARIANT.load(options)


def test_bf16_is_refused_if_the_gpu_would_emulate_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    with pytest.raises(UserError, match="--precision bf16: Tesla T4 does not support it; give fp16 or fp32"):
        precision_dtype("bf16", torch.device("cuda"))
    assert precision_dtype("fp16", torch.device("cuda")) == torch.float16


def test_random_tiny_refuses_weights_that_it_would_ignore() -> None:
    for call in (load_random_tiny, identify_random_tiny):
        with pytest.raises(UserError, match=r"takes no weights: drop --weights some\.pth"):
            call(LoadOptions(weights="some.pth"))


def test_a_variant_travels_to_workers() -> None:
    assert pickle.loads(pickle.dumps(TINY_VARIANT)) == TINY_VARIANT  # noqa: S301


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("precision", "noise"), [("fp32", 1e-3), ("bf16", 0.1), ("fp16", 0.02)])
def test_a_gpu_agrees_with_the_cpu_within_the_noise_of_the_precision(precision: str, noise: float) -> None:
    network = DepthAnythingV2(TINY)
    network.load_state_dict(random_state(TINY))
    device = torch.device("cuda")
    batch = batch_of(*SHAPES)
    exact = depth_of(batch)
    on_device = PixelBatch(batch.pixels.to(device), batch.shapes, batch.size)
    depth = DepthAnything(network, device, precision).predict(on_device).depth.cpu()
    assert (depth - exact).abs().max() <= noise * (exact.max() - exact.min())
