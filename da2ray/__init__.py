"""Pseudo-label depth for tens of millions of images. `da2ray.open_labels(url)` reads what the jobs wrote.

Names are imported when first used (PEP 562), so `import da2ray` costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from da2ray.labels.reader import Label, Labels, open_labels

__version__ = "0.1.0"
__all__ = ["Label", "Labels", "__version__", "open_labels"]


def __getattr__(name: str) -> Any:
    if name in {"Label", "Labels", "open_labels"}:
        from da2ray.labels import reader  # noqa: PLC0415 - the point of this function

        return getattr(reader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
