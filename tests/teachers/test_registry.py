"""Every teacher of the design exists by name, with the meaning of its depth and the licence of its weights."""

import os
import pickle
import subprocess
import sys
import types
from pathlib import Path

import huggingface_hub
import pytest

from da2ray.errors import UserError
from da2ray.teachers import registry
from da2ray.teachers.base import Kind, LoadOptions
from da2ray.teachers.depth_anything.size import OfficialSize

SIZES = ("small", "base", "large")
METRIC = [f"depth-anything-v2-metric-{scene}-{size}" for scene in ("indoor", "outdoor") for size in SIZES]
TINY = "depth-anything-v2-tiny"
RELATIVE = [f"depth-anything-v2-{size}" for size in (*SIZES, "giant")]


def test_names_are_those_of_the_design() -> None:
    assert registry.names() == [*RELATIVE, *METRIC, TINY, "luminance", "random-tiny"]
    assert registry.DEFAULT in registry.names()
    assert [registry.resolve(name).name for name in registry.names()] == registry.names()


def test_kind_and_unit_follow_the_name() -> None:
    for name in registry.names():
        spec = registry.resolve(name)
        assert (spec.kind, spec.unit) == ((Kind.METRIC, "m") if name in METRIC else (Kind.DISPARITY, ""))
        side = 252 if name == TINY else 518
        assert spec.size_rule == OfficialSize(side)
        assert spec.preprocessing == f"official-{side}-v1"


def test_specs_travel_to_workers() -> None:
    for name in registry.names():
        spec = registry.resolve(name)
        there = pickle.loads(pickle.dumps(spec))  # noqa: S301
        assert (there.name, there.kind, there.licence) == (spec.name, spec.kind, spec.licence)
        assert there.size_rule(480, 640) == spec.size_rule(480, 640)
    there = pickle.loads(pickle.dumps(registry.resolve("random-tiny")))  # noqa: S301
    assert there.identify(LoadOptions()) == registry.resolve("random-tiny").identify(LoadOptions())


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("depth-anything-v2-small", "depth-anything-v2-small: weights Apache-2.0"),
        ("depth-anything-v2-base", "depth-anything-v2-base: weights CC-BY-NC-4.0, not for commercial use"),
        ("depth-anything-v2-large", "depth-anything-v2-large: weights CC-BY-NC-4.0, not for commercial use"),
        (
            "depth-anything-v2-metric-outdoor-base",
            "depth-anything-v2-metric-outdoor-base: weights CC-BY-NC-4.0, not for commercial use",
        ),
        (
            "depth-anything-v2-giant",
            "depth-anything-v2-giant: its authors released no weights; the licence is the one of the weights you give",
        ),
        ("luminance", "luminance: weights Apache-2.0"),
    ],
)
def test_the_licence_line_says_what_the_weights_do_not_allow(name: str, line: str) -> None:
    assert registry.licence_line(registry.resolve(name)) == line


def test_an_unknown_name_gets_close_names_or_else_all() -> None:
    with pytest.raises(UserError, match="did you mean depth-anything-v2-small") as caught:
        registry.resolve("depth-anything-small")
    assert "hf:ORG/NAME" in str(caught.value)
    for name in ("zzz", "hf:", "a b:c", "zzz:1", ":x"):
        with pytest.raises(UserError, match=f"no teacher is named {name}: there are") as caught:
            registry.resolve(name)
        forms = [family.form for family in (*registry.FAMILIES.values(), registry.OWN)]
        assert all(known in str(caught.value) for known in (*registry.names(), *forms))


def test_options_are_refused_by_teachers_that_have_none() -> None:
    with pytest.raises(UserError, match="--teacher luminance has no options: drop --teacher-option steps="):
        registry.resolve("luminance", {"steps": "4"})


@pytest.mark.parametrize("prefix", registry.FAMILIES)
def test_a_prefix_leads_to_its_family_and_options_go_with_it(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    family = types.ModuleType("family")
    family.spec = lambda *arguments: asked.append(arguments) or registry.resolve("luminance")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, registry.FAMILIES[prefix].module, family)
    assert registry.resolve(f"{prefix}:org/name@main", {"a": "1"}) is registry.resolve("luminance")
    assert asked == [("org/name@main", {"a": "1"})]


def test_a_missing_package_is_reported_with_the_extra_that_installs_it() -> None:
    """The check needs a fresh process that has not imported the package."""
    code = """if True:
        import sys
        from da2ray.errors import UserError
        from da2ray.teachers import registry
        sys.modules["transformers"] = None
        try:
            registry.resolve("hf:Intel/dpt-large")
        except UserError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "needs transformers, which is not installed: pip install 'da2ray[transformers]'" in done.stdout


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("depth-anything-v2-small", "depth-anything/Depth-Anything-V2-Small-hf"),
        ("depth-anything-v2-large", "depth-anything/Depth-Anything-V2-Large-hf"),
        ("depth-anything-v2-metric-indoor-small", "depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf"),
        ("depth-anything-v2-metric-outdoor-base", "depth-anything/Depth-Anything-V2-Metric-Outdoor-Base-hf"),
    ],
)
def test_default_weights_are_the_published_ones(name: str, repository: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(asked: str, file: str, revision: str | None) -> str:
        assert (asked, file, revision) == (repository, "model.safetensors", None)
        raise ConnectionError("no network in tests")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for call in (registry.resolve(name).identify, registry.resolve(name).load):
        with pytest.raises(UserError, match=f"weights {repository} .*give --weights PATH"):
            call(LoadOptions())


def test_giant_asks_for_weights_because_none_were_released() -> None:
    giant = registry.resolve("depth-anything-v2-giant")
    for call in (giant.identify, giant.load):
        with pytest.raises(UserError, match="giant was never released by its authors: give --weights"):
            call(LoadOptions())


def test_an_unreachable_hub_is_a_user_error_in_a_fresh_process(tmp_path: Path) -> None:
    """The real client runs, without the modules that this process happens to have imported."""
    code = """if True:
        from da2ray.errors import UserError
        from da2ray.teachers import base, registry
        try:
            registry.resolve("depth-anything-v2-small").load(base.LoadOptions())
        except UserError as error:
            print(error)
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert "weights depth-anything/Depth-Anything-V2-Small-hf are not a local file" in done.stdout
    assert "give --weights PATH" in done.stdout


def test_importing_the_registry_imports_no_family_and_no_ray() -> None:
    heavy = {"transformers", "diffusers", "ray"}
    code = f"import sys, da2ray.teachers.registry; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
