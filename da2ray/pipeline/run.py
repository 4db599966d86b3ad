"""The main job: plan, label, commit, resume, snapshot. Read `pseudolabel` downwards for the whole of it."""

import tempfile
import threading

import numpy as np
import ray
from ray.data import ActorPoolStrategy, DataContext
from rich.console import Console

from da2ray.commands.pseudolabel import PseudolabelConfig
from da2ray.console import Ticker
from da2ray.errors import CorruptError, Exit, Status, UnavailableError, UserError
from da2ray.images.decode import DecodeMode
from da2ray.labels.dataset import create_or_open
from da2ray.labels.runs import new_run_name, write_config
from da2ray.labels.snapshots import create_snapshot
from da2ray.pipeline.control.claims import Claims
from da2ray.pipeline.control.cluster import actor_range, cluster_address, connect
from da2ray.pipeline.control.coordinator import Counts, Stopped, counts_of, start_coordinator
from da2ray.pipeline.control.lost import ClusterWatch
from da2ray.pipeline.control.progress import Progress, Totals
from da2ray.pipeline.control.stopping import cause_of, first_line, stop_on_signals
from da2ray.pipeline.prepare import Job, prepare
from da2ray.pipeline.ray_data.datasink import ShardSink, Writing
from da2ray.pipeline.ray_data.datasource import ShardDatasource
from da2ray.pipeline.ray_data.labeler import BLOCKS_IN_FLIGHT, CONCURRENT_BLOCKS, Labeler
from da2ray.plan.plan import Plan, Shard, list_plans, make_plan, open_plan
from da2ray.quality.consistency import PASSES
from da2ray.storage import Store, open_store, printable, redact


def pseudolabel(config: PseudolabelConfig, console: Console) -> Exit:
    """Label a source into a dataset, or go on where an earlier run of the same command stopped.

    Raises:
        UserError: something that the user can mend, before any GPU work.
    """
    job = prepare(config, console)
    if config.dry_run:
        show_plan(job, console)
        return Exit.DONE
    create_dataset(job)
    plan = stored_plan(job, console)
    totals = work_left(plan, job.store)
    if totals.shards_before:
        console.print(
            f"resuming: {totals.shards_before:,} of {totals.shards:,} shards are committed "
            f"({totals.samples_before:,} images)"
        )
    try:
        counts = label_all(job, plan, totals, console) if totals.shards_before < totals.shards else Counts()
        left = len(plan.remaining(job.store))
        if not left:
            return publish(job, console)
        if counts.over_budget:
            failed = counts.by_status[Status.FAILED.value]
            console.print(
                f"{failed:,} of {counts.samples:,} samples failed, more than --max-failed {job.config.max_failed}: "
                f"stopped with {left:,} shards left\nraise it and run again to go on"
            )
            return Exit.TOO_MANY_FAILED
        console.print(f"stopped with {left:,} shards left; run the same command again to go on")
    except UserError:
        raise
    except KeyboardInterrupt:
        console.print("ended at once; run the same command again to go on")
    except Exception as error:
        if trouble := cause_of(error, CorruptError):  # it stays so, however often it is read
            raise UserError(str(trouble)) from None
        if trouble := cause_of(error, ray.exceptions.GetTimeoutError):  # an OSError too
            console.print(f"the cluster does not answer: {first_line(trouble)}\nrun the same command again to go on")
        elif trouble := cause_of(error, OSError):
            console.print(f"a store failed: {printable(trouble)}\nrun the same command again to go on")
        elif (trouble := cause_of(error, WORKERS_DIED)) and not getattr(trouble, "actor_init_failed", False):
            console.print(
                f"workers died, and again when their shard was tried {TASK_RETRIES} times more: {first_line(trouble)}\n"
                "run the same command again to go on"
            )
        else:
            raise
    return Exit.RESUMABLE


WORKERS_DIED = (
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.ActorDiedError,
    ray.exceptions.ActorUnavailableError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.LocalRayletDiedError,
    ray.exceptions.RaySystemError,
)


def work_left(plan: Plan, store: Store) -> Totals:
    """Plan minus commits (invariant 3), from one listing and the plan's column of sizes."""
    remaining, sizes = plan.remaining(store), plan.sizes()
    before = plan.info.samples - int(sizes[remaining].sum())
    return Totals(plan.info.samples, plan.info.shards, before, plan.info.shards - len(remaining))


