"""Command lines, made of pydantic models.

The options of a command are the fields of one model, and `Command` joins the model with the function that does the work:

    class GreetConfig(CommandConfig):
        name: str = option(..., "whom to greet", metavar="NAME", group="what and where")

    COMMAND = Command(GreetConfig, greet)

`load` makes a command line of the fields and merges `--config FILE.yaml` below it (the command line wins). It turns each
mistake into a `UserError` that names the option. A value means the same on the command line and in the file.
"""

import argparse
import sys
import textwrap
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema
from rich.console import Console

from da2ray.console import did_you_mean, run_command
from da2ray.errors import Exit, UserError

Model = TypeVar("Model", bound="CommandConfig")

VALUE_CHARS = 80
"""Characters of a wrong value that a message repeats."""
MESSAGE_CHARS = 200
"""Characters of a message about a command line that argparse cannot read."""


class CommandConfig(BaseModel):
    """Base of all configurations: an unknown name is an error, and a value never changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def option(
    default: Any,
    text: str,
    *,
    metavar: str | None = None,
    group: str = "options",
    positional: bool = False,
    **constraints: Any,
) -> Any:
    """Make a field of a configuration that is an option of its command.

    Args:
        default: `...` if the option is required.
        text: what `--help` says about it. The default follows it in brackets, unless it is None or a flag.
        metavar: what stands for the value in `--help`; by default it depends on the type.
        group: the heading of `--help` under which the option stands. Headings come in the order of their first option.
        positional: whether the value stands by itself, without the option's name.
        constraints: further arguments of `pydantic.Field`, such as `ge=1`. With `alias` the option has another name.
    """
    shown: dict[str, Any] = {"metavar": metavar, "group": group, "positional": positional}
    return Field(default, description=text, json_schema_extra=shown, **constraints)


@dataclass(frozen=True, slots=True)
class Command(Generic[Model]):
    """A command: its options, and what it does with them. `run` prints to the console and returns the exit code."""

    config: type[Model]
    run: Callable[[Model, Console], int]

    def main(self, argv: Sequence[str] | None = None, *, prog: str | None = None) -> int:
        """Run the command with these words, by default those of this process, and return the exit code."""
        words = sys.argv[1:] if argv is None else argv
        return run_command(lambda console: self.run(load(self.config, words, prog=prog), console))


@dataclass(frozen=True, slots=True)
class AsText:
    """Marks the type of a field that is read from a text once, here: `Annotated[Range, AsText(Range.parse)]`.

    `parse` raises a ValueError that says what the text must be. `str` of the value gives the text for JSON again.
    """

    parse: Callable[[str], Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def read(value: Any) -> Any:
            return value if isinstance(value, source) else self.parse(str(value))

        return core_schema.no_info_plain_validator_function(
            read, serialization=core_schema.to_string_ser_schema(when_used="json")
        )


def split_list(value: object) -> object:
    """`"a,b"` and `["a,b", "c"]` become a list of words. Anything else stays as it is, for pydantic to judge."""
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return value
    return [part for word in words for part in word.split(",") if part]


def parse_settings(value: object) -> object:
    """`["KEY=VALUE", …]`, or a mapping as YAML has them, becomes a mapping of texts. Anything else stays as it is.

    Raises:
        ValueError: a word is not KEY=VALUE, or a key is given twice.
    """
    if isinstance(value, Mapping):
        return {str(key): str(setting) for key, setting in value.items()}
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        return value
    settings: dict[str, str] = {}
    for word in value:
        key, equals, setting = word.partition("=")
        if not (key and equals and setting):
            raise ValueError("must be KEY=VALUE")
        if key in settings:
            raise ValueError(f"{key} is given twice")
        settings[key] = setting
    return settings


def load(model: type[Model], argv: Sequence[str], *, prog: str | None = None) -> Model:
    """Read a configuration from a command line, with `--config FILE.yaml` below it.

    Raises:
        UserError: an option is unknown, missing or out of range, or the file cannot be read.
        SystemExit: after `--help` (code 0).
    """
    given = vars(_parser(model, prog).parse(argv))
    path = given.pop("config", None)
    values = (_read_yaml(Path(path)) if path else {}) | given
    for name, value in values.items():
        _check_text(name, value)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(_explain(model, problem) for problem in error.errors()[:2])) from None


def _check_text(name: str, value: object) -> None:
    """Check that texts are UTF-8, because stored configurations, plans and labels can hold nothing else.

    Raises:
        UserError: a text is not.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(f"--{name.replace('_', '-')} is not UTF-8: {_short(value)!a}") from None
    elif isinstance(value, Mapping):
        for each in (*value, *value.values()):
            _check_text(name, each)
    elif isinstance(value, list):
        for each in value:
            _check_text(name, each)


