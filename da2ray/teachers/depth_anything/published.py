"""Which Depth Anything a checkpoint is, as the config.json beside its weights says, and whether it fits a teacher.

Relative, indoor and outdoor weights, and those of Depth Anything V1, have the same keys and shapes. A relative or an indoor
network in the place of an outdoor one would give metres that are wrong by any factor, without a word.
"""

import logging
from pathlib import Path, PurePosixPath
from typing import Any

from da2ray.errors import UserError
from da2ray.storage import local_path, printable
from da2ray.teachers.depth_anything.checkpoint import HUB_ID
from da2ray.teachers.depth_anything.configs import Config
from da2ray.teachers.hugging_face_files import CONFIG, read_json

METRIC = {"indoor": 20.0, "outdoor": 80.0}
"""Largest depth of the metric heads in metres. Indoor was trained on Hypersim, outdoor on Virtual KITTI."""
_SUFFIXES = frozenset({".safetensors", ".bin"})
"""Files that transformers writes. An official `.pth` has no config.json of its own, even if one lies beside it."""


def check_published(weights: str, path: Path, config: Config, teacher: str, max_depth: float | None) -> None:
    """Compare a checkpoint's config.json with a teacher. Without a config.json, warn of what the weights cannot tell.

    Args:
        weights: the location that the user gave.
        path: its local file.
        config: the size of the network; the weights have it.
        teacher: the name of the teacher.
        max_depth: largest depth of the teacher in metres, None if it is relative.

    Raises:
        UserError: the checkpoint is of another kind, or its config.json cannot be read or fetched.
    """
    file = find_config(weights, path)
    if file is None:
        kind = "relative" if max_depth is None else f"metric up to {max_depth:g} m"
        logging.getLogger(__name__).warning(
            "weights %s have no config.json: they cannot tell relative from metric depth, its range, or V1 from V2; "
            "%s takes them as %s V2",
            printable(weights),
            teacher,
            kind,
        )
        return
    content = read_json(file)
    fault, fitting = _fault(content, config, max_depth)
    if fault:
        use = fitting or f"hf:{printable(weights)}"
        raise UserError(
            f"weights {printable(weights)} are {fault}, as their config.json says; {teacher} needs others: "
            f"give --teacher {use}, or other --weights"
        )


def find_config(weights: str, path: Path) -> Path | None:
    """The local config.json of a checkpoint, fetched if it is on the hub, or None if it has none.

    Raises:
        UserError: it cannot be fetched.
    """
    hub = HUB_ID.fullmatch(weights)
    if path.suffix not in _SUFFIXES or "://" in weights:
        return None
    if local_path(weights).exists() or hub is None:
        beside = path.parent / CONFIG
        return beside if beside.is_file() else None
    import huggingface_hub  # noqa: PLC0415 - half a second, for hub ids only
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError  # noqa: PLC0415

    name = str(PurePosixPath(hub["file"] or CONFIG).parent / CONFIG)
    try:
        return Path(huggingface_hub.hf_hub_download(hub["repo"], name, revision=hub["revision"]))
    except Exception as error:  # the hub's own, its HTTP client's, the disk's
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise UserError(
            f"{name} of weights {printable(weights)} cannot be fetched from the Hugging Face hub ({type(error).__name__}): "
            "without a network, download the checkpoint elsewhere and give --weights PATH"
        ) from error


def _fault(content: dict[str, Any], config: Config, max_depth: float | None) -> tuple[str, str | None]:
    """What is wrong with a checkpoint, "" if it fits, and the named teacher that fits it, if there is one."""
    kind = content.get("model_type", "depth_anything")
    if kind != "depth_anything":
        return f"of the model type {printable(str(kind))}", None
    taps = _taps(content.get("backbone_config"))
    if taps is not None and taps != [tap + 1 for tap in config.encoder.taps]:
        return f"of a network that taps the layers {printable(str(taps))} (Depth Anything V1 or a variant)", None
    if content.get("depth_estimation_type", "relative") != "metric":
        return ("relative", f"depth-anything-v2-{config.size}") if max_depth is not None else ("", None)
    # transformers takes 1 if the range is missing.
    most = content.get("max_depth") or 1
    if most == max_depth:
        return "", None
    scene = next((scene for scene, limit in METRIC.items() if limit == most), None)
    fitting = f"depth-anything-v2-metric-{scene}-{config.size}" if scene else None
    return f"metric up to {printable(str(most))} m", fitting


def _taps(backbone: object) -> list[int] | None:
    """The layers that a backbone's configuration taps, counted from 1, or None if it does not say."""
    if not isinstance(backbone, dict):
        return None
    if isinstance(backbone.get("out_indices"), list):
        return list(backbone["out_indices"])
    names = backbone.get("out_features")
    if not isinstance(names, list):
        return None
    return [int(digits) for name in names if (digits := str(name).removeprefix("stage")).isdigit()]