def create_dataset(job: Job) -> None:
    """The first write to the output.

    Raises:
        UserError: it cannot be written to, or holds other labels since `prepare` looked.
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
        said = Ticker(console)
        plan = make_plan(
            source,
            job.store,
            **job.plan_options,
            on_progress=lambda samples: said.tick(f"listing {source.url}: {samples:,} images"),
        )
    console.print(f"plan {plan.id}: {plan.info.samples:,} images in {plan.info.shards:,} shards")
    return plan


def label_all(job: Job, plan: Plan, before: Totals, console: Console) -> Counts:
    """Label what is left and no other job labels, wave by wave, or until it is stopped; what was in flight then is committed."""
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
            console.print(f"{theirs:,} shards were committed meanwhile by {', '.join(sorted(claims.others))}")
    return counts


def wave_size(config: PseudolabelConfig, plan: Plan) -> int:
    """Shards of a wave: as many as have `WAVE_IMAGES`, within `WAVE_SHARDS`, unless it was asked for."""
    least, most = WAVE_SHARDS
    return config.wave_size or max(least, min(most, WAVE_IMAGES * plan.info.shards // max(1, plan.info.samples)))


WAVE_IMAGES = 1_280_000
"""Their keys and URIs are with the driver, some 130 MB."""
WAVE_SHARDS = (5000, 20_000)
"""Between two waves teachers start anew and commits are listed, half a minute and more; 5,000 shards of 64 images (manifests,
which know no sizes) are labelled in minutes by eight fast GPUs."""


def label_waves(
    job: Job, plan: Plan, run: str, totals: Totals, claims: Claims, wave: np.ndarray, console: Console
) -> Counts:
    """Label a first wave of shard numbers, and then what else can be claimed, with progress and signals."""
    connect(job.config)
    watch = ClusterWatch(console, embedded=not cluster_address(job.config))
    try:
        actors = actor_range(job.config, job.load.device)
        teachers = f"{job.spec.name} checked by {job.checker[0].name}" if job.checker else job.spec.name
        console.print(
            f"run {run}: {teachers} {job.load.precision} on {job.load.device}, {actors.low}-{actors.high} actors"
        )
        coordinator = start_coordinator(job.config.max_failed, plan.info.samples)
        live = job.config.progress == "live" or (job.config.progress == "auto" and console.is_terminal)
        # With little patience of its own: its last word must not keep a run from ending whose store is down.
        store = open_store(job.config.output, job.config.storage_client, retry_s=PROGRESS_RETRY_SECONDS)
        progress = Progress(store, run, totals, console, live=live)
        progress.start(lambda: counts_of(coordinator, timeout=30))
        state = "failed"
        try:
            with stop_on_signals(coordinator, progress) as stopping:
                while wave.size:
                    label_wave(job, plan, list(plan.shards(wave)), coordinator)
                    if counts_of(coordinator, timeout=30).over_budget:
                        stopping.set()
                    wave = claims.next(wave_size(job.config, plan), stopping)
            state = "stopped" if stopping.is_set() else "labelled"
        finally:
            progress.finish(state, last_counts(coordinator))
    finally:
        watch.close()
        ray.shutdown()
    return progress.counts


def label_wave(job: Job, plan: Plan, shards: list[Shard], coordinator: "ray.actor.ActorHandle") -> None:
    """One Ray Data execution, to its end or until it was asked to stop."""
    context = DataContext.get_current()
    context.target_max_block_size = None  # one block a shard, however large (invariant 1)
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.verbose_progress = False
    context.execution_no_progress_timeout_s = NO_PROGRESS_SECONDS
    context.max_consecutive_actor_init_deaths = LOAD_RETRIES
    scaled = job.reading.mode is DecodeMode.SCALED
    writing = Writing(
        store=job.store,
        plan=plan.id,
        format=job.config.format,
        kind=job.spec.kind.value,
        fingerprint=job.fingerprint,
        mask_bits=job.dataset.codec.mask_bits,
        camera=job.camera.value,
    )
    sink = ShardSink(writing, coordinator)
    actors = actor_range(job.config, job.load.device)
    labels = ray.data.read_datasource(
        ShardDatasource(shards, job.reading, job.config.sample_timeout, coordinator),
        override_num_blocks=len(shards),
        num_cpus=task_cpus(job.reading.source.url),
        ray_remote_args={"max_retries": TASK_RETRIES},
    ).map_batches(
        Labeler,
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            min_size=actors.low,
            max_size=actors.high,
            max_tasks_in_flight_per_actor=BLOCKS_IN_FLIGHT,
            max_concurrent_calls_per_actor=CONCURRENT_BLOCKS,
        ),
        fn_constructor_kwargs={
            "spec": job.spec,
            "options": job.load,
            "checker": job.checker,
            "consistency": job.consistency,
            "bits": job.dataset.codec.bits,
            "mask_bits": job.dataset.codec.mask_bits,
            "scaled": scaled,
            "actors": actors.high,
            "sample_timeout": job.config.sample_timeout,
            "coordinator": coordinator,
        },
        # Actors ask for no CPU: on a node with few of them they would leave none for decoding.
        num_cpus=0,
        num_gpus=1 if job.load.device == "cuda" else None,
        max_task_retries=LABEL_RETRIES,
    )
    try:
        labels.write_datasink(sink, ray_remote_args={"num_cpus": task_cpus(job.store.url), "max_retries": TASK_RETRIES})
    except Exception as error:
        if cause_of(error, Stopped):
            return
        if mistake := cause_of(error, UserError):  # on a worker: a weights file that only the driver has, say
            raise UserError(str(mistake)) from None
        raise


PROGRESS_RETRY_SECONDS = 10.0
NO_PROGRESS_SECONDS = 24 * 3600
"""Ray Data's own limit of 30 minutes fails a job that waits for spot GPUs (ray#65060)."""