class _Parser(argparse.ArgumentParser):
    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        given, unknown = self.parse_known_intermixed_args(argv)
        if unknown:
            option = next((word.partition("=")[0] for word in unknown if word.startswith("-")), "")
            like = did_you_mean(option.replace("_", "-"), self._option_string_actions)
            self.error(f"{_short('unrecognized arguments: ' + ' '.join(unknown))}{like}")
        return given

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{_short(' '.join(message.split()), 2 * MESSAGE_CHARS)}\nsee {self.prog} --help")


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _fill_text(self, text: str, width: int, indent: str) -> str:  # noqa: ARG002 - argparse gives it
        """The description as it is wrapped by default, and the exit codes one below the other."""
        lines = text.splitlines() if text.startswith("exit codes:") else [" ".join(text.split())]
        return "\n".join(
            textwrap.fill(line, width, subsequent_indent="      " if line.startswith("  ") else "") for line in lines
        )

    def _split_lines(self, text: str, width: int) -> list[str]:
        """Lines that never break a word, such as a default, at its hyphens."""
        return textwrap.wrap(text, width, break_on_hyphens=False)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """A flag without its `--no-` form, a list without the brackets of `[NAME ...]`."""
        if isinstance(action, argparse.BooleanOptionalAction):
            return action.option_strings[0]
        if action.nargs == "*":
            return f"{action.option_strings[0]} {action.metavar} ..."
        return super()._format_action_invocation(action)


