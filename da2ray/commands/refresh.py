"""`jobs/refresh.py`: bring a dataset up to its source."""

from typing import Annotated, Any, Final

from pydantic import ValidationError, create_model
from rich.console import Console
from rich.table import Table

from da2ray.commands.options import Command, CommandConfig, option
from da2ray.commands.pseudolabel import CLUSTER, RUN, PseudolabelConfig
from da2ray.commands.shared import Share
from da2ray.console import Ticker, counted
from da2ray.errors import Exit, UserError
from da2ray.labels.commits import list_all_commits
from da2ray.labels.dataset import DatasetInfo, require_dataset
from da2ray.labels.fold import is_folded
from da2ray.labels.snapshots import Snapshot, create_snapshot, list_snapshots, open_snapshot
from da2ray.labels.views import list_views, open_view
from da2ray.plan.changes import Changes, Summary, Tally, compare
from da2ray.plan.joints import foldable
from da2ray.plan.plan import Plan, list_plans
from da2ray.sources import open_source
from da2ray.storage import Store, open_store

WHAT: Final = "what and where"


class _Own(CommandConfig):
    """Bring a dataset up to its source: label what is new or changed, leave out what is gone, keep the labels of what moved.

    The options of the run that made the dataset are stored in it. Run it on a schedule; it exits 0 if there is nothing to do.
    """

    output: str = option(..., "the dataset: URL or path", metavar="URL", group=WHAT)
    images: str | None = option(
        None, "where the images are; needed only if that URL is signed [as in the dataset]", metavar="URL", group=WHAT
    )
    max_gone: Share = option(
        0.1,
        "change nothing, and exit 1, if a larger share of the dataset's images is gone; moved ones do not count",
        metavar="SHARE",
        group=WHAT,
    )
    dry_run: bool = option(False, "print what changed and write nothing", group=WHAT)


def _of_labelling() -> dict[str, Any]:
    """The options of `jobs/pseudolabel.py` that a refresh has too: how to run it, and where to read what it needs."""
    taken = {}
    for name, field in PseudolabelConfig.model_fields.items():
        group = field.json_schema_extra["group"] if isinstance(field.json_schema_extra, dict) else None
        if group in (RUN, CLUSTER) or name in ("weights", "checker_weights", "trust_remote_code", "allow_scheme"):
            kind = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
            taken[name] = (kind, field)
    return taken


RefreshConfig = create_model("RefreshConfig", __base__=_Own, __doc__=_Own.__doc__, **_of_labelling())


def refresh(config: _Own, console: Console) -> int:
    """Find what changed, label it, and make the next snapshot.

    Ray is imported only if there is something to do.

    Raises:
        UserError: the dataset does not exist, or the options that it stores cannot be used.
    """
    given = config.model_dump(include=config.model_fields_set)
    store = open_store(config.output, given.get("storage_client", "auto"))
    labelling = _labelling(config, require_dataset(store), given)
    while True:
        snapshot = _newest(store)
        if (code := _finish_others(store, snapshot, labelling, console, dry_run=config.dry_run)) is not None:
            if code is not Exit.DONE or config.dry_run:
                return code
            continue  # what another process left is done; what has changed since then is next
        with _compare(labelling, store, snapshot, console) as changes:
            if changes.summary.is_empty:
                console.print(
                    f"nothing to do: snapshot {snapshot.number} has {counted(snapshot.rows, 'row')} and is up to date"
                )
                return Exit.DONE
            _print(changes.summary, snapshot, console)
            if config.dry_run:
                return Exit.DONE
            if _guard(changes.summary, snapshot, config.max_gone, console):
                return Exit.WRONG
            code, by_another = _label(labelling, console, snapshot, changes)
        if code is not Exit.DONE or not by_another:
            _print_views(store, console)
            return code


def _compare(labelling: PseudolabelConfig, store: Store, snapshot: Snapshot, console: Console) -> Changes:
    source = open_source(labelling.images, **labelling.source_options)
    ticker = Ticker(console)
    return compare(
        source, store, snapshot, on_progress=lambda done: ticker.count(f"listing {source.url}", done, "image")
    )


