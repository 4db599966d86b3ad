"""The main job: plan, label, commit, resume, snapshot. Read it downwards from `pseudolabel`."""

import threading
from typing import Final

import numpy as np
import ray
from rich.console import Console

from da2ray.commands.pseudolabel import PseudolabelConfig
from da2ray.console import Ticker, counted
from da2ray.errors import Exit, Status, UnavailableError, UserError
from da2ray.labels.dataset import create_or_open
from da2ray.labels.live_rows import LiveRows
from da2ray.labels.runs import new_run_name, write_config
from da2ray.labels.snapshots import create_snapshot
from da2ray.pipeline.control.claims import Claims
from da2ray.pipeline.control.cluster import actor_range, cluster_address, connect
from da2ray.pipeline.control.coordinator import Counts, counts_of, last_counts, start_coordinator
from da2ray.pipeline.control.endings import ending_of
from da2ray.pipeline.control.lost import ClusterWatch
from da2ray.pipeline.control.progress import Progress, Totals, work_left
from da2ray.pipeline.control.stopping import StopRequest, stop_on_signals
from da2ray.pipeline.dry_run import show_plan
from da2ray.pipeline.prepare import Job, prepare
from da2ray.plan.changes import Changes, listing_of
from da2ray.plan.joints import correct, foldable
from da2ray.plan.plan import Plan, PlanInfo, make_plan, open_plan
from da2ray.plan.refresh import RefreshSource, commit_gone
from da2ray.plan.update import Purpose
from da2ray.sources.base import passed_over_text
from da2ray.storage import open_store


def pseudolabel(config: PseudolabelConfig, console: Console) -> Exit:
    """Label a source into a dataset, or go on where an earlier run of the same command stopped.

    Raises:
        UserError: the user has to change something; raised before any GPU work if it can be known then.
        ResumableError: a store, the cluster or its workers failed.
    """
    job = prepare(config, console)
    if config.dry_run:
        show_plan(job, console)
        return Exit.DONE
    return label_plan(job, console)[0]


def refresh(config: PseudolabelConfig, console: Console, snapshot: int, changes: Changes) -> tuple[Exit, bool]:
    """Label what changed in a source since a snapshot, and make the next one.

    Returns:
        The exit code, and whether what was labelled was found by another process, so that there may be more.

    Raises:
        UserError, ResumableError: as for `pseudolabel`.
    """
    job = prepare(config, console, lambda source, store: RefreshSource(source, store, snapshot, changes))
    code, plan = label_plan(job, console)
    return code, not plan.is_new


def finish(config: PseudolabelConfig, console: Console, info: PlanInfo, plan: str) -> Exit:
    """Label the rest of a plan that another process left, and make a snapshot.

    Raises:
        UserError: the plan was made by a command with other options; or as for `pseudolabel`.
        ResumableError: as for `pseudolabel`.
    """
    cut = {"shard_size": info.shard_size, "shard_bytes": info.shard_bytes, "limit": info.limit}
    config = config.model_copy(update=cut)
    if info.purpose is Purpose.REFRESH:
        job = prepare(config, console, lambda source, store: RefreshSource(source, store, info.parent))
    else:
        job = prepare(config, console)
    if job.plan_id != plan:
        raise UserError(
            f"plan {plan} ({info.purpose}) is not finished, and was made by a command with other options: "
            "run that command again first"
        )
    return label_plan(job, console)[0]


def label_plan(job: Job, console: Console) -> tuple[Exit, Plan]:
    """Label what is left of the job's plan, which is made if it is not stored, and make a snapshot."""
    create_dataset(job)
    try:
        plan = stored_plan(job, console)
        totals = work_left(plan, job.store)
        if totals.shards_before:
            console.print(
                f"resuming: {totals.shards_before:,} of {counted(totals.shards, 'shard')} committed "
                f"({counted(totals.samples_before, 'image', exact=totals.exact)})"
            )
        counts = label_all(job, plan, totals, console) if totals.shards_before < totals.shards else Counts()
        left = len(plan.remaining(job.store, gone=False))
        for _ in range(CORRECTIONS):
            if left:
                break
            again = correct(job.reading.source, job.store, plan)
            if not again:
                # Last, so that an image that moved is never missing.
                commit_gone(job.store, plan, job.config.format, job.fingerprint)
                return publish(job, console), plan
            console.print(f"{counted(again, 'shard')} did not begin where the one before ended; reading again")
            counts = label_all(job, plan, work_left(plan, job.store), console)
            left = len(plan.remaining(job.store, gone=False))
        if counts.over_budget:
            failed = counts.by_status[Status.FAILED.value]
            console.print(
                f"{failed:,} of {counted(counts.samples, 'sample')} failed, more than --max-failed "
                f"{job.config.max_failed}: stopped with {counted(left, 'shard')} left\nraise it and run again to go on"
            )
            return Exit.WRONG, plan
        console.print(f"stopped with {counted(left, 'shard')} left; run the same command again to go on")
    except UserError:
        raise
    except Exception as error:
        if (ending := ending_of(error)) is None:
            raise
        raise ending from None
    return Exit.RESUMABLE, plan


def create_dataset(job: Job) -> None:
    """Make the first write to the output.

    Raises:
        UserError: it cannot be written to, or another job has put other labels there since `prepare` looked.
        UnavailableError: its store does not answer.
    """
    try:
        create_or_open(job.store, job.dataset)
    except UnavailableError:
        raise
    except OSError as error:
        raise UserError(
            f"cannot write to {job.store.url}: {error}\nchoose another --output or mend its permissions"
        ) from None


