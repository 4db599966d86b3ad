"""The teacher `random-tiny`: a network's work at little cost, without depth. For demos and tests.

Importing this module needs no torch.
"""

from da2ray.teachers.base import LoadOptions, Teacher


def identify(options: LoadOptions) -> str:
    """The sha256 (hex) of the seeded weights' bytes."""
    from da2ray.teachers.depth_anything.teacher import identify_random_tiny  # noqa: PLC0415 - torch makes the weights

    return identify_random_tiny(options)


def load(options: LoadOptions) -> Teacher:
    """Load the tiny network with seeded weights."""
    from da2ray.teachers.depth_anything.teacher import load_random_tiny  # noqa: PLC0415 - likewise

    return load_random_tiny(options)