def _label(labelling: PseudolabelConfig, console: Console, snapshot: Snapshot, changes: Changes) -> tuple[Exit, bool]:
    from da2ray.pipeline import run  # noqa: PLC0415 - Ray: nothing to do is found without it

    return run.refresh(labelling, console, snapshot.number, changes)


def _labelling(config: _Own, info: DatasetInfo, given: dict[str, Any]) -> PseudolabelConfig:
    """The options of the run that made the dataset, with those of this command over them.

    Raises:
        UserError: the dataset has no such options, or not the URL of its images.
    """
    if not info.options:
        raise UserError(f"{config.output} has no options of the run that made it, so it cannot be refreshed")
    given = {name: value for name, value in given.items() if name in PseudolabelConfig.model_fields}
    values = info.options | given | {"dry_run": False}
    if values.get("images") is None:
        raise UserError("--images: the dataset's images are at a signed URL, which is not stored: give one")
    try:
        return PseudolabelConfig.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(f"option {'.'.join(map(str, problem['loc']))} in dataset.json: {problem['msg']}") from None


def _newest(store: Store) -> Snapshot:
    numbers = list_snapshots(store)
    if not numbers:
        raise UserError(f"{store.url} has no snapshot yet: run jobs/pseudolabel.py to its end first")
    return open_snapshot(store, numbers[-1])


def _finish_others(
    store: Store, snapshot: Snapshot, labelling: PseudolabelConfig, console: Console, *, dry_run: bool
) -> Exit | None:
    """Finish what other processes left: plans with shards to label, and commits that are in no snapshot.

    Returns:
        None if there was nothing of the kind.
    """
    commits = list_all_commits(store)
    plans = list_plans(store)
    unfinished = [plan for plan in plans if len(commits.get(plan.id, ())) < len(plan)]
    if not unfinished and is_folded((*snapshot.parts, *snapshot.spent), commits):
        return None
    for plan in unfinished:
        left = len(plan) - len(commits.get(plan.id, ()))
        console.print(
            f"plan {plan.id} ({plan.info.purpose}) was left with {left:,} of {counted(len(plan), 'shard')}"
            + (": a refresh finishes it first" if dry_run else ": finishing it first")
        )
        if not dry_run and (code := _finish(labelling, console, plan)) is not Exit.DONE:
            return code
    if not unfinished and not dry_run:
        made = create_snapshot(store, lambda: foldable(store), snapshot.fingerprint)
        console.print(f"snapshot {made.number}: what an earlier run had committed")
    return Exit.DONE


def _finish(labelling: PseudolabelConfig, console: Console, plan: Plan) -> Exit:
    from da2ray.pipeline import run  # noqa: PLC0415 - Ray: nothing to do is found without it

    return run.finish(labelling, console, plan.info, plan.id)


def _guard(summary: Summary, snapshot: Snapshot, most: float, console: Console) -> bool:
    """Whether so many images are gone that nothing may change."""
    if summary.gone.images <= most * snapshot.rows:
        return False
    console.print(
        f"{summary.gone.images:,} of {counted(snapshot.rows, 'image')} are gone, more than --max-gone {most:.3g}: nothing was "
        "changed\ncheck the source; if it is right, raise --max-gone"
    )
    return True


def _print(summary: Summary, snapshot: Snapshot, console: Console) -> None:
    console.print(f"since snapshot {snapshot.number} of {counted(snapshot.rows, 'row')}:")
    table = Table("", "images", "bytes", box=None)
    for name in ("new", "changed", "gone", "moved"):
        tally: Tally = getattr(summary, name)
        size = "" if name == "gone" else "unknown" if tally.bytes is None else f"{tally.bytes:,}"
        table.add_row(name, f"{tally.images:,}", size)
    console.print(table)
    if summary.spared:
        console.print(
            f"{counted(summary.spared, 'image')} stay though they are not listed: the listing skipped folders that may hold them"
        )


def _print_views(store: Store, console: Console) -> None:
    """Name the views that are of an older snapshot than the newest."""
    newest = max(list_snapshots(store), default=0)
    behind = [view.name for name in list_views(store) if (view := open_view(store, name)).snapshot < newest]
    if behind:
        console.print(
            f"views of older snapshots: {', '.join(behind)}; jobs/curate.py --view NAME --replace makes one anew"
        )


COMMAND = Command(RefreshConfig, refresh)
