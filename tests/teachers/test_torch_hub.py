"""torch.hub repositories: consent to run code, where it comes from, the identity of a teacher, and how weights are loaded."""

import dataclasses
import io
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from da2ray.errors import UserError
from da2ray.teachers import metric3d, torch_hub, unidepth
from da2ray.teachers.base import LoadOptions
from da2ray.teachers.torch_hub import HubModel, find_repo, parse_repo

HUBCONF = """
dependencies = ["torch"]
import sys
import warnings
from pathlib import Path
from torch import nn

(Path(__file__).parent / "ran").touch()
print("noise")
print("noise", file=sys.stderr)
warnings.warn("noise")

def small(pretrain=False):
    return nn.Linear(3, 2)

def packaged():
    from tower import network
    return network.Tower()

def broken():
    raise ValueError("no such configuration")

def without_package():
    try:
        import a_package_that_is_not_there
    except ImportError:
        raise RuntimeError("failed to find function")

def nothing():
    return None
"""
TOWER = "from torch import nn\nclass Tower(nn.Module):\n    pass\n"
TRUSTED = LoadOptions(trust_remote_code=True)


def write_repo(folder: Path) -> Path:
    (folder / "tower").mkdir(parents=True)
    (folder / "hubconf.py").write_text(HUBCONF)
    (folder / "tower" / "network.py").write_text(TOWER)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return write_repo(tmp_path / "repo")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pth"
    torch.save({"model_state_dict": torch.nn.Linear(3, 2).state_dict()}, path)
    return path


def model_of(repo: Path | str, entry: str = "small", weights: Path | str = "org/name:file.pth") -> HubModel:
    return HubModel("metric3d:vit_small", str(repo), entry, (), str(weights))


def test_a_repositorys_code_runs_only_if_the_user_trusts_it(repo: Path, weights: Path) -> None:
    model = model_of(repo, weights=weights)
    spec = metric3d.spec("vit_small", {"repo": str(repo)})
    for call in (model.identify, model.network, spec.identify, spec.load):
        with pytest.raises(
            UserError, match=rf"runs Python code .*(small) in hubconf.py of {repo} .*--trust-remote-code"
        ):
            call(LoadOptions())
    assert not (repo / "ran").exists()
    model.network(TRUSTED)
    assert (repo / "ran").exists()


def test_the_request_for_consent_names_the_published_code_with_its_commit() -> None:
    """da2ray fetches nothing before consent."""
    for spec, name in (
        (metric3d.spec("vit_large", {}), "YvanYin/Metric3D"),
        (unidepth.spec("v2-vitb14", {}), "UniDepth"),
    ):
        with pytest.raises(UserError, match=rf"https://github.com/\S*{name} at [0-9a-f]{{40}} .*--trust-remote-code"):
            spec.identify(LoadOptions())


def test_a_repository_prints_nothing_on_the_console(
    repo: Path, weights: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    model_of(repo, weights=weights).network(TRUSTED)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_identity_changes_with_weights_and_sources_and_nothing_else(repo: Path, weights: Path, tmp_path: Path) -> None:
    def identity(folder: Path = repo) -> str:
        return model_of(folder, weights=weights).identify(TRUSTED)

    first = identity()
    assert len(first) == 64
    assert not (repo / "ran").exists(), "the code ran"
    (repo / "README.md").write_text("news")
    (repo / ".git").mkdir()
    (repo / ".git" / "hook.py").write_text("")
    assert identity() == first
    assert identity(write_repo(tmp_path / "copy")) == first
    seen = {first}
    for name, text in (
        ("tower/network.py", TOWER + "\n# other"),
        ("config.json", '{"depth": 3}'),
        ("tower/new.py", ""),
    ):
        (repo / name).write_text(text)
        seen.add(identity())
    torch.save(torch.nn.Linear(3, 2, bias=False).state_dict(), weights)
    seen.add(identity())
    assert len(seen) == 5


@pytest.mark.parametrize("wrapper", ["model_state_dict", "state_dict", "model", None])
def test_weights_load_from_files_in_their_published_forms(repo: Path, tmp_path: Path, wrapper: str | None) -> None:
    state = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([7.0, 8.0])}
    stored = {f"module.{key}": tensor for key, tensor in state.items()} | {"loss.scale": torch.ones(1)}
    path = tmp_path / "weights.pth"
    torch.save({wrapper: stored, "epoch": 3} if wrapper else stored, path)
    network = model_of(repo).network(dataclasses.replace(TRUSTED, weights=str(path)))
    assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_safetensors_are_loaded(repo: Path, tmp_path: Path) -> None:
    state = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([7.0, 8.0])}
    save_file(state, tmp_path / "weights.safetensors")
    network = model_of(repo, weights=tmp_path / "weights.safetensors").network(TRUSTED)
    assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())


