"""The sections of the page as HTML. Whatever is from data passes through `text`."""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from da2ray.console import duration
from da2ray.labels.scores import SCORES
from da2ray.report.charts import histogram, number, percent, throughput
from da2ray.report.facts import Facts
from da2ray.report.survey import Distribution
from da2ray.report.words import what_to_look_at
from da2ray.storage import printable, redacted

SAMPLE_CHARS = 300
"""Of a key or a message among the samples of a reason."""


def text(value: object, limit: int = SAMPLE_CHARS) -> str:
    """As HTML text: one line, without credentials or control characters, escaped."""
    return escape(printable(value, limit))


def header(facts: Facts) -> str:
    made, snapshot = facts.info.created_by, facts.snapshot
    named = {
        "Depth": facts.info.kind.value + (f", in {facts.info.unit}" if facts.info.unit else ", relative"),
        "Teacher": f"{made.teacher}, {made.precision}",
        "Licence of its weights": made.licence,
        "Snapshot": f"{snapshot.number} of {_time(snapshot.created)}",
        "Rows": f"{snapshot.rows:,}",
        "Rules shown": facts.rules.title,
    }
    found = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in named.items())
    return f'<p class="eyebrow">da2ray report</p><h1>{text(facts.url, 1000)}</h1><dl class="facts">{found}</dl>'


def overview(facts: Facts) -> str:
    rows = facts.snapshot.rows
    cards, bars, left = [], [], 0.0
    for status in ("labelled", "failed", "rejected"):
        count = facts.count(status)
        cards.append(
            f'<div class="count {status}"><b>{count:,}</b>{status} <span class="soft">{percent(count, rows)}</span></div>'
        )
        width = 1000 * count / rows if rows else 0
        bars.append(f'<rect class="{status}" x="{left:.2f}" y="0" width="{width:.2f}" height="10"/>')
        left += width
    return (
        f'<p class="lead">{text(what_to_look_at(facts), 4000)}</p><div class="counts">{"".join(cards)}</div>'
        f'<svg class="shares" viewBox="0 0 1000 10" preserveAspectRatio="none" role="img" '
        f'aria-label="Shares of labelled, failed and rejected images">{"".join(bars)}</svg>'
    )


def unlabelled(facts: Facts) -> str:
    parts = []
    for status, title in (("failed", "Failures by class"), ("rejected", "Rejections by class")):
        reasons = facts.reasons(status)
        if not reasons:
            parts.append(f'<p class="soft">{title}: none.</p>')
            continue
        rows = [
            [
                f"<td><code>{text(reason)}</code></td>",
                cell(f"{count:,}", count),
                cell(percent(count, facts.snapshot.rows), count),
                f"<td>{_samples(facts, reason)}</td>",
            ]
            for reason, count in reasons.items()
        ]
        parts.append(table([title, "#Images", "#Share", "Samples"], rows))
    return "".join(parts)


def scores(facts: Facts) -> str:
    found = facts.survey.distributions
    if not found:
        return '<p class="soft">No label has a score yet.</p>'
    cards = "".join(_card(facts, each, index) for index, each in enumerate(found))
    rows = [
        [
            f"<td><code>{each.score.name}</code></td>",
            cell(f"{each.measured:,}", each.measured),
            *(
                cell(number(value), value)
                for value in (each.least, *(each.percentile(at) for at in (5, 50, 95)), each.most)
            ),
            f"<td>{each.score.bad or ''}</td>",
            f"<td>{text(each.score.meaning)}</td>",
        ]
        for each in found
    ]
    columns = ["Score", "#Rows", "#Least", "#P5", "#Median", "#P95", "#Most", "Worse where", "Meaning"]
    return f'{_rules(facts)}<div class="grid">{cards}</div>{table(columns, rows)}{_not_measured(found)}'


def gallery(facts: Facts) -> str:
    found = facts.survey.distributions
    if not found:
        return '<p class="soft">No label to show.</p>'
    tabs = "".join(
        f'<button type="button" role="tab" id="tab-{index}" aria-controls="shown" aria-selected="false">'
        f"{each.score.name}</button>"
        for index, each in enumerate(found)
    )
    near = "near is bright, far is dark"
    far = (
        ", an outline in cyan where there is no distance"
        if any(each.score.name == "far_share" for each in found)
        else ""
    )
    return (
        f'<p class="soft">Image, depth ({near}{far}) and, where there is a mask, confidence (white is sure). '
        "A click enlarges a label and shows all its scores.</p>"
        f'<div role="tablist" aria-label="Scores">{tabs}</div>'
        '<div id="shown" role="tabpanel"><noscript>The gallery needs JavaScript.</noscript></div>'
    )


def pace(facts: Facts) -> str:
    drawn = throughput(facts.runs, facts.idle)
    if not drawn:
        return '<p class="soft">No run has written its progress.</p>'
    rows = []
    for run in facts.runs:
        if not run.progress:
            continue
        progress = run.progress
        done, seconds = progress.samples.this_run, progress.elapsed_seconds
        rate = done / seconds if seconds else 0.0
        busy = progress.teacher_busy_share
        failed = progress.by_status.get("failed", 0)
        rows.append(
            [
                f"<td><code>{text(run.name)}</code></td>",
                f"<td>{text(progress.state)}</td>",
                cell(f"{done:,}", done),
                cell(f"{failed:,}", failed),
                cell(duration(seconds), seconds),
                cell(number(rate), rate),
                cell("" if busy is None else f"{busy:.0%}", busy or 0),
            ]
        )
    columns = ["Run", "State", "#Images", "#Failed", "#Took", "#Images a second", "#Teacher busy"]
    return f'<p class="soft">Images per second, UTC.</p><div class="wide">{drawn}</div>{table(columns, rows)}'


