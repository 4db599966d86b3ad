"""Facts -> one HTML page that needs nothing else: style, script, data and pictures lie within it.

The page runs no script but its own: its policy (CSP) names the hashes of its script and style, and allows no connection.
"""

import base64
import hashlib
import json
from importlib.resources import files
from string import Template
from typing import Any

from da2ray.report import sections
from da2ray.report.charts import number
from da2ray.report.facts import Facts
from da2ray.report.survey import Distribution
from da2ray.storage import printable

CAPTIONS = {"image": "Image", "depth": "Depth: near is bright, far is dark", "confidence": "Confidence: white is sure"}


def page(facts: Facts) -> str:
    """The whole page."""
    style, script = _file("report.css"), _file("report.js")
    return Template(_file("template.html")).substitute(
        title=sections.text(f"da2ray: {facts.url}"),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        header=sections.header(facts),
        overview=sections.overview(facts),
        unlabelled=sections.unlabelled(facts),
        scores=sections.scores(facts),
        gallery=sections.gallery(facts),
        throughput=sections.pace(facts),
        provenance=sections.provenance(facts),
        data=as_script_data(_data(facts)),
    )


def as_script_data(value: Any) -> str:
    """JSON that holds no character by which HTML could leave a script element."""
    plain = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _data(facts: Facts) -> dict[str, Any]:
    """What report.js reads. Each picture is there once, and labels refer to it by number."""
    numbers = {position: index for index, position in enumerate(facts.shown)}
    pictures: list[str] = []
    labels = []
    for position, shown in facts.shown.items():
        row = facts.survey.rows[position]
        there = {}
        for what, picture in shown.pictures.items():
            there[what] = len(pictures)
            pictures.append(picture.uri)
        labels.append(
            {
                "key": printable(row["key"]),
                "size": f"{row['width']} x {row['height']} pixels, label {row['network_width']} x {row['network_height']}",
                "pictures": there,
                "problems": dict(shown.problems),
                "scores": [_score(found, row[found.score.name]) for found in facts.survey.distributions],
                "removed": _removed_by(facts, row),
            }
        )
    scores = [_tab(facts, found, numbers) for found in facts.survey.distributions]
    return {"scores": scores, "labels": labels, "pictures": pictures, "captions": CAPTIONS, "first": _first(facts)}


def _first(facts: Facts) -> int:
    """Number of the score that the gallery begins with: the one by which most labels are removed."""
    removed = [max((count for _, count in found.removed), default=0) for found in facts.survey.distributions]
    return removed.index(max(removed)) if removed else 0


def _tab(facts: Facts, found: Distribution, numbers: dict[int, int]) -> dict[str, Any]:
    low, high = [numbers[at] for at in found.lowest], [numbers[at] for at in found.highest]
    name = found.score.name
    if found.score.bad is None:
        rows = [(f"Highest {name}", high), (f"Lowest {name}", low)]
    elif found.score.bad == "high":
        rows = [(f"Worst: highest {name}", high), (f"Best: lowest {name}", low)]
    else:
        rows = [(f"Worst: lowest {name}", low), (f"Best: highest {name}", high)]
    lines = ", ".join(str(line) for line, _ in found.removed)
    return {
        "name": name,
        "meaning": found.score.meaning[0].upper() + found.score.meaning[1:],
        "said": f"Kept where {lines}." if lines else "",
        "rows": [*rows, ("At random", [numbers[at] for at in facts.survey.random])],
    }


def _score(found: Distribution, value: float | None) -> tuple[str, str] | None:
    """A value and its percentile among the labelled rows."""
    return None if value is None else (number(value), f"P{100 * found.rank(value):.0f}")


def _removed_by(facts: Facts, row: dict[str, Any]) -> list[str]:
    return [
        str(line)
        for line in facts.rules.lines
        if row.get(line.column) is not None and line.removes_value(row[line.column])
    ]


def _file(name: str) -> str:
    return (files("da2ray.report") / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    """sha256 in base64, as a content security policy names an inline script or style."""
    return base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
