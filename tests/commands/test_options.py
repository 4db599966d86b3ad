"""One model reads options from command line and YAML, and every error names its option."""

import json
from importlib import import_module
from pathlib import Path

import pytest
from pydantic import ValidationError

from da2ray import commands
from da2ray.commands.options import CommandConfig, load
from da2ray.commands.pseudolabel import PseudolabelConfig
from da2ray.errors import UserError
from da2ray.labels.shards.base import ShardFormat
from da2ray.pipeline.control.actors import ActorRange
from da2ray.pipeline.control.budget import FailureBudget

COMMANDS = [
    import_module(f"da2ray.commands.{path.stem}").COMMAND
    for path in sorted(Path(commands.__file__).parent.glob("*.py"))
    if "\nCOMMAND = " in path.read_text()
]
NEEDED = ["--images", "i", "--output", "o"]


def test_the_command_line_beats_the_yaml_file_which_beats_defaults(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(
        "images: from-file\noutput: from-file\nshard-size: 32\nbatch_size: 4\nformat: zarr\ndry-run: true\n"
    )
    config = load(PseudolabelConfig, ["--output", "from-line", "--config", str(file), "--batch-size", "8"])
    assert (config.images, config.output) == ("from-file", "from-line")
    assert (config.shard_size, config.batch_size) == (32, 8)
    assert config.format is ShardFormat.ZARR
    assert config.dry_run is True
    assert config.wave_size == PseudolabelConfig.model_fields["wave_size"].default
    assert load(PseudolabelConfig, ["--config", str(file), "--no-dry-run"]).dry_run is False


def test_an_empty_yaml_file_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert load(PseudolabelConfig, [*NEEDED, "--config", str(tmp_path / "empty.yaml")]) == load(
        PseudolabelConfig, NEEDED
    )


@pytest.mark.parametrize("model", [command.config for command in COMMANDS], ids=lambda model: model.__name__)
def test_every_field_has_a_description_and_stands_in_the_help(
    model: type[CommandConfig], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as ended:
        load(model, ["--help"])
    assert ended.value.code == 0
    message = capsys.readouterr().out
    for name, field in model.model_fields.items():
        assert field.description, name
        shown = "--" + (field.alias or name).replace("_", "-")
        if field.json_schema_extra["positional"]:
            shown = field.json_schema_extra["metavar"]
        assert f"  {shown}" in message
        assert field.description in message
    assert "%%" not in message


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--images is required"),
        (["--images", "i"], "--output is required"),
        ([*NEEDED, "--shard-size", "0"], "--shard-size: must be at least 1; got '0'"),
        ([*NEEDED, "--limit", "x"], "--limit: must be a valid integer; got 'x'"),
        ([*NEEDED, "--limit", "9" * 5000], f"got '{'9' * 79}…"),
        ([*NEEDED, "--sample-timeout", "inf"], "--sample-timeout: must be a finite number; got 'inf'"),
        (
            [*NEEDED, "--actors", "2:1"],
            "--actors: must be MIN:MAX with 1 <= MIN <= MAX, or one number above 0; got '2:1'",
        ),
        ([*NEEDED, "--actors", "0"], "--actors"),
        ([*NEEDED, "--max-failed", "5 %"], "--max-failed: must be a count such as 100, or a share such as 2%"),
        ([*NEEDED, "--format", "csv"], "--format: must be 'parquet' or 'zarr'; got 'csv'"),
        # An abbreviation is not accepted: a later option would change its meaning.
        ([*NEEDED, "--teach", "luminance"], "unrecognized arguments: --teach luminance; did you mean --teacher?"),
        ([*NEEDED, "--no-dry-rnu"], "--no-dry-rnu; did you mean --no-dry-run?"),
        ([*NEEDED, "--shard_siez=8"], "--shard_siez=8; did you mean --shard-size?"),
        ([*NEEDED, "--" + "x" * 300], "…\nsee pseudolabel.py --help"),
        ([*NEEDED, "stray"], "stray"),
    ],
)
def test_a_mistake_on_the_command_line_names_its_option(argv: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        load(PseudolabelConfig, argv, prog="pseudolabel.py")
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour: red\n", "--colour is not an option of this command"),
        ("shardsize: 8\n", "--shardsize is not an option of this command; did you mean --shard-size?"),
        ("limit: 8\nlimit: 9\n", "limit is given twice (line 2)"),
        ("limit: 8\nimages: i\nlimit: 8\n", "limit is given twice (line 3)"),
        ("shard-size: 8\nshard_size: 8\n", "shard_size is given twice, with - and with _"),
        ("teacher-option: {steps: 4, steps: 5}\n", "steps is given twice (line 1)"),
        ("? limit\n: 8\n'limit': 9\n", "limit is given twice (line 3)"),
        ("shard-size: many\n", "--shard-size"),
        ("shard-size: 0\n", "--shard-size"),
        ("- images\n", "expected `option: value` lines, found a list"),
        ("images: [unclosed\n", "is not YAML"),
        ("images: \xff\n", "is not YAML"),
    ],
)
def test_a_mistake_in_the_yaml_file_names_the_option_or_the_file(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as error:
        load(PseudolabelConfig, [*NEEDED, "--config", str(file)])
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) <= 2


