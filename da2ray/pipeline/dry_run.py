"""Print what a run would do, for `--dry-run`; nothing is written to the output."""

import tempfile

from rich.console import Console

from da2ray.console import counted, number
from da2ray.pipeline.control.progress import work_left
from da2ray.pipeline.prepare import Job
from da2ray.plan.plan import make_plan, open_plan
from da2ray.quality.opinions import PASSES
from da2ray.sources.base import passed_over_text
from da2ray.storage import open_store, redact


def show_plan(job: Job, console: Console) -> None:
    """Print the plan of a job, how much of it is committed, and an estimate of what labelling the rest takes."""
    config = job.config
    with tempfile.TemporaryDirectory(prefix="da2ray-dry-run-") as folder:
        # The stored plan, or else one from listing the source now, in a temporary folder.
        plan = open_plan(job.store, job.plan_id) or make_plan(
            job.reading.source, open_store(folder), **job.plan_options
        )
        totals = work_left(plan, job.store)
    left = totals.samples - totals.samples_before
    console.print(f"plan {job.plan_id} of {redact(config.images)}; nothing was written")
    if passed := passed_over_text(plan.info.passed_over):
        console.print(f"  passed over {passed}")
    console.print(f"  samples    {number(totals.samples, exact=totals.exact)}")
    console.print(f"  shards     {totals.shards:,} of up to {counted(config.shard_size, 'sample')}")
    for head, samples, shards, note in (
        ("committed", totals.samples_before, totals.shards_before, ", to be skipped"),
        ("to label ", left, totals.shards - totals.shards_before, ""),
    ):
        console.print(f"  {head}  {counted(samples, 'sample', exact=totals.exact)} in {counted(shards, 'shard')}{note}")
    console.print(f"  passes     {_passes(job)}")
    console.print(f"  bytes out  about {left * _bytes_per_label(job) / 1e9:,.2f} GB, if images are 4:3")


def _passes(job: Job) -> str:
    """Passes of an image through each network, in units of a pass at the label's size."""
    own = "".join(f", {name} +{PASSES[name]:.2g}" for name in job.consistency)
    total = 1 + sum(PASSES[name] for name in job.consistency)
    teacher = f"{total:.3g} an image through {job.spec.name}" + (f" (label 1{own})" if own else "")
    return teacher + (f", 1 through {job.checker[0].name} (checker)" if job.checker else "")


def _bytes_per_label(job: Job) -> int:
    """An estimate for 4:3 images: 0.62 bytes a pixel at 12 bits, 1.27 at 16 (measured); a mask 0.06 a bit."""
    height, width = job.spec.size_rule(480, 640)
    mask = 0.06 * job.dataset.codec.mask_bits if job.checker or job.consistency else 0
    return int(height * width * ((0.62 if job.dataset.codec.bits <= 12 else 1.27) + mask))
