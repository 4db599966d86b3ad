"""The teachers that `--teacher` can name. Importing this module reads no weights, fetches nothing, and imports
neither torch nor a family.
"""

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from da2ray.errors import UserError
from da2ray.teachers import luminance
from da2ray.teachers.base import Kind, LoadOptions, Teacher, TeacherSpec
from da2ray.teachers.depth_anything import random_tiny
from da2ray.teachers.depth_anything.configs import PATCH, VITB, VITG, VITL, VITS, VITT, Config
from da2ray.teachers.depth_anything.published import METRIC
from da2ray.teachers.depth_anything.size import OfficialSize
from da2ray.teachers.depth_anything.variant import Variant

DEFAULT = "depth-anything-v2-small"
"""The official teacher whose weights may be used for any purpose."""

PREPROCESSING = "official-518-v1"
UNRELEASED = "unreleased"
UNKNOWN = "unknown"
NOT_COMMERCIAL = ("-NC", "apple-amlr")
LICENCES = {VITS: "Apache-2.0", VITB: "CC-BY-NC-4.0", VITL: "CC-BY-NC-4.0", VITG: UNRELEASED, VITT: "Apache-2.0"}
"""Licences of the published weights, relative and metric alike (from the model cards of the hub's user `depth-anything`), and
of the embedded weights."""

TINY_SIDE = 252
"""Short side in pixels (18 patches) at which the embedded teacher was trained and runs."""


class Family(NamedTuple):
    """A family of teachers whose names share a prefix before a colon.

    Attributes:
        module: the module with `spec(rest of the name, options) -> TeacherSpec`; imported when a user asks for the family.
        form: the form of the family's names, for messages.
        extra: da2ray's extra that installs what the module imports; "" if the module needs none.
    """

    module: str
    form: str
    extra: str = ""


FAMILIES = {
    "hf": Family("da2ray.teachers.hugging_face", "hf:ORG/NAME[@REVISION] or hf:FOLDER", "transformers"),
    "marigold": Family("da2ray.teachers.marigold", "marigold:ORG/NAME or marigold:FOLDER", "diffusers"),
    "metric3d": Family("da2ray.teachers.metric3d", "metric3d:VARIANT"),
    "unidepth": Family("da2ray.teachers.unidepth", "unidepth:VARIANT"),
}
OWN = Family("da2ray.teachers.custom", "MODULE:CLASS")
"""The family of the user's own classes. It has no prefix, so its `spec` gets the whole name."""


def resolve(name: str, options: Mapping[str, str] | None = None) -> TeacherSpec:
    """The spec of a named teacher. A family may read the small configuration files of a checkpoint, and fetch them.

    Args:
        name: the value of `--teacher`.
        options: the values of `--teacher-option`.

    Raises:
        UserError: there is no such teacher (the message lists the known ones, likely ones first), the teacher does not know
            an option, or a package that it needs is not installed.
    """
    options = options or {}
    if name in _SPECS:
        refuse_options(name, options)
        return _SPECS[name]
    prefix, _, rest = name.partition(":")
    if rest and prefix in FAMILIES:
        return _of_family(FAMILIES[prefix], name, rest, options)
    if rest.isidentifier() and all(part.isidentifier() for part in prefix.split(".")):
        return _of_family(OWN, name, name, options)
    forms = ", ".join(family.form for family in (*FAMILIES.values(), OWN))
    if close := difflib.get_close_matches(name, _SPECS):
        raise UserError(
            f"no teacher is named {name}: did you mean {' or '.join(close)}?\nFamilies and your own class: {forms}"
        )
    raise UserError(f"no teacher is named {name}: there are {', '.join(_SPECS)}\nFamilies and your own class: {forms}")


def refuse_options(name: str, options: Mapping[str, str]) -> None:
    """Refuse the options of a teacher that takes none.

    Raises:
        UserError: `options` is not empty.
    """
    if options:
        raise UserError(f"--teacher {name} has no options: drop --teacher-option {next(iter(options))}=…")


def names() -> list[str]:
    """The teachers' names that need no prefix, in the order in which help texts show them."""
    return list(_SPECS)


def licence_line(spec: TeacherSpec) -> str:
    """One line that tells a user what the licence of a teacher's weights allows."""
    if spec.licence == UNRELEASED:
        return f"{spec.name}: its authors released no weights; the licence is the one of the weights you give"
    if spec.licence == UNKNOWN:
        return f"{spec.name}: da2ray does not know the licence of its weights; read their model card"
    limit = ", not for commercial use" if any(word in spec.licence for word in NOT_COMMERCIAL) else ""
    return f"{spec.name}: weights {spec.licence}{limit}"


def _of_family(family: Family, name: str, rest: str, options: Mapping[str, str]) -> TeacherSpec:
    try:
        module = importlib.import_module(family.module)
    except ModuleNotFoundError as error:
        if (error.name or "da2ray").startswith("da2ray"):
            raise
        install = f"pip install 'da2ray[{family.extra}]'" if family.extra else f"install {error.name}"
        raise UserError(f"--teacher {name} needs {error.name}, which is not installed: {install}") from error
    spec: TeacherSpec = module.spec(rest, options)
    return spec


def _relative(config: Config, weights: str | None) -> TeacherSpec:
    variant = Variant(f"depth-anything-v2-{config.size}", config, None, weights)
    return _spec(variant.name, LICENCES[config], variant.identify, variant.load)


def _embedded() -> TeacherSpec:
    """The embedded teacher, trained on rendered worlds (see `tiny.md` beside its weights), at half the official size."""
    return replace(
        _relative(VITT, "tiny.safetensors"), size_rule=OfficialSize(TINY_SIDE), preprocessing=f"official-{TINY_SIDE}-v1"
    )


def _metric(scene: str, config: Config) -> TeacherSpec:
    weights = f"depth-anything/Depth-Anything-V2-Metric-{scene.title()}-{config.size.title()}-hf"
    name = f"depth-anything-v2-metric-{scene}-{config.size}"
    variant = Variant(name, config, METRIC[scene], weights)
    return _spec(name, LICENCES[config], variant.identify, variant.load, Kind.METRIC)


def _spec(
    name: str,
    licence: str,
    identify: Callable[[LoadOptions], str],
    load: Callable[[LoadOptions], Teacher],
    kind: Kind = Kind.DISPARITY,
) -> TeacherSpec:
    return TeacherSpec(
        name=name,
        kind=kind,
        unit="m" if kind is Kind.METRIC else "",
        licence=licence,
        size_rule=OfficialSize(),
        preprocessing=PREPROCESSING,
        identify=identify,
        load=load,
        concurrent=True,
        size_step=PATCH,
    )


_ALL = [
    *(_relative(config, f"depth-anything/Depth-Anything-V2-{config.size.title()}-hf") for config in (VITS, VITB, VITL)),
    _relative(VITG, None),
    *(_metric(scene, config) for scene in METRIC for config in (VITS, VITB, VITL)),
    _embedded(),
    _spec("luminance", "Apache-2.0", luminance.identify, luminance.load),
    _spec("random-tiny", "Apache-2.0", random_tiny.identify, random_tiny.load),
]
_SPECS = {spec.name: spec for spec in _ALL}
