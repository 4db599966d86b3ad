"""The teacher `luminance`: it costs nothing, so it serves to measure and test the pipeline around a teacher."""

import hashlib

from da2ray.teachers.base import LoadOptions, Teacher, refuse_weights

DEFINITION = b"luminance 1: mean of the preprocessed channels"


def identify(options: LoadOptions) -> str:
    """The sha256 (hex) of the definition, because the teacher has no weights."""
    refuse_weights(options, "luminance")
    return hashlib.sha256(DEFINITION).hexdigest()


def load(options: LoadOptions) -> Teacher:
    """Load the teacher. Precision and compile change nothing, because it has no network."""
    refuse_weights(options, "luminance")
    from da2ray.teachers.luminance_teacher import Luminance  # noqa: PLC0415 - torch, which only the label stage imports

    return Luminance(options.device)