def provenance(facts: Facts) -> str:
    made = facts.info.created_by.model_dump(mode="json")
    checker = made.pop("checker")
    dataset = facts.info.model_dump(mode="json", exclude={"created_by"})
    named = {**made, **{f"checker {name}": value for name, value in (checker or {}).items()}}
    dataset["unit"] = dataset["unit"] or "none: relative"
    named |= dataset
    named["fingerprints of the rows"] = ", ".join(facts.snapshot.fingerprints)
    parts = [_named("Dataset", named)]
    rows = [
        [
            f"<td><code>{text(plan)}</code></td>",
            f"<td>{text(info.source['kind'])}</td>",
            f"<td>{text(info.source['url'])}</td>",
            cell(f"{info.samples:,}", info.samples),
            cell(f"{info.shards:,}", info.shards),
            f"<td>{text('' if info.limit is None else info.limit)}</td>",
            f"<td>{text(_time(info.created))}</td>",
        ]
        for plan, info in facts.plans.items()
    ]
    parts.append(table(["Plan", "Kind", "Source", "#Images", "#Shards", "Limit", "Made"], rows))
    for run in facts.runs:
        config = escape(json.dumps(redacted(run.config), indent=1, ensure_ascii=True))
        parts.append(
            f"<details><summary>Configuration of run <code>{text(run.name)}</code></summary><pre>{config}</pre></details>"
        )
    parts.append(_named("This report", {"made": _time(facts.made), **facts.versions}))
    return "".join(parts)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that sorts by its columns; of those whose name begins with # by `data-value`, as numbers."""
    heads = "".join(
        f'<th scope="col"{" class=number" if name.startswith("#") else ""}>'
        f'<button type="button">{text(name.lstrip("#"))}</button></th>'
        for name in columns
    )
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def cell(said: str, value: float) -> str:
    """A number in a table."""
    return f'<td class="number" data-value="{value!r}">{escape(said)}</td>'


def _card(facts: Facts, found: Distribution, index: int) -> str:
    score = found.score
    rules = "".join(
        f'<li class="rule"><b>{escape(str(line))}</b> removes {percent(count, facts.labelled)} '
        f'<span class="soft">({text(line.rule)}: {count:,})</span></li>'
        for line, count in found.removed
    )
    unit = facts.info.unit if score.unit == "dataset" else score.unit
    said = [
        f"worse where {score.bad}" if score.bad else "neither end is worse",
        f"median {number(found.percentile(50))}",
    ]
    if found.measured < facts.labelled:
        said.append(f"{found.measured:,} of {facts.labelled:,} labels have it")
    return (
        f'<div class="card"><div class="top"><h3>{score.name}</h3>'
        f'<button type="button" class="plain" data-score="{index}" aria-label="Gallery of {score.name}">Gallery</button></div>'
        f'<p class="soft">{text(score.meaning)}{f" ({text(unit)})" if unit else ""}</p>'
        f"{histogram(found)}<ul>{rules}</ul>"
        f'<p class="foot">{" · ".join(said)}</p></div>'
    )


def _rules(facts: Facts) -> str:
    rules = facts.rules
    said = f"No rule of the {rules.title} applies to this dataset."
    if rules.rules:
        said = f"Lines are the thresholds of the {rules.title}; what they remove is red. What was not measured stays."
    parts = [f'<p class="soft">{text(said)}</p>']
    if rules.rules:
        rows = [
            [
                f"<td><code>{text(rule.name)}</code></td>",
                f"<td><code>{text(rule.sql)}</code></td>",
                *(cell(f"{count:,}", count) for count in (rule.removes, rule.alone)),
                cell(percent(rule.removes, facts.labelled), rule.removes),
            ]
            for rule in rules.rules
        ]
        parts.append(table(["Rule", "Keeps where", "#Removes", "#It alone", "#Share"], rows))
    if rules.skipped:
        listed = "; ".join(f"{name} ({why})" for name, why in rules.skipped)
        parts.append(f'<p class="soft">Rules that do not apply here: {text(listed, 2000)}</p>')
    return "".join(parts)


def _not_measured(found: Sequence[Distribution]) -> str:
    there = {each.score.name for each in found}
    by_option: dict[str, list[str]] = {}
    for name, score in SCORES.items():
        if name not in there:
            by_option.setdefault(score.option or "not measured by the release that labelled", []).append(name)
    listed = "; ".join(f"{', '.join(names)} ({option})" for option, names in by_option.items())
    return f'<p class="soft">Not measured: {text(listed, 2000)}.</p>' if listed else ""


def _samples(facts: Facts, reason: str) -> str:
    rows = [facts.survey.rows[position] for position in facts.survey.examples.get(reason, ())]
    if not rows:
        return ""
    items = "".join(
        f'<li><code>{text(row["key"])}</code> <span class="soft">{text(row["message"] or "")}</span></li>'
        for row in rows
    )
    return f'<details open><summary>{len(rows)} of them</summary><ul class="samples">{items}</ul></details>'


def _named(title: str, values: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{text(name)}</th><td>{text(_flat(value), 2000)}</td></tr>'
        for name, value in values.items()
    )
    head = f'<thead><tr><th colspan="2">{text(title)}</th></tr></thead>'
    return f'<div class="wide"><table class="named">{head}<tbody>{rows}</tbody></table></div>'


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {found}" for name, found in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _time(iso: str) -> str:
    """2026-11-25 15:10 UTC, of an ISO 8601 time in UTC; not yet HTML."""
    return f"{iso[:10]} {iso[11:16]} UTC" if len(iso) > 16 else iso
