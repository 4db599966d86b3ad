"""Every command line ends with exit code 0, 1, 2 or 75 and without a traceback. These tests stop where Ray would start."""

import contextlib
import io
import shutil
from collections.abc import Callable
from importlib import import_module
from itertools import chain
from pathlib import Path

import pytest
import ray
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from da2ray.cli import COMMANDS, main
from da2ray.commands.curate import COMMAND as CURATE
from da2ray.commands.options import Command, CommandConfig, load
from da2ray.commands.pseudolabel import COMMAND as PSEUDOLABEL
from da2ray.errors import Exit, UserError
from da2ray.storage import open_store
from tests.labels.samples import label
from tests.photos import write_crops

JOBS = ("pseudolabel", "curate", "benchmark", "train_teacher", "demo")
PARSED: dict[str, Command] = {name: import_module(f"da2ray.commands.{name}").COMMAND for name in (*COMMANDS, *JOBS)}

ODD = [
    "", "-1", "0", "1", "2", "010", "1_0", "1.5", "1e300", "-0", "nan", "inf", "-inf", "9" * 30, "9" * 5000, "0x10", "\u0661",
    "1:2", "2:1", ":", "1:", "0:0", "5%", "100%", "101%", "%", "none", "null", "true", "no", "~", "a,b", ",", "=", "a=b", "a=",
    "flip", "checker", "timeout", "too_small", "exact", "cuda", "luminance", "x" * 300, "é\n\x1b[31m", "[bold]", "%s{}%(prog)s",
    "s3:/", "://", "nothing://here", "file:///", "/dev/null", "/proc/self/mem", "..", "~nobody", "a::b", "--", "-x", "-", "@file",
    "'; DROP TABLE rows; --", "blur > 1", "blur below p95", "blur >", "(" * 50, "\ud800",
]  # fmt: skip
"""Values that an option may misread."""


def flags(config: type[CommandConfig]) -> list[str]:
    """The options of a command, and two that it does not have."""
    names = [field.alias or name for name, field in config.model_fields.items()]
    dashed = ["--" + name.replace("_", "-") for name in names if name != "url"]
    return [*dashed, *(f"--no-{flag[2:]}" for flag in dashed), "--colour", "--help"]


def lines(config: type[CommandConfig]) -> st.SearchStrategy[list[str]]:
    """Command lines of options with odd values, some with several values or none."""
    value = st.one_of(st.sampled_from(ODD), st.text(max_size=8).filter(lambda text: "\0" not in text))
    option = st.tuples(st.sampled_from(flags(config)), st.lists(value, max_size=2)).map(
        lambda pair: [pair[0], *pair[1]]
    )
    return st.lists(st.one_of(option, option, value.map(lambda text: [text])), max_size=4).map(
        lambda parts: [*chain.from_iterable(parts)]
    )


PLAUSIBLE = {
    "status": [["--json"], ["--storage-client", "fsspec"]],
    "snapshots": [["--create"], ["--no-create"]],
    "verify": [["--json"], ["--sample", "5%"], ["--sample", "1e-300"], ["--sample", "1"]],
    "repair": [["--dry-run"], ["--sample", "0.5"]],
    "gc": [["--grace", "0"], ["--grace", "876000"], ["--grace", "1e-300"], ["--dry-run"]],
    "curate": [
        ["--where", "blur below p95"], ["--where", "1"], ["--where", "key"], ["--where", "blur / 0 > 1"], ["--dedupe", "0"],
        ["--preset", "none"], ["--val-share", "1e-300"], ["--snapshot", "1"], ["--snapshot", "9" * 30], ["--view", "v"],
    ],
    "pseudolabel": [
        ["--limit", "1"], ["--limit", str(1 << 62)], ["--shard-bytes", str(1 << 62)], ["--wave-size", str(1 << 62)],
        ["--max-aspect", "1e300"], ["--sample-timeout", "1e-300"], ["--consistency", "flip"], ["--mask-bits", "8"],
        ["--teacher-option", "a=b"], ["--retry-failed"], ["--allow-scheme", "https"], ["--shard-size", "1"],
    ],
}  # fmt: skip
"""Options that a command accepts, some with extreme values."""


def plausible(name: str) -> st.SearchStrategy[list[str]]:
    """Command lines of which most parse."""
    good = st.lists(st.sampled_from(PLAUSIBLE[name]), max_size=3).map(lambda parts: [*chain.from_iterable(parts)])
    return st.one_of(good, good, lines(PARSED[name].config))


