"""`jobs/benchmark.py`: one table of stages, end to end and the plain Ray Data way, from one run on one machine."""

import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from da2ray.benchmark.photos import write_mixed_set
from da2ray.benchmark.processes import Usage, timed
from da2ray.benchmark.stages import Measured, decode_only, teacher_only, write_only
from da2ray.config import BenchmarkConfig
from da2ray.errors import UserError
from da2ray.images import DecodeMode, Limits
from da2ray.labels.codec import default_bits
from da2ray.pipeline.cluster import torch_threads
from da2ray.pipeline.reading import Reading
from da2ray.plan import make_plan
from da2ray.sources import open_source
from da2ray.storage import open_store
from da2ray.teachers.base import LoadOptions
from da2ray.teachers.registry import resolve

STAGE_IMAGES = 128
"""Images that the stages are measured on by themselves: their pixels are held in memory (about 1 GB at 12 megapixels a piece)."""
SMALL_SHARE = 4
"""End to end is measured twice, on all images and on a quarter, and the difference counts: what is beyond start-up."""
JOB = Path(__file__).parents[2] / "jobs" / "pseudolabel.py"


def benchmark(config: BenchmarkConfig, console: Console) -> int:
    """Measure and print; see `BenchmarkConfig`."""
    work = Path(config.work)
    if config.resume_shards:
        return resume(config.resume_shards, work, console)
    shutil.rmtree(work, ignore_errors=True)
    images = config.images or str(work / "images")
    if config.make_images:
        console.print(f"writing {config.make_images} JPEGs, half around 500 x 375, half 1 to 12 megapixels")
        write_mixed_set(Path(images), config.make_images)
    elif config.images is None:
        raise UserError("--images or --make-images is required")
    weights = _seeded_weights(config, work) if config.seeded_weights else config.weights
    device = config.device if config.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    options = LoadOptions(weights, device, config.precision or ("bf16" if device == "cuda" else "fp32"))
    cores = os.cpu_count() or 1
    console.print(f"{config.teacher} {options.precision} on {_device_name(device)}; {cores} cores; {images}")

    plain = (
        _slope("plain Ray Data", _plain_command(config, images, options, work), config, images, work, cores)
        if config.plain
        else None
    )
    if plain:
        _print(console, "the plain way", [plain], plain)
    for mode in config.decode:
        stages = _stages(config, images, DecodeMode(mode), options, work)
        command = _job_command(config, images, mode, options, work)
        whole = _slope("end to end", command, config, images, work, cores)
        _print(console, f"--decode {mode}", [*stages, whole], plain)
        teacher = stages[1]
        console.print(f"  end to end / teacher only: {whole.per_second / teacher.per_second:.2f}")
    return 0


def _stages(config: BenchmarkConfig, images: str, mode: DecodeMode, options: LoadOptions, work: Path) -> list[Measured]:
    """Decode, teacher and write by themselves, on images spread over the whole set."""
    spec = resolve(config.teacher)
    source = open_source(images, "auto")
    store = open_store(str(work / f"stages-{mode}"))
    limit = min(config.limit or STAGE_IMAGES, STAGE_IMAGES)
    plan = make_plan(
        source, store, shard_size=config.shard_size, shard_bytes=64 << 20, limit=limit, fingerprint="benchmark"
    )
    reading = Reading(source, spec.size_rule, Limits(), mode, config.batch_size)
    shards = list(plan.shards(np.arange(plan.info.shards)))
    bits = default_bits(spec.kind)
    torch.set_num_threads(torch_threads(1))
    decoded, blocks = decode_only(reading, shards)
    labelled, labels = teacher_only(spec.load(options), bits, blocks, scaled=mode is DecodeMode.SCALED)
    written = write_only(labels, store, kind=spec.kind.value, format=config.format.value)
    return [decoded, labelled, written]


Command = tuple[list[str], str]
"""A command, and the option or field by which it takes a folder of images."""