def test_a_merged_mapping_in_yaml_may_repeat_a_key(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("<<: &usual {limit: 8, shard-size: 4}\nlimit: 9\n")
    config = load(PseudolabelConfig, [*NEEDED, "--config", str(tmp_path / "job.yaml")])
    assert (config.limit, config.shard_size) == (9, 4)


def test_a_config_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--config .*nowhere\.yaml: No such file"):
        load(PseudolabelConfig, ["--config", str(tmp_path / "nowhere.yaml")])


def test_lists_are_words_or_comma_separated_and_failure_classes_are_known() -> None:
    tried = load(PseudolabelConfig, [*NEEDED, "--retry-failed", "timeout", "corrupt,crashed"]).retry_failed
    assert tried == ["corrupt", "crashed", "timeout"]
    assert load(PseudolabelConfig, [*NEEDED, "--retry-failed"]).retry_failed == []
    assert load(PseudolabelConfig, NEEDED).retry_failed is None
    with pytest.raises(UserError, match="--retry-failed: too_small is not a failure class: choose from not_found"):
        load(PseudolabelConfig, [*NEEDED, "--retry-failed", "too_small"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], []),
        (["none"], []),
        (["scale,flip"], ["flip", "scale"]),
        (["checker", "flip", "flip"], ["flip", "checker"]),
    ],
)
def test_second_opinions_have_one_order_whatever_the_order_of_the_words(
    words: list[str], expected: list[str], tmp_path: Path
) -> None:
    assert load(PseudolabelConfig, [*NEEDED, "--consistency", *words]).consistency == expected
    (tmp_path / "job.yaml").write_text(f"consistency: [{', '.join(words)}]\n")
    assert load(PseudolabelConfig, [*NEEDED, "--config", str(tmp_path / "job.yaml")]).consistency == expected


def test_teacher_options_are_pairs_on_the_command_line_and_a_mapping_or_pairs_in_yaml(tmp_path: Path) -> None:
    given = [*NEEDED, "--teacher-option", "steps=4", "repo=a=b,c"]
    assert load(PseudolabelConfig, given).teacher_option == {"steps": "4", "repo": "a=b,c"}
    assert load(PseudolabelConfig, NEEDED).teacher_option == {}
    for text in ("teacher-option: {steps: 4}\n", "teacher-option: [steps=4]\n"):
        (tmp_path / "job.yaml").write_text(text)
        config = load(PseudolabelConfig, [*NEEDED, "--config", str(tmp_path / "job.yaml")])
        assert config.teacher_option == {"steps": "4"}
    one_by_one = [*NEEDED, "--teacher-option", "steps=4", "--teacher-option", "repo=a=b,c"]
    assert load(PseudolabelConfig, one_by_one).teacher_option == {"steps": "4", "repo": "a=b,c"}
    for word in ("steps", "=4", "steps="):
        with pytest.raises(UserError, match=rf"--teacher-option: must be KEY=VALUE; got \['{word}'\]"):
            load(PseudolabelConfig, [*NEEDED, "--teacher-option", word])
    with pytest.raises(UserError, match="--teacher-option: steps is given twice"):
        load(PseudolabelConfig, [*NEEDED, "--teacher-option", "steps=4", "steps=5"])


@pytest.mark.parametrize(
    ("option", "text", "expected"),
    [
        ("actors", "1:2", ActorRange(1, 2)),  # YAML 1.1 reads 62
        ("actors", "2", ActorRange(2, 2)),
        ("max-failed", "100", FailureBudget(count=100)),
        ("max-failed", "2%", FailureBudget(share=0.02)),
        ("max-failed", "0.07%", FailureBudget(share=0.07 / 100)),
        ("limit", "010", 10),  # YAML 1.1 reads 8
        ("shard-bytes", "64_000_000", 64_000_000),
        ("max-aspect", "1e1", 10.0),  # YAML 1.1 reads a text
        ("weights", "yes", "yes"),  # YAML 1.1 reads True
        ("output", "2026-01-01", "2026-01-01"),  # YAML 1.1 reads a date
        ("allow-scheme", "https:10.0.0.5:8080", ["https:10.0.0.5:8080"]),
    ],
)
def test_a_yaml_scalar_means_what_the_command_line_means(
    tmp_path: Path, option: str, text: str, expected: object
) -> None:
    (tmp_path / "job.yaml").write_text(f"{option}: {text}\n")
    needed = NEEDED if option != "output" else ["--images", "i"]
    by_file = load(PseudolabelConfig, [*needed, "--config", str(tmp_path / "job.yaml")])
    assert getattr(by_file, option.replace("-", "_")) == expected
    assert by_file == load(PseudolabelConfig, [*needed, f"--{option}", text])


@pytest.mark.parametrize("text", ["null", "~", ""])
def test_null_in_yaml_is_not_a_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "job.yaml").write_text(f"weights: {text}\n")
    assert load(PseudolabelConfig, [*NEEDED, "--config", str(tmp_path / "job.yaml")]).weights is None


def test_a_configuration_as_json_says_what_was_asked_and_reads_back() -> None:
    asked = ["--actors", "2:8", "--max-failed", "0.07%", "--retry-failed", "timeout", "--teacher-option", "steps=4"]
    config = load(PseudolabelConfig, [*NEEDED, *asked])
    stored = json.loads(json.dumps(config.model_dump(mode="json")))
    assert (stored["actors"], stored["max_failed"], stored["retry_failed"]) == ("2:8", "0.07%", ["timeout"])
    assert PseudolabelConfig.model_validate(stored) == config


def test_a_configuration_never_changes_after_validation() -> None:
    config = load(PseudolabelConfig, NEEDED)
    with pytest.raises(ValidationError):
        config.images = "other"
