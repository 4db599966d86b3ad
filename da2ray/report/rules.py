"""The rules that a report draws, with percentiles as numbers: those of a view, or what a preset would do now."""

from typing import Final

from da2ray.errors import Status
from da2ray.labels.snapshots import Snapshot
from da2ray.labels.views import View
from da2ray.quality.catalog import open_catalog
from da2ray.quality.filters import apply, bind, resolve
from da2ray.quality.presets import PRESETS, Preset
from da2ray.report.facts import Rule, Rules
from da2ray.report.thresholds import thresholds_of
from da2ray.storage import Store

SHOWN: Final[Preset] = "default"
"""The preset that is drawn if no view is named."""


def rules_of_view(view: View) -> Rules:
    """The rules that `jobs/curate.py` stored with a view."""
    lines = thresholds_of([(rule.name, rule.resolved) for rule in view.rules])
    counted = [Rule(rule.name, rule.resolved, rule.removes, rule.alone) for rule in view.rules]
    if view.dedupe:
        # Duplicates are removed from the rows that the rules keep, so no rule removes any of them.
        counted.append(Rule("dedupe", str(view.dedupe), view.dedupe.removed, view.dedupe.removed))
    return Rules(f"view {view.name}", tuple(counted), lines, view.skipped, view.kept, applied=True)


def rules_of_preset(store: Store, snapshot: Snapshot, preset: Preset = SHOWN) -> Rules:
    """The rules that `jobs/curate.py --preset` would apply to the snapshot.

    Raises:
        OSError: the store failed, or an index part is corrupt.
    """
    title = f"preset {preset}"
    if not snapshot.by_status.get(Status.LABELLED.value):
        return Rules(title)
    bound = bind(PRESETS[preset])
    columns = [column for rule in bound for column in rule.columns]
    with open_catalog(store, snapshot, columns) as connection:
        found, skipped = resolve(connection, bound, skip=True)
        effects = apply(connection, found)
    lines = thresholds_of([(each.rule.name, each.resolved) for each in found])
    counted = tuple(
        Rule(each.rule.name, each.resolved, effect.removes, effect.alone)
        for each, effect in zip(found, effects, strict=True)
    )
    kept = effects[-1].kept_after if effects else snapshot.by_status[Status.LABELLED.value]
    return Rules(title, counted, lines, tuple((each.name, each.why) for each in skipped), kept)