def _job_command(config: BenchmarkConfig, images: str, mode: str, options: LoadOptions, work: Path) -> list[str]:
    command = [sys.executable, str(JOB), "--images", images, "--output", str(work / f"labels-{mode}"), "--decode", mode]
    command += ["--teacher", config.teacher, "--device", options.device, "--precision", options.precision]
    command += [
        "--shard-size",
        str(config.shard_size),
        "--batch-size",
        str(config.batch_size),
        "--format",
        config.format.value,
    ]
    return command + (["--weights", options.weights] if options.weights else [])


def _plain_command(config: BenchmarkConfig, images: str, options: LoadOptions, work: Path) -> list[str]:
    job = {
        "images": images,
        "output": str((work / "plain").absolute()),
        "teacher": config.teacher,
        "weights": options.weights,
        "device": options.device,
        "precision": options.precision,
        "batch_size": config.batch_size,
    }
    return [sys.executable, "-m", "da2ray.benchmark.plain_ray", json.dumps(job)]


def _slope(name: str, command: Sequence[str], config: BenchmarkConfig, images: str, work: Path, cores: int) -> Measured:
    """A command on a quarter of the images and on all of them: what the rest cost."""
    small = _link_part(images, work / "small", SMALL_SHARE, config.limit)
    whole = _link_part(images, work / "whole", 1, config.limit)
    usages: list[Usage] = []
    for folder in (small, whole):
        arguments = [part.replace(images, str(folder)) if part == images else part for part in command]
        if name.startswith("plain"):
            arguments[-1] = json.dumps(json.loads(command[-1]) | {"images": str(folder.absolute())})
        _clear_outputs(work)
        usage = timed(arguments, work / "logs" / f"{name}-{folder.name}.log".replace(" ", "-"))
        if usage.exit_code:
            raise UserError(f"{name} ended with exit code {usage.exit_code}: see {work}/logs")
        usages.append(usage)
    count = len(list(whole.iterdir())) - len(list(small.iterdir()))
    return Measured(name, count, usages[1].wall - usages[0].wall, usages[1].cpu - usages[0].cpu, cores)


def _link_part(images: str, folder: Path, every: int, limit: int | None) -> Path:
    """A folder of links to every n-th image of a local folder."""
    if not folder.exists():
        folder.mkdir(parents=True)
        found = sorted(path for path in Path(images).rglob("*") if path.is_file())[:limit]
        # Neighbouring images alternate in size: take whole runs, so that a part is mixed like the whole.
        for index, path in enumerate(found):
            if index // 2 % every == 0:
                os.link(path, folder / f"{index:06d}{path.suffix}")
    return folder


def _clear_outputs(work: Path) -> None:
    for output in (*work.glob("labels-*"), work / "plain"):
        shutil.rmtree(output, ignore_errors=True)


def _seeded_weights(config: BenchmarkConfig, work: Path) -> str:
    from da2ray.benchmark.weights import write_seeded_weights  # noqa: PLC0415

    return str(write_seeded_weights(config.teacher, work / "weights"))


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def _print(console: Console, title: str, rows: Sequence[Measured], plain: Measured | None) -> None:
    table = Table(title=title, title_justify="left")
    for column in ("", "images", "images/s", "core-ms/image", "cores", "x plain"):
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        against = f"{row.per_second / plain.per_second:.1f}" if plain and row.cores == plain.cores else ""
        table.add_row(row.name, str(row.images), f"{row.per_second:.1f}", f"{row.core_ms:.1f}", str(row.cores), against)
    console.print(table)


def resume(shards: int, work: Path, console: Console) -> int:
    """How long a run over a plan of that many shards, three quarters of them committed, takes to know what is left."""
    from da2ray.benchmark.resume import simulate  # noqa: PLC0415

    output, plan_id = simulate(shards, work / "resume", console)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    from da2ray.plan import open_plan  # noqa: PLC0415

    store = open_store(str(output))
    plan = open_plan(store, plan_id)
    assert plan is not None  # noqa: S101 - simulate wrote it
    remaining = plan.remaining(store)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    console.print(
        f"{len(remaining):,} of {shards:,} shards left: known after {seconds:.1f} s, peak memory {peak / 1024:.0f} MB (before: {before / 1024:.0f} MB)"
    )
    return 0