TASK_RETRIES = 3
"""After a worker died. Ray Data's default is for ever: an image that kills its process would be tried 15 times a minute."""
LOAD_RETRIES = 3
"""Of teachers that fail to load, one after another. Ray Data's default is none: one new node that cannot fetch the weights would
end the run for all."""
LABEL_RETRIES = 32
"""Of a shard whose teacher's process died: an image that kills it is found by the fourth death, another one by the sixth."""


def task_cpus(url: str) -> float:
    """CPUs that a task which reads or writes at `url` asks for: one where the bytes are local, else half of one, so that one
    task computes while another waits for the store. More tasks than needed cost memory: 27 core-ms an image became 37
    (luminance, exact, local files, 2 cores).
    """
    return 1.0 if url.startswith("/") else 0.5


def last_counts(coordinator: "ray.actor.ActorHandle") -> Counts | None:
    """None where the cluster is what failed: the last polled counts stand."""
    try:
        return counts_of(coordinator, timeout=10)
    except ray.exceptions.RayError:
        return None


def publish(job: Job, console: Console) -> Exit:
    """Fold the commits into the next snapshot and say what the dataset holds."""
    said = Ticker(console)
    snapshot = create_snapshot(
        job.store,
        lambda: [stored.id for stored in list_plans(job.store)],
        job.fingerprint,
        on_progress=lambda done, of: said.tick(f"snapshot: {done:,} of {of:,} shards"),
    )
    counts = ", ".join(f"{count:,} {status}" for status, count in sorted(snapshot.by_status.items()))
    console.print(f"snapshot {snapshot.number}: {snapshot.rows:,} rows ({counts})")
    for reason, count in sorted(snapshot.by_reason.items()):
        console.print(f"  {reason}: {count:,}")
    console.print(f"labels: da2ray.open_labels({job.store.url!r})")
    failed = snapshot.by_status.get(Status.FAILED.value, 0)
    if job.config.max_failed.exceeded(failed, snapshot.rows, snapshot.rows):
        console.print(f"{failed:,} samples failed, more than --max-failed {job.config.max_failed}")
        return Exit.TOO_MANY_FAILED
    return Exit.DONE


def show_plan(job: Job, console: Console) -> None:
    """What a run would do, without writing anything to the output."""
    config = job.config
    with tempfile.TemporaryDirectory(prefix="da2ray-dry-run-") as folder:
        # The stored plan, or one of today's listing in a folder of its own.
        plan = open_plan(job.store, job.plan_id) or make_plan(
            job.reading.source, open_store(folder), **job.plan_options
        )
        totals = work_left(plan, job.store)
    left = totals.samples - totals.samples_before
    console.print(f"plan {job.plan_id} of {redact(config.images)}; nothing was written")
    console.print(f"  samples    {totals.samples:,}")
    console.print(f"  shards     {totals.shards:,} of up to {config.shard_size:,} samples")
    console.print(f"  committed  {totals.samples_before:,} samples in {totals.shards_before:,} shards, to be skipped")
    console.print(f"  to label   {left:,} samples in {totals.shards - totals.shards_before:,} shards")
    console.print(f"  passes     {passes(job)}")
    console.print(f"  bytes out  about {left * bytes_per_label(job) / 1e9:,.2f} GB, if images are 4:3")


def passes(job: Job) -> str:
    """How often an image goes through a network, counted in pixels of the label's size."""
    own = "".join(f", {name} +{PASSES[name]:.2g}" for name in job.consistency)
    total = 1 + sum(PASSES[name] for name in job.consistency)
    said = f"{total:.3g} an image through {job.spec.name}" + (f" (label 1{own})" if own else "")
    return said + (f", 1 through {job.checker[0].name} (checker)" if job.checker else "")


def bytes_per_label(job: Job) -> int:
    """An estimate for 4:3 images: 0.62 bytes a pixel at 12 bits, 1.27 at 16 (storage.md); a mask 0.06 a bit."""
    height, width = job.spec.size_rule(480, 640)
    mask = 0.06 * job.dataset.codec.mask_bits if job.checker or job.consistency else 0
    return int(height * width * ((0.62 if job.dataset.codec.bits <= 12 else 1.27) + mask))