def ended(run: Callable[[list[str]], int], argv: list[str]) -> tuple[int, str]:
    """The exit code of a command, and its stderr."""
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        try:
            code = run(argv)
        except SystemExit as after_help:
            code = after_help.code
    return code, err.getvalue()


def read(config: type[CommandConfig], argv: list[str]) -> tuple[CommandConfig | None, str]:
    """The configuration that `load` reads, or its error. Neither after `--help`."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return load(config, argv, prog="x"), ""
    except UserError as error:
        return None, str(error)
    except SystemExit as after_help:
        if after_help.code:  # argparse may end by itself only after `--help`
            raise
        return None, ""


@pytest.mark.parametrize("name", PARSED)
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_command_line_is_read_or_refused_in_two_lines(name: str, data: st.DataObject) -> None:
    config = PARSED[name].config
    made, error = read(config, data.draw(lines(config)))
    assert len(error.splitlines()) <= 2, error
    assert len(error) <= 600
    if made:
        assert config.model_validate(made.model_dump(by_alias=True)) == made
        assert config.model_validate(made.model_dump(mode="json", by_alias=True)) == made


@pytest.mark.parametrize("name", PARSED)
@given(data=st.data())
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_of_options_is_read_or_refused(name: str, data: st.DataObject, tmp_path: Path) -> None:
    config = PARSED[name].config
    scalar = st.one_of(st.sampled_from(ODD), st.none(), st.booleans(), st.integers(), st.floats())
    value = st.recursive(
        scalar, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    )
    named = st.sampled_from([field.alias or name for name, field in config.model_fields.items()])
    dumped = st.dictionaries(named, value, max_size=4).map(
        lambda values: yaml.safe_dump(values).encode("utf-8", "replace")
    )
    text = data.draw(
        st.one_of(
            dumped, dumped, st.binary(max_size=40), st.text(max_size=40).map(lambda t: t.encode("utf-8", "replace"))
        )
    )
    (tmp_path / "options.yaml").write_bytes(text)
    _, error = read(config, ["--config", str(tmp_path / "options.yaml")])
    assert len(error.splitlines()) <= 2, error


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset that tests must not change."""
    folder = tmp_path_factory.mktemp("dataset")
    label(open_store(str(folder)), "parquet")
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of the test, where odd paths may create files. Ray cannot start and no address answers."""

    def no_ray(*_: object, **__: object) -> None:
        raise UserError("Ray is not for this test")

    monkeypatch.setattr(ray, "init", no_ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("DA2RAY_RETRY_SECONDS", "0.1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


WITHOUT_LABELLING = settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.mark.parametrize("name", ["status", "snapshots", "verify", "repair", "gc"])
@given(data=st.data())
@WITHOUT_LABELLING
def test_a_command_on_a_dataset_ends_by_the_table(
    name: str, data: st.DataObject, elsewhere: Path, dataset: Path
) -> None:
    copy = elsewhere / "labels"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(dataset, copy)
    code, stderr = ended(main, [name, str(copy), *data.draw(plausible(name))])
    assert code in (Exit.DONE, Exit.WRONG, Exit.USAGE, Exit.RESUMABLE), stderr
    assert "Traceback" not in stderr


@given(data=st.data())
@WITHOUT_LABELLING
def test_curate_ends_by_the_table(data: st.DataObject, elsewhere: Path, dataset: Path) -> None:
    odd = data.draw(plausible("curate"))
    code, stderr = ended(CURATE.main, ["--dataset", str(dataset), "--dry-run", *odd])
    assert code in (Exit.DONE, Exit.USAGE, Exit.RESUMABLE), stderr
    assert "Traceback" not in stderr


@given(data=st.data())
@WITHOUT_LABELLING
def test_the_main_jobs_cheap_checks_end_by_the_table(data: st.DataObject, elsewhere: Path) -> None:
    if not (elsewhere / "images").exists():
        write_crops(elsewhere / "images", 2)
    needed = ["--images", "images", "--output", "labels", "--teacher", "luminance"]
    code, stderr = ended(PSEUDOLABEL.main, [*needed, *data.draw(plausible("pseudolabel")), "--dry-run"])
    assert code in (Exit.DONE, Exit.USAGE, Exit.RESUMABLE), stderr
    assert "Traceback" not in stderr
    assert not Path("labels").exists()
