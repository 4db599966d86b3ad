"""The facts that a report is made of, gathered before any HTML is written."""

from collections.abc import Mapping
from dataclasses import dataclass

from da2ray.errors import Reason, Status
from da2ray.labels.dataset import DatasetInfo
from da2ray.labels.snapshots import Snapshot
from da2ray.plan.plan import PlanInfo
from da2ray.report.pictures import Shown
from da2ray.report.survey import Survey
from da2ray.report.thresholds import Threshold
from da2ray.report.throughput import Idle, PacedRun


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule with percentiles as numbers.

    Attributes:
        removes: labelled rows that it removes.
        alone: labelled rows that only this rule removes.
    """

    name: str
    sql: str
    removes: int
    alone: int


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules that the report draws.

    Attributes:
        title: where the rules come from, such as "preset default".
        rules: the rules that apply to this dataset.
        lines: their thresholds on single scores.
        skipped: (name, why) of the rules that do not apply.
        kept: number of labelled rows that stay.
        applied: True if the rules are those of a stored view; False if they are what a preset would do.
    """

    title: str
    rules: tuple[Rule, ...] = ()
    lines: tuple[Threshold, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    kept: int = 0
    applied: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that a report says about one snapshot.

    Attributes:
        url: URL of the dataset, without credentials.
        plans: the plans of the snapshot by id, oldest first.
        shown: pictures of the labels in the gallery, by position.
        versions: versions of the packages that made this report.
        made: when the report was made, UTC, ISO 8601.
    """

    url: str
    info: DatasetInfo
    snapshot: Snapshot
    rules: Rules
    survey: Survey
    plans: Mapping[str, PlanInfo]
    runs: tuple[PacedRun, ...]
    idle: tuple[Idle, ...]
    shown: Mapping[int, Shown]
    versions: Mapping[str, str]
    made: str

    @property
    def labelled(self) -> int:
        return self.count(Status.LABELLED)

    def count(self, status: str) -> int:
        return self.snapshot.by_status.get(status, 0)

    def reasons(self, status: str) -> dict[str, int]:
        """Count the rows of each reason for `failed` or `rejected`, the most frequent reason first."""
        found = {reason: count for reason, count in self.snapshot.by_reason.items() if status_of(reason) == status}
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def status_of(reason: str) -> str:
    """The status of a reason. A reason that a later release added counts as failed."""
    try:
        return Reason(reason).status
    except ValueError:
        return Status.FAILED
