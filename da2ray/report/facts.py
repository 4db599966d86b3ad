"""Everything that a report is made of, gathered before a line of HTML is written."""

from collections.abc import Mapping
from dataclasses import dataclass

from da2ray.errors import Reason, Status
from da2ray.labels.dataset import DatasetInfo
from da2ray.labels.snapshots import Snapshot
from da2ray.plan.plan import PlanInfo
from da2ray.report.pictures import Shown
from da2ray.report.survey import Survey
from da2ray.report.thresholds import Threshold
from da2ray.report.throughput import Idle, Run


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule, percentiles as numbers; labelled rows that break it, and those that break it and no other."""

    name: str
    sql: str
    removes: int
    alone: int


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules that the report draws.

    Attributes:
        title: whose they are, such as "preset default".
        rules: those that apply to this dataset.
        lines: what they say of single scores.
        skipped: (name, why) of those that do not apply.
        kept: labelled rows that stay.
        applied: they are a view's, which is there to be read, and not what a preset would do.
    """

    title: str
    rules: tuple[Rule, ...] = ()
    lines: tuple[Threshold, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    kept: int = 0
    applied: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """Of one snapshot.

    Attributes:
        url: of the dataset, without credentials.
        plans: by id, oldest first.
        shown: pictures of the labels in the gallery, by position.
        versions: of the packages by which this report was made.
        made: UTC, ISO 8601.
    """

    url: str
    info: DatasetInfo
    snapshot: Snapshot
    rules: Rules
    survey: Survey
    plans: Mapping[str, PlanInfo]
    runs: tuple[Run, ...]
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
        """Counts of the reasons of `failed` or `rejected`, the most frequent first."""
        found = {reason: count for reason, count in self.snapshot.by_reason.items() if status_of(reason) == status}
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def status_of(reason: str) -> str:
    """Of a reason in an index; one that a later release added counts as an error."""
    try:
        return Reason(reason).status
    except ValueError:
        return Status.FAILED
