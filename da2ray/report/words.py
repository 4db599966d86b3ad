"""The first paragraph of the page: what to look at, in words made from the numbers."""

from collections.abc import Iterator

from da2ray.labels.scores import SCORES
from da2ray.report.facts import Facts
from da2ray.report.formats import number, percent

IDLE_TEACHER = 0.5
"""Below this share of busy time the teacher mostly waits, so reading or writing should be sped up."""
LARGE_SHARE = 0.05
"""Share of labels removed by a rule from which on the page suggests checking whether the rule is too strict."""
REPEATED = 0.5
"""Share of rows with the worst value of a score from which on the page mentions it."""


def what_to_look_at(facts: Facts) -> str:
    """Write one paragraph of plain text."""
    return " ".join([*_counts(facts), *_rules(facts), *_odd(facts), *_pace(facts), *_unknown(facts)])


def _counts(facts: Facts) -> Iterator[str]:
    rows = facts.snapshot.rows
    planned = sum(plan.samples for plan in facts.plans.values())
    covered = rows + facts.snapshot.superseded
    yield f"{facts.labelled:,} of {rows:,} images ({percent(facts.labelled, rows)}) have a label."
    if covered < planned:
        yield f"The snapshot covers {covered:,} of {planned:,} planned images ({percent(covered, planned)})."
    for status, verb in (("failed", "failed"), ("rejected", "were rejected by a policy")):
        reasons = facts.reasons(status)
        count = facts.count(status)
        if not count:
            yield f"No images {verb}."
            continue
        most, times = next(iter(reasons.items()))
        mostly = "all" if times == count else "mostly" if times > count / 2 else "most often"
        yield f"{percent(count, rows)} {verb}, {mostly} {most}."
    if len(facts.snapshot.fingerprints) > 1:
        yield (
            f"The rows have {len(facts.snapshot.fingerprints)} fingerprints: the labels come from different weights or options."
        )


def _rules(facts: Facts) -> Iterator[str]:
    rules = facts.rules
    if not rules.rules:
        return
    verb = "keeps" if rules.applied else "would keep"
    said = f"The {rules.title} {verb} {rules.kept:,} labels ({percent(rules.kept, facts.labelled)})"
    most = max(rules.rules, key=lambda rule: rule.removes)
    if not most.removes:
        yield f"{said}: no rule removes any."
        return
    said += f"; its rule {most.name}, {most.sql}, removes most ({percent(most.removes, facts.labelled)})"
    of_one_score = any(line.rule == most.name for line in rules.lines)
    if of_one_score and most.removes >= LARGE_SHARE * facts.labelled:
        said += ": look at that end of the gallery to see whether the rule is right for this dataset"
    yield f"{said}."


def _odd(facts: Facts) -> Iterator[str]:
    """Name the scores of which half the rows have the worst value."""
    for found in facts.survey.distributions:
        if found.score.bad is None or found.measured < 2 or found.least == found.most:
            continue
        worst = found.least if found.score.bad == "low" else found.most
        at_worst = float((found.sample == worst).mean())
        if at_worst >= REPEATED:
            yield f"{at_worst:.0%} of the rows have {found.score.name} at its worst value, {number(worst)}."


def _pace(facts: Facts) -> Iterator[str]:
    progress = next((run.progress for run in reversed(facts.runs) if run.progress), None)
    if progress is None:
        return
    done, seconds = progress.samples.this_run, progress.elapsed_seconds
    if done and seconds:
        said = f"The last run labelled {done:,} images at {number(done / seconds)} a second"
        busy = progress.teacher_busy_share
        if busy is not None:
            said += f"; its teacher was busy {busy:.0%} of the time"
            if busy < IDLE_TEACHER:
                said += ": reading or writing held it up"
        yield f"{said}."
    if progress.state not in {"labelled", "running"}:
        yield f"That run ended as {progress.state}."


def _unknown(facts: Facts) -> Iterator[str]:
    there = {found.score.name for found in facts.survey.distributions}
    options = list(dict.fromkeys(score.option for name, score in SCORES.items() if name not in there and score.option))
    options = [
        option for option in options if not any(option != other and option.startswith(other) for other in options)
    ]
    if options:
        yield f"Not measured: the scores of {', '.join(options)}."