def test_weights_that_do_not_fit_are_refused(repo: Path, weights: Path) -> None:
    """The published loading is not strict: missing parameters would stay random."""
    for content, message in [
        ({"weight": torch.zeros(2, 3)}, r"1 of its 2 parameters are missing and 0 have another shape \(no bias\)"),
        ({"weight": torch.zeros(4, 3), "bias": torch.zeros(2)}, r"weight \(4, 3\) instead of \(2, 3\)"),
        ({"weight": Path("x")}, "cannot be read .*weights_only|cannot be read .*Weights only"),
        ([torch.zeros(2)], "hold a list: expected a state dict"),
    ]:
        torch.save(content, weights)
        with pytest.raises(UserError, match=message):
            model_of(repo, weights=weights).network(TRUSTED)


def test_errors_of_a_repository_say_what_to_do(repo: Path, weights: Path) -> None:
    for entry, message in [
        ("broken", r"broken in hubconf.py of .* failed: ValueError: no such configuration\n.*--teacher-option repo="),
        ("absent", r"Cannot find callable absent in hubconf\n"),
        ("without_package", r"No module named 'a_package_that_is_not_there'\nInstall"),
        ("nothing", "nothing of .* returned a NoneType instead of a torch Module"),
    ]:
        with pytest.raises(UserError, match=message):
            model_of(repo, entry, weights).network(TRUSTED)
    with pytest.raises(UserError, match="drop --compile"):
        model_of(repo, "small", weights).network(dataclasses.replace(TRUSTED, compile=True))


def test_each_kind_of_missing_repository_has_its_own_message(tmp_path: Path) -> None:
    for repo, message in [
        (str(tmp_path), "contains no hubconf.py: give the folder of a torch.hub repository"),
        (str(tmp_path / "missing"), "does not exist: give a folder, or ORG/NAME:COMMIT"),
        ("org/name", "on GitHub its code may change: give repo=org/name:COMMIT"),
        ("org/name:main", "git ls-remote https://github.com/org/name"),
    ]:
        with pytest.raises(UserError, match=message):
            find_repo(repo)
    with pytest.raises(UserError, match="has no option ref: it takes repo"):
        parse_repo({"ref": "main"}, "unidepth:v2-vits14", "org/name")


def test_a_commit_on_github_is_fetched_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789" * 4
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as written:
        written.writestr(f"name-{commit}/hubconf.py", HUBCONF)
        written.writestr(f"name-{commit}/tower/network.py", TOWER)
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name.zip").write_bytes(archive.getvalue())
    monkeypatch.setattr(torch_hub, "ARCHIVE", f"file://{tmp_path}/{{name}}.zip")
    monkeypatch.setenv("DA2RAY_CACHE", str(tmp_path / "cache"))
    folder = find_repo(f"org/name:{commit}")
    assert folder == (tmp_path / "cache" / "hub" / f"org_name_{commit}").resolve()
    assert (folder / "tower" / "network.py").read_text() == TOWER
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "a temporary folder was left"
    (tmp_path / "org" / "name.zip").unlink()
    assert find_repo(f"org/name:{commit}") == folder
    with pytest.raises(UserError, match=r"org/name.zip cannot be fetched .*--teacher-option repo=FOLDER"):
        find_repo(f"org/name:{commit[::-1]}")


def test_two_copies_of_a_repository_do_not_mix_in_a_process(tmp_path: Path, weights: Path) -> None:
    """Both name their package `tower`, and Python imports a name only once."""
    first, second = (write_repo(tmp_path / name) for name in ("first", "second"))
    try:
        model_of(first, "packaged", weights).network(TRUSTED)
        model_of(first, "packaged", weights).network(TRUSTED)
        with pytest.raises(UserError, match=r"has already imported tower.network from .*first/tower/network.py"):
            model_of(second, "packaged", weights).network(TRUSTED)
    finally:
        for name in ("tower", "tower.network"):
            sys.modules.pop(name, None)