def _parser(model: type[CommandConfig], prog: str | None) -> _Parser:
    parser = _Parser(
        prog=prog,
        usage=_usage(model),
        description=model.__doc__,
        formatter_class=_Formatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
        epilog="\n".join(["exit codes:", *(f"  {code.value:<4}{code.meaning}" for code in Exit)]),
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, field in model.model_fields.items():
        title = _shown(field, "group")
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add(groups[title], name, field)
    other = groups.get("options") or parser.add_argument_group("other")
    other.add_argument(
        "--config",
        metavar="FILE.yaml",
        help="options from a YAML file, by the same names. The command line wins; --no-NAME turns a flag off",
    )
    other.add_argument("-h", "--help", action="help", help="show this text and exit")
    return parser


def _add(group: argparse._ArgumentGroup, name: str, field: FieldInfo) -> None:
    kind = _plain_type(field.annotation)
    text = f"{field.description}{_default(field)}".replace("%", "%%")
    metavar = _metavar(field)
    if _shown(field, "positional"):
        # Optional for argparse, as the file may have it; pydantic misses it.
        group.add_argument(_dest(name, field), nargs="?", metavar=metavar, help=text)
    elif kind is bool:
        group.add_argument(_flag(name, field), action=argparse.BooleanOptionalAction, help=text)
    elif get_origin(kind) in (list, dict):
        # One list, in one go or one by one: the last of several would win, and the others be lost without a word.
        group.add_argument(_flag(name, field), nargs="*", action="extend", metavar=metavar, help=text)
    else:
        group.add_argument(_flag(name, field), metavar=metavar, help=text)


def _usage(model: type[CommandConfig]) -> str:
    required = [
        _metavar(field) if _shown(field, "positional") else f"{_flag(name, field)} {_metavar(field)}"
        for name, field in model.model_fields.items()
        if field.is_required()
    ]
    return " ".join(["%(prog)s", *required, "[options]"])


def _dest(name: str, field: FieldInfo) -> str:
    return field.alias or name


def _flag(name: str, field: FieldInfo) -> str:
    return "--" + _dest(name, field).replace("_", "-")


def _shown(field: FieldInfo, what: str) -> Any:
    assert isinstance(field.json_schema_extra, dict)  # noqa: S101 - `option` made the field
    return field.json_schema_extra[what]


def _metavar(field: FieldInfo) -> str:
    """What `--help` shows for the value of an option."""
    if given := _shown(field, "metavar"):
        return given
    kind = _plain_type(field.annotation)
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return "{" + ",".join(member.value for member in kind) + "}"
    if get_origin(kind) is dict:
        return "KEY=VALUE"
    return {int: "N", float: "X"}.get(kind, "TEXT")


def _default(field: FieldInfo) -> str:
    """The default as `--help` shows it, in brackets; empty if there is not one to show."""
    default = field.default
    if field.is_required() or default is None or isinstance(default, (bool, dict)) or default == []:
        return ""
    if isinstance(default, list):
        return f" [{','.join(default)}]"
    return f" [{default:g}]" if isinstance(default, float) and "." in str(default) else f" [{default}]"


def _plain_type(annotation: Any) -> Any:
    """The type inside `X | None` and `Annotated[X, …]`."""
    if get_origin(annotation) is Annotated:
        return _plain_type(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return _plain_type(next(part for part in get_args(annotation) if part is not type(None)))
    return annotation


class _TextLoader(yaml.SafeLoader):
    """YAML whose scalars are texts, except null, so that an option means what it means on the command line.

    YAML 1.1 reads `actors: 1:2` as 62, `view: no` as False and `limit: 010` as 8. PyYAML keeps the last value of a key that
    stands twice in one mapping; this loader refuses it.
    """

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        # Here, because a merge (`<<`) may later put a key beside one of the same name.
        node = super().compose_mapping_node(anchor)
        keys: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in keys:
                    raise _TwiceError(
                        f"{_short(key.value, VALUE_CHARS)} is given twice (line {key.start_mark.line + 1})"
                    )
                keys.add(key.value)
        return node


class _TwiceError(ValueError):
    """A mapping has one key twice."""


_TAG = "tag:yaml.org,2002:"
_TextLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in (f"{_TAG}null", f"{_TAG}merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# With a tag such as `!!int` a scalar would be something else again.
_TextLoader.yaml_constructors = {
    tag: build
    for tag, build in yaml.SafeLoader.yaml_constructors.items()
    if tag in (None, *(f"{_TAG}{kind}" for kind in ("null", "str", "seq", "map")))
}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(), _TextLoader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from None
    except _TwiceError as error:
        raise UserError(f"--config {path}: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"--config {path} is not YAML: {' '.join(str(error).split())[:160]}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"--config {path}: expected `option: value` lines, found a {type(values).__name__}")
    options: dict[str, Any] = {}
    for name, value in values.items():
        option = str(name).replace("-", "_")
        if option in options:
            raise UserError(f"--config {path}: {_short(str(name), VALUE_CHARS)} is given twice, with - and with _")
        options[option] = value
    return options


_WORDS = {
    "Value error, ": "",
    "Input should be": "must be",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "above",
    "less than": "below",
}
"""pydantic's words and ours."""


def _explain(model: type[CommandConfig], problem: Any) -> str:
    name = str(problem["loc"][0])
    fields = {_dest(each, field): field for each, field in model.model_fields.items()}
    positional = name in fields and _shown(fields[name], "positional")
    shown = _metavar(fields[name]) if positional else "--" + name.replace("_", "-")
    if problem["type"] == "missing":
        return f"{shown} is required"
    if problem["type"] == "extra_forbidden":
        like = did_you_mean(shown, (_flag(each, field) for each, field in model.model_fields.items()))
        return f"{_short(shown, VALUE_CHARS)} is not an option of this command{like}"
    text = problem["msg"]
    for theirs, ours in _WORDS.items():
        text = text.replace(theirs, ours)
    return f"{shown}: {text.partition(', unable to')[0]}; got {_short(repr(problem['input']), VALUE_CHARS)}"


def _short(text: str, limit: int = MESSAGE_CHARS) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"
