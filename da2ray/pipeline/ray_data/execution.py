"""One wave of shards as one Ray Data execution: read -> label -> write."""

import logging
from contextlib import nullcontext

import ray
from ray.data import ActorPoolStrategy, DataContext

from da2ray.errors import UserError
from da2ray.pipeline.control.cluster import actor_range, cluster_address
from da2ray.pipeline.control.coordinator import Stopped
from da2ray.pipeline.control.endings import cause_of, message_of
from da2ray.pipeline.control.retries import LABEL_RETRIES, LOAD_RETRIES, TASK_RETRIES
from da2ray.pipeline.prepare import Job
from da2ray.pipeline.ray_data.alone import without_shared_actors
from da2ray.pipeline.ray_data.datasink import ShardSink
from da2ray.pipeline.ray_data.datasource import ReadTasks, ShardDatasource
from da2ray.pipeline.ray_data.labeler import BLOCKS_IN_FLIGHT, CONCURRENT_BLOCKS, Labeler
from da2ray.pipeline.stages.evidence import WITNESSES
from da2ray.plan.plan import Shard

NO_PROGRESS_SECONDS = 24 * 3600
"""Ray Data's own limit of 30 minutes would fail a job that waits for spot GPUs (ray#65060)."""


def label_wave(job: Job, shards: list[Shard], coordinator: "ray.actor.ActorHandle") -> None:
    """Label and commit the shards; return when all are done, or when a stop request ended the execution.

    Raises:
        UserError: a worker found a mistake of the user, such as a weights file that only the driver has.
    """
    _configure(DataContext.get_current())
    try:
        with nullcontext() if cluster_address(job.config) else without_shared_actors():
            _execute(job, shards, coordinator)
    except Exception as error:
        if cause_of(error, Stopped):
            return
        if mistake := cause_of(error, UserError):
            raise UserError(message_of(mistake)) from None
        raise


def _execute(job: Job, shards: list[Shard], coordinator: "ray.actor.ActorHandle") -> None:
    actors = actor_range(job.config, job.load.device)
    labels = ray.data.read_datasource(
        ShardDatasource(
            shards,
            ReadTasks(
                job.reading,
                job.store,
                job.config.sample_timeout,
                coordinator,
                witnesses=shards[:: max(1, len(shards) // WITNESSES)][:WITNESSES],
            ),
        ),
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
        fn_constructor_args=(job.labelling(processes=actors.high), coordinator),
        # Actors ask for no CPU: on a node with few CPUs they would leave none for decoding.
        num_cpus=0,
        num_gpus=1 if job.load.device == "cuda" else None,
        max_task_retries=LABEL_RETRIES,
    )
    labels.write_datasink(
        ShardSink(job.writing, coordinator),
        ray_remote_args={"num_cpus": task_cpus(job.store.url), "max_retries": TASK_RETRIES},
    )


def _configure(context: DataContext) -> None:
    # Importing Ray Data sets this level to INFO. It reports each execution, and prints a traceback if one is stopped; the run
    # reports what matters itself, and the session's log folder has the rest.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context.target_max_block_size = None  # one block a shard, however large (invariant 1)
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.verbose_progress = False
    context.execution_no_progress_timeout_s = NO_PROGRESS_SECONDS
    context.max_consecutive_actor_init_deaths = LOAD_RETRIES


def task_cpus(url: str) -> float:
    """CPUs that a task which reads or writes at `url` asks for: 1 if the bytes are local, else 0.5, so that one task computes
    while another waits for the store.

    More tasks than needed cost memory: 27 core-ms an image became 37 (luminance, exact, local files, 2 cores).
    """
    return 1.0 if url.startswith("/") else 0.5
