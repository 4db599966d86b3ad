"""Teachers by name: what `--teacher` may say. Importing this reads no weights and fetches nothing."""

import difflib
from collections.abc import Callable

from da2ray.errors import UserError
from da2ray.teachers import luminance
from da2ray.teachers.base import Kind, LoadOptions, Teacher, TeacherSpec
from da2ray.teachers.depth_anything import teacher as depth_anything
from da2ray.teachers.depth_anything.dpt import VITB, VITG, VITL, VITS, Config
from da2ray.teachers.depth_anything.size import OfficialSize

DEFAULT = "depth-anything-v2-small"
"""The one of the trained teachers whose weights may be used for anything."""

PREPROCESSING = "official-518-v1"
UNRELEASED = "unreleased"
LICENCES = {VITS: "Apache-2.0", VITB: "CC-BY-NC-4.0", VITL: "CC-BY-NC-4.0", VITG: UNRELEASED}
"""Of the published weights, relative and metric alike (the model cards under huggingface.co/depth-anything)."""

METRIC = {"indoor": 20.0, "outdoor": 80.0}
"""Metres of the metric heads, trained on Hypersim and on Virtual KITTI."""


def resolve(name: str) -> TeacherSpec:
    """The teacher of a name.

    Raises:
        UserError: there is none; the message lists those there are, likely ones first.
    """
    if name in _SPECS:
        return _SPECS[name]
    close = difflib.get_close_matches(name, _SPECS)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise UserError(f"no teacher is named {name}: {hint}There are {', '.join(_SPECS)}")


def names() -> list[str]:
    """All names, in the order in which help texts show them."""
    return list(_SPECS)


def licence_line(spec: TeacherSpec) -> str:
    """One line that tells a user who picks a teacher what its weights allow."""
    if spec.licence == UNRELEASED:
        return f"{spec.name}: no weights were released; the licence is that of the ones you give"
    limit = ", not for commercial use" if "-NC" in spec.licence else ""
    return f"{spec.name}: weights {spec.licence}{limit}"


def _relative(config: Config) -> TeacherSpec:
    weights = None if config is VITG else f"depth-anything/Depth-Anything-V2-{config.size.title()}-hf"
    variant = depth_anything.Variant(f"depth-anything-v2-{config.size}", config, None, weights)
    return _spec(variant.name, LICENCES[config], variant.identify, variant.load)


def _metric(scene: str, config: Config) -> TeacherSpec:
    weights = f"depth-anything/Depth-Anything-V2-Metric-{scene.title()}-{config.size.title()}-hf"
    name = f"depth-anything-v2-metric-{scene}-{config.size}"
    variant = depth_anything.Variant(name, config, METRIC[scene], weights)
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
    )


_ALL = [
    *(_relative(config) for config in (VITS, VITB, VITL, VITG)),
    *(_metric(scene, config) for scene in METRIC for config in (VITS, VITB, VITL)),
    _spec("luminance", "Apache-2.0", luminance.identify, luminance.load),
    _spec("random-tiny", "Apache-2.0", depth_anything.identify_random_tiny, depth_anything.load_random_tiny),
]
_SPECS = {spec.name: spec for spec in _ALL}
