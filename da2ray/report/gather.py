"""Gather the facts that the report of a dataset shows."""

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from da2ray.labels.reader import open_labels
from da2ray.plan.plan import list_plans
from da2ray.report.facts import Facts
from da2ray.report.originals import Originals
from da2ray.report.pictures import pictures_of
from da2ray.report.rules import rules_of_preset, rules_of_view
from da2ray.report.survey import survey
from da2ray.report.throughput import idle_times, read_runs
from da2ray.storage import Client, redact

PACKAGES = ("da2ray", "ray", "torch", "numpy", "pyarrow", "pillow", "opencv-python-headless", "obstore", "zarr")


def gather(
    url: str, *, client: Client, view: str | None, snapshot: int | None, gallery: int, allow: Sequence[str]
) -> Facts:
    """Read everything that the page shows.

    Args:
        url: of the dataset.
        view: name of the view whose rules the report draws; None for the preset `default`.
        snapshot: number of a version; None for the view's, or the newest.
        gallery: how many labels to show of each end of each score, and at random.
        allow: where a manifest's images may be read, like `--allow-scheme` of the job.

    Raises:
        UserError: there is no dataset, snapshot or view of this name.
        OSError: a store failed.
    """
    labels = open_labels(url, snapshot, view, client=client)
    rules = rules_of_view(labels.view) if labels.view else rules_of_preset(labels.store, labels.snapshot)
    found = survey(labels.store, labels.snapshot, rules.lines, gallery)
    plans = {plan.id: plan.info for plan in list_plans(labels.store)}
    positions = dict.fromkeys(
        position for each in found.distributions for position in (*each.lowest, *each.highest)
    ) | dict.fromkeys(found.random)
    shown = pictures_of(labels, [found.rows[position] for position in positions], Originals(plans, client, allow))
    runs = tuple(read_runs(labels.store))
    return Facts(
        redact(labels.store.url),
        labels.info,
        labels.snapshot,
        rules,
        found,
        {plan: plans[plan] for plan in labels.snapshot.plans if plan in plans},
        runs,
        tuple(idle_times(runs)),
        dict(zip(positions, shown, strict=True)),
        {"python": platform.python_version(), **_versions()},
        datetime.now(UTC).isoformat(),
    )


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a machine that only reads datasets may lack `ray`
            continue
    return found