def stored_plan(job: Job, console: Console) -> Plan:
    """The plan of this command: the stored one, or a new one from listing the source."""
    source = job.reading.source
    plan = open_plan(job.store, job.plan_id)
    if plan is None:
        ticker = Ticker(console)
        plan = make_plan(
            source,
            job.store,
            **job.plan_options,
            on_progress=lambda samples: ticker.count(f"listing {source.url}", samples, "image"),
        )
    images = counted(plan.info.samples, "image", exact=plan.info.exact)
    console.print(f"plan {plan.id}: {images} in {counted(plan.info.shards, 'shard')}")
    if passed := passed_over_text(plan.info.passed_over):
        console.print(f"passed over: {passed}")
    return plan


def label_all(job: Job, plan: Plan, before: Totals, console: Console) -> Counts:
    """Label the remaining shards that no other job labels, in waves. After a stop request it ends once the shards in flight are
    committed.
    """
    run = new_run_name()
    counts = Counts()
    with Claims(job.store, plan, run, job.config.lease_seconds, console) as claims:
        # Before Ray is joined or started: a job that only waits for another one holds nothing.
        wave = claims.next(wave_size(job.config, plan), threading.Event())
        if wave.size:
            write_config(job.store, run, job.config.model_dump(mode="json"))
            now = work_left(plan, job.store) if claims.others else before
            counts = label_waves(job, plan, run, now, claims, wave, console)
    if claims.others:
        theirs = work_left(plan, job.store).shards_before - before.shards_before - counts.shards
        if theirs > 0:
            console.print(f"{', '.join(sorted(claims.others))} committed {counted(theirs, 'shard')} meanwhile")
    return counts


def label_waves(
    job: Job, plan: Plan, run: str, totals: Totals, claims: Claims, wave: np.ndarray, console: Console
) -> Counts:
    """Label a first wave of shard numbers, then all others that can be claimed, with progress and signals."""
    connect(job.config, console)
    watch = ClusterWatch(console, embedded=not cluster_address(job.config))
    try:
        actors = actor_range(job.config, job.load.device)
        teachers = f"{job.spec.name} checked by {job.checker[0].name}" if job.checker else job.spec.name
        console.print(f"run {run}: {teachers} {job.load.precision} on {job.load.device}, teacher actors: {actors}")
        coordinator = start_coordinator(job.config.max_failed, plan.info.samples)
        # Not before: importing Ray Data takes a second, in which Ray starts its workers.
        from da2ray.pipeline.ray_data.execution import label_wave  # noqa: PLC0415

        live = job.config.progress == "live" or (job.config.progress == "auto" and console.is_terminal)
        # This store gives up early: the last progress.json must not keep a run from ending when its store is down.
        store = open_store(job.config.output, job.config.storage_client, retry_s=PROGRESS_RETRY_SECONDS)
        progress = Progress(store, run, totals, console, live=live)
        progress.start(lambda: counts_of(coordinator, timeout=30))
        state, stopping = "failed", StopRequest()
        try:
            with stop_on_signals(coordinator, progress, stopping):
                while wave.size:
                    label_wave(job, list(plan.shards(wave)), coordinator)
                    if counts_of(coordinator, timeout=30).over_budget:
                        stopping.set()
                    wave = claims.next(wave_size(job.config, plan), stopping)
            state = "stopped" if stopping.is_set() else "labelled"
        finally:
            progress.finish("stopped" if stopping.forced else state, last_counts(coordinator))
    finally:
        watch.close()
        ray.shutdown()
    return progress.counts


PROGRESS_RETRY_SECONDS = 10.0


def wave_size(config: PseudolabelConfig, plan: Plan) -> int:
    """Shards of a wave: `--wave-size`, or as many as hold `WAVE_IMAGES`, within `WAVE_SHARDS`."""
    least, most = WAVE_SHARDS
    return config.wave_size or max(least, min(most, WAVE_IMAGES * plan.info.shards // max(1, plan.info.samples)))


CORRECTIONS: Final = 100
"""A correction is needed for each archive within an archive that lies in a row with others, and for each time that files change
while they are read. If files change all the time, the run ends and can be resumed."""

WAVE_IMAGES = 1_280_000
"""An execution of Ray Data holds a task for each shard of its wave."""
WAVE_SHARDS = (5000, 20_000)
"""Between two waves the teachers start anew and commits are listed: half a minute and more. Eight fast GPUs label 5,000 shards of
64 images (manifests, which know no sizes) in minutes."""


def publish(job: Job, console: Console) -> Exit:
    """Fold the commits into the next snapshot and print what the dataset holds."""
    ticker = Ticker(console)
    snapshot = create_snapshot(
        job.store,
        lambda: foldable(job.store, [job.plan_id]),
        job.fingerprint,
        on_progress=lambda done, of: ticker.tick(f"snapshot: {done:,} of {counted(of, 'shard')}"),
    )
    with LiveRows(job.store, snapshot) as rows:
        listing_of(job.store, rows)  # so that the first refresh need not read the index
    counts = ", ".join(f"{count:,} {status}" for status, count in sorted(snapshot.by_status.items()))
    console.print(f"snapshot {snapshot.number}: {counted(snapshot.rows, 'row')} ({counts})")
    for reason, count in sorted(snapshot.by_reason.items()):
        console.print(f"  {reason}: {count:,}")
    console.print(f"labels: da2ray.open_labels({job.store.url!r})")
    failed = snapshot.by_status.get(Status.FAILED.value, 0)
    if job.config.max_failed.exceeded(failed, snapshot.rows, snapshot.rows):
        console.print(f"{counted(failed, 'sample')} failed, more than --max-failed {job.config.max_failed}")
        return Exit.WRONG
    return Exit.DONE
