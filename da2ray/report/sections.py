"""What each section of the page says: plain values for its template, not yet HTML."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from da2ray.labels.scores import SCORES
from da2ray.report.facts import Facts
from da2ray.report.formats import minute, number
from da2ray.report.histogram import Histogram, histogram
from da2ray.report.survey import Distribution
from da2ray.report.throughput_chart import ThroughputChart, throughput_chart
from da2ray.report.words import what_to_look_at
from da2ray.storage import redacted

SHARES_WIDTH = 1000
"""Width of the bar that shows the shares of the statuses, in units of its drawing."""


@dataclass(frozen=True, slots=True)
class StatusShare:
    """How many rows have a status, and the stretch of the bar that shows it."""

    status: str
    count: int
    left: float
    width: float


@dataclass(frozen=True, slots=True)
class Example:
    """A row without a label."""

    key: str
    message: str


@dataclass(frozen=True, slots=True)
class ReasonRow:
    """How many rows have a reason, and a few of them."""

    reason: str
    count: int
    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class ScoreCard:
    """A score with its histogram; `notes` stand below it."""

    distribution: Distribution
    unit: str
    chart: Histogram
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run's progress; `busy` is the share of time in which its teacher worked, None if the run did not measure it."""

    name: str
    state: str
    images: int
    failed: int
    seconds: float
    rate: float
    busy: float | None


@dataclass(frozen=True, slots=True)
class Configuration:
    """A run's options as lines of JSON, without credentials."""

    run: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sections:
    """Everything that the templates show, apart from `Facts`.

    Attributes:
        has_far: True if labels have a far class, which the pictures outline.
        not_measured: for each option, the names of the scores that it would measure.
        provenance: the content of `dataset.json`, as names and values.
        report: when and with what this page was made, as names and values.
    """

    summary: str
    statuses: tuple[StatusShare, ...]
    reasons: Mapping[str, tuple[ReasonRow, ...]]
    scores: tuple[ScoreCard, ...]
    has_far: bool
    not_measured: Mapping[str, Sequence[str]]
    chart: ThroughputChart | None
    runs: tuple[RunRow, ...]
    provenance: Mapping[str, str]
    configurations: tuple[Configuration, ...]
    report: Mapping[str, str]


def sections(facts: Facts) -> Sections:
    """Derive what the page says from the facts."""
    return Sections(
        summary=what_to_look_at(facts),
        statuses=_statuses(facts),
        reasons={status: _reasons(facts, status) for status in ("failed", "rejected")},
        scores=tuple(_card(facts, distribution) for distribution in facts.survey.distributions),
        has_far=any(found.score.name == "far_share" for found in facts.survey.distributions),
        not_measured=_not_measured(facts.survey.distributions),
        chart=throughput_chart(facts.runs, facts.idle),
        runs=_runs(facts),
        provenance=_provenance(facts),
        configurations=_configurations(facts),
        report={"made": minute(facts.made), **facts.versions},
    )


def _statuses(facts: Facts) -> tuple[StatusShare, ...]:
    rows = facts.snapshot.rows
    shares, left = [], 0.0
    for status in ("labelled", "failed", "rejected"):
        count = facts.count(status)
        width = SHARES_WIDTH * count / rows if rows else 0.0
        shares.append(StatusShare(status, count, round(left, 2), round(width, 2)))
        left += width
    return tuple(shares)


def _reasons(facts: Facts, status: str) -> tuple[ReasonRow, ...]:
    def examples(reason: str) -> tuple[Example, ...]:
        rows = (facts.survey.rows[position] for position in facts.survey.examples.get(reason, ()))
        return tuple(Example(row["key"], row["message"] or "") for row in rows)

    return tuple(ReasonRow(reason, count, examples(reason)) for reason, count in facts.reasons(status).items())


def _card(facts: Facts, distribution: Distribution) -> ScoreCard:
    score = distribution.score
    notes = [
        f"worse if {score.bad}" if score.bad else "neither end is worse",
        f"median {number(distribution.percentile(50))}",
    ]
    if distribution.measured < facts.labelled:
        notes.append(f"{distribution.measured:,} of {facts.labelled:,} labels have it")
    unit = facts.info.unit if score.unit == "dataset" else score.unit
    return ScoreCard(distribution, unit, histogram(distribution), tuple(notes))


def _not_measured(distributions: Sequence[Distribution]) -> dict[str, list[str]]:
    measured = {each.score.name for each in distributions}
    by_option: dict[str, list[str]] = {}
    for name, score in SCORES.items():
        if name not in measured:
            by_option.setdefault(score.option or "not measured by the release that labelled", []).append(name)
    return by_option


def _runs(facts: Facts) -> tuple[RunRow, ...]:
    rows = []
    for run in facts.runs:
        if run.progress is not None:
            progress = run.progress
            images, seconds = progress.samples.this_run, progress.elapsed_seconds
            rate = images / seconds if seconds else 0.0
            failed = progress.by_status.get("failed", 0)
            rows.append(RunRow(run.name, progress.state, images, failed, seconds, rate, progress.teacher_busy_share))
    return tuple(rows)


def _provenance(facts: Facts) -> dict[str, str]:
    made = facts.info.created_by.model_dump(mode="json")
    checker = made.pop("checker") or {}
    dataset = facts.info.model_dump(mode="json", exclude={"created_by"})
    dataset["unit"] = dataset["unit"] or "none: relative"
    values = made | {f"checker {name}": value for name, value in checker.items()} | dataset
    values["fingerprints of the rows"] = ", ".join(facts.snapshot.fingerprints)
    return {name: _flat(value) for name, value in values.items()}


def _flat(value: Any) -> str:
    """A value of `dataset.json` on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _configurations(facts: Facts) -> tuple[Configuration, ...]:
    return tuple(
        Configuration(run.name, tuple(json.dumps(redacted(run.config), indent=1, ensure_ascii=True).splitlines()))
        for run in facts.runs
    )
