"""Make one HTML page of facts. It needs nothing else: style, script, data and pictures are part of it.

templates/ holds the markup, static/ the style and the script. The page runs only its own script: its content security policy
names the hashes of its script and style, and allows no connection.
"""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from da2ray.console import duration
from da2ray.report.facts import Facts
from da2ray.report.formats import grouped, minute, number, percent
from da2ray.report.gallery import gallery
from da2ray.report.sections import sections
from da2ray.storage import printable

SHORT: Final = 300
"""The most characters of a key, a message or another text from a dataset."""
LONGEST: Final = 1_000_000
"""The most characters of any value; the path of a chart has fewer."""


def page(facts: Facts) -> str:
    """Render the whole page."""
    return (
        environment()
        .get_template("page.html")
        .render(
            facts=facts,
            sections=sections(facts),
            gallery=gallery(facts),
            style=_static("report.css"),
            script=_static("report.js"),
        )
    )


@cache
def environment() -> Environment:
    """The templates' environment: values lose credentials, line breaks and control characters, and are then escaped.

    `tojson` writes <, > and & as JSON escapes, so that data cannot end its script element.
    """
    made = Environment(
        loader=PackageLoader("da2ray.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "duration": duration,
        "grouped": grouped,
        "minute": minute,
        "number": number,
        "percent": percent,
        "policy_hash": _policy_hash,
        "short": _short,
    }
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": True, "allow_nan": False}
    return made


def _finalize(value: object) -> object:
    return value if isinstance(value, Markup) else printable(value, LONGEST)


def _short(value: object, limit: int = SHORT) -> str:
    return printable(value, limit)


def _static(name: str) -> str:
    return (files("da2ray.report") / "static" / name).read_text(encoding="utf-8")


def _policy_hash(content: str) -> str:
    """The sha256 in base64, by which a content security policy names an inline script or style."""
    return base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
