"""The gallery's data, which report.js reads: labels with their pictures, and for each score which labels to show."""

from typing import Any, Final

from da2ray.report.facts import Facts
from da2ray.report.formats import number
from da2ray.report.survey import Distribution
from da2ray.storage import printable

CAPTIONS: Final = {
    "image": "Image",
    "depth": "Depth: near is bright, far is dark",
    "confidence": "Confidence: white is sure",
}


def gallery(facts: Facts) -> dict[str, Any]:
    """JSON values. Each picture is in them once; labels refer to pictures, and scores to labels, by number."""
    numbers = {position: index for index, position in enumerate(facts.shown)}
    pictures: list[str] = []
    labels = []
    for position, shown in facts.shown.items():
        row = facts.survey.rows[position]
        picture_numbers = {}
        for what, picture in shown.pictures.items():
            picture_numbers[what] = len(pictures)
            pictures.append(picture.uri)
        labels.append(
            {
                "key": printable(row["key"]),
                "size": f"{row['width']} x {row['height']} pixels, label {row['network_width']} x {row['network_height']}",
                "pictures": picture_numbers,
                "problems": dict(shown.problems),
                "scores": [_score(found, row[found.score.name]) for found in facts.survey.distributions],
                "removed": _removed_by(facts, row),
            }
        )
    scores = [_tab(facts, found, numbers) for found in facts.survey.distributions]
    return {"scores": scores, "labels": labels, "pictures": pictures, "captions": CAPTIONS, "first": _first(facts)}


def _first(facts: Facts) -> int:
    """Number of the score that the gallery begins with: the one whose thresholds remove most labels."""
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
        "said": f"Kept if {lines}." if lines else "",
        "rows": [*rows, ("At random", [numbers[at] for at in facts.survey.random])],
    }


def _score(found: Distribution, value: float | None) -> tuple[str, str] | None:
    """A value, and its percentile among the labelled rows."""
    return None if value is None else (number(value), f"P{100 * found.rank(value):.0f}")


def _removed_by(facts: Facts, row: dict[str, Any]) -> list[str]:
    return [
        str(line)
        for line in facts.rules.lines
        if row.get(line.column) is not None and line.removes_value(row[line.column])
    ]
