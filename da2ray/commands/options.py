"""Configuration models: one source for command lines, YAML files and docs.

A job's options are the fields of one pydantic model. `load` makes a command line of them, merges a `--config FILE.yaml`
below it (the command line wins) and turns every mistake into a `UserError` that names the option.
"""

import argparse
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

from da2ray.errors import UserError

Model = TypeVar("Model", bound="JobConfig")


class JobConfig(BaseModel):
    """Base of the jobs' configurations: unknown names are errors, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def split_list(value: object) -> object:
    """`"a,b"` and `["a,b", "c"]` -> a list of words; anything else as it is, for pydantic to judge."""
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return value
    return [part for word in words for part in word.split(",") if part]


def parse_settings(value: object) -> object:
    """`["KEY=VALUE", …]`, or a mapping as YAML has them -> the mapping, values as text; anything else as it is.

    Raises:
        ValueError: a word is no KEY=VALUE, or a key is there twice.
    """
    if isinstance(value, Mapping):
        return {str(key): str(setting) for key, setting in value.items()}
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        return value
    settings: dict[str, str] = {}
    for word in value:
        key, equals, setting = word.partition("=")
        if not (key and equals and setting):
            raise ValueError(f"expected KEY=VALUE, not {word!r}")
        if key in settings:
            raise ValueError(f"{key} is there twice")
        settings[key] = setting
    return settings


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


def load(model: type[Model], argv: Sequence[str], *, prog: str | None = None) -> Model:
    """Parse a command line, with `--config FILE.yaml` below it.

    Raises:
        UserError: an option is unknown, missing or out of range, or the file cannot be read.
        SystemExit: after `--help` (code 0).
    """
    parser = _parser(model, prog)
    given = vars(parser.parse_args(argv))
    path = given.pop("config", None)
    values = (_read_yaml(Path(path)) if path else {}) | given
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(_explain(problem) for problem in error.errors()[:2])) from None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message}\nsee {self.prog} --help")


def _parser(model: type[JobConfig], prog: str | None) -> argparse.ArgumentParser:
    parser = _Parser(prog=prog, description=model.__doc__, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE.yaml", help="options from a YAML file; the command line wins")
    for name, field in model.model_fields.items():
        option = "--" + name.replace("_", "-")
        kind = _plain_type(field.annotation)
        default = (
            ""
            if field.is_required() or field.default in (None, {}) or kind is bool
            else f" [{field.default}]".replace("%", "%%")
        )
        text = f"{field.description}{default}"
        if kind is bool:
            parser.add_argument(option, action=argparse.BooleanOptionalAction, help=text)
        elif get_origin(kind) is Literal:
            parser.add_argument(option, choices=get_args(kind), help=text)
        elif get_origin(kind) is list:
            # One list, in one go or one by one: the last of several would win, and the others be lost without a word.
            metavar = "SQL" if name == "where" else "NAME"
            parser.add_argument(option, nargs="*", action="extend", metavar=metavar, help=text)
        elif get_origin(kind) is dict:
            parser.add_argument(option, nargs="+", metavar="KEY=VALUE", help=text)
        elif isinstance(kind, type) and issubclass(kind, StrEnum):
            parser.add_argument(option, choices=[member.value for member in kind], help=text)
        else:
            parser.add_argument(option, metavar={int: "N", float: "X"}.get(kind, "TEXT"), help=text)
    return parser


def _plain_type(annotation: Any) -> Any:
    """The type inside `X | None` and `Annotated[X, …]`."""
    if get_origin(annotation) is Annotated:
        return _plain_type(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return _plain_type(next(part for part in get_args(annotation) if part is not type(None)))
    return annotation


class _TextLoader(yaml.SafeLoader):
    """YAML whose scalars are texts, except null, so that an option means what it means on the command line.

    YAML 1.1 reads `actors: 1:2` as 62, `view: no` as False and `limit: 010` as 8.
    """


_TextLoader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag in ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(), _TextLoader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is not YAML: {' '.join(str(error).split())[:160]}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"--config {path}: expected `option: value` lines, found a {type(values).__name__}")
    return {str(name).replace("-", "_"): value for name, value in values.items()}


def _explain(problem: Any) -> str:
    option = "--" + ".".join(str(part) for part in problem["loc"]).replace("_", "-")
    if problem["type"] == "missing":
        return f"{option} is required"
    if problem["type"] == "extra_forbidden":
        return f"{option} is not an option of this job"
    return f"{option}: {problem['msg'].removeprefix('Value error, ')} (got {problem['input']!r})"
