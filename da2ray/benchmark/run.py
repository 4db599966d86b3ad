"""`jobs/benchmark.py`: tables of single stages, the job end to end, and plain Ray Data, from one run on one machine."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from da2ray.benchmark.photos import write_mixed_set
from da2ray.benchmark.planning import measure_planning
from da2ray.benchmark.processes import timed
from da2ray.benchmark.resume import measure_resume
from da2ray.benchmark.sources import PACKERS
from da2ray.benchmark.stages import Measured, decode_only, teacher_only, write_only
from da2ray.benchmark.weights import write_seeded_weights
from da2ray.commands.benchmark import BenchmarkConfig
from da2ray.errors import UserError
from da2ray.images.decode import DecodeMode, Limits
from da2ray.labels.codec import default_bits
from da2ray.pipeline.stages.decoding import Decoding
from da2ray.pipeline.stages.device import share_cores
from da2ray.pipeline.stages.reading import Reading
from da2ray.plan.plan import make_plan
from da2ray.sources import open_source
from da2ray.storage import open_store
from da2ray.teachers.base import LoadOptions
from da2ray.teachers.registry import resolve

STAGE_IMAGES = 128
"""Images on which single stages are measured. Memory holds their pixels (about 1 GB at 12 megapixels each)."""
SMALL_SHARE = 4
"""The job runs end to end on all images and on one in this many. The difference counts, so start-up does not."""
JOB = Path(__file__).parents[2] / "jobs" / "pseudolabel.py"


def benchmark(config: BenchmarkConfig, console: Console) -> int:
    """Measure what `config` asks for, and print it."""
    work = Path(config.work)
    if config.resume_shards:
        return measure_resume(config.resume_shards, work, console)
    if config.plan:
        return measure_planning(config.plan_keys, work, console)
    if config.refresh_rows:
        from da2ray.benchmark.refresh import measure_refresh  # noqa: PLC0415 - as below

        return measure_refresh(config.refresh_rows, console)
    # These import what the other measurements do not need.
    if config.dedupe_hashes:
        from da2ray.benchmark.dedupe import measure_dedupe  # noqa: PLC0415

        return measure_dedupe(config.dedupe_hashes, console)
    if config.quality:
        from da2ray.benchmark.quality import TEACHER, measure_quality  # noqa: PLC0415

        teacher = config.teacher if "teacher" in config.model_fields_set else TEACHER
        return measure_quality(config.quality, work, console, teacher, config.weights)
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

    parts = _parts(images, work, config.limit)
    plains = [
        _slope(way, partial(_plain_command, config, way=way, options=options, work=work), parts, work)
        for way in config.plain
    ]
    if plains:
        _print(console, "plain Ray Data", plains, plains)
    for mode in config.decode:
        command = partial(_job_command, config, mode=mode, options=options, work=work)
        stages = _stages(config, images, DecodeMode(mode), options, work)
        whole = _slope("end to end", command, parts, work)
        packed = [_of_source(kind, command, parts, work) for kind in config.sources]
        _print(console, f"--decode {mode}", [*stages, whole, *packed], plains)
        console.print(f"  end to end / teacher only: {whole.per_second / stages[1].per_second:.2f}")
        for each in packed:
            cpu = whole.cpu_ms / each.cpu_ms
            console.print(
                f"  {each.name} / loose files: {each.per_second / whole.per_second:.2f} (by CPU time {cpu:.2f})"
            )
    return 0


def _stages(config: BenchmarkConfig, images: str, mode: DecodeMode, options: LoadOptions, work: Path) -> list[Measured]:
    """Measure decoding, teacher and writing as single stages."""
    spec = resolve(config.teacher)
    source = open_source(images, "auto")
    store = open_store(str(work / f"stages-{mode}"))
    limit = min(config.limit or STAGE_IMAGES, STAGE_IMAGES)
    plan = make_plan(
        source, store, shard_size=config.shard_size, shard_bytes=64 << 20, limit=limit, fingerprint="benchmark"
    )
    reading = Reading(source, spec.size_rule, Limits(), Decoding(mode), config.batch_size)
    shards = list(plan.shards(np.arange(plan.info.shards)))
    bits = default_bits(spec.kind)
    workers = share_cores(spec, options, processes=1)
    decoded, blocks = decode_only(reading, shards, store)
    labelled, labels = teacher_only(
        spec.load(options), spec.kind, bits, blocks, scaled=reading.decoding.scaled, workers=workers
    )
    written = write_only(labels, store, kind=spec.kind.value, format=config.format)
    return [decoded, labelled, written]


def _job_command(config: BenchmarkConfig, part: Path, mode: str, options: LoadOptions, work: Path) -> list[str]:
    command = [
        sys.executable,
        str(JOB),
        "--images",
        str(part),
        "--output",
        str(work / f"labels-{mode}"),
        "--decode",
        mode,
    ]
    command += ["--teacher", config.teacher, "--device", options.device, "--precision", options.precision]
    command += ["--shard-size", str(config.shard_size), "--batch-size", str(config.batch_size)]
    return [*command, "--format", config.format.value, *(["--weights", options.weights] if options.weights else [])]


def _plain_command(config: BenchmarkConfig, part: Path, way: str, options: LoadOptions, work: Path) -> list[str]:
    job = {
        "images": str(part.absolute()),
        "output": str((work / "plain").absolute()),
        "teacher": config.teacher,
        "weights": options.weights,
        "device": options.device,
        "precision": options.precision,
        "batch_size": config.batch_size,
        "way": way,
    }
    return [sys.executable, "-m", "da2ray.benchmark.plain_ray", json.dumps(job)]


def _of_source(kind: str, command: Callable[[Path], list[str]], parts: Sequence[Path], work: Path) -> Measured:
    """The job end to end on the same images in files of another kind."""
    folders = {part: part.with_name(f"{kind}-{part.name}") for part in parts}
    for part, folder in folders.items():
        if not folder.exists():
            PACKERS[kind](sorted(part.iterdir()), folder)
    return _slope(f"end to end, {kind}", lambda part: command(folders[part]), parts, work)


def _slope(name: str, command: Callable[[Path], list[str]], parts: Sequence[Path], work: Path) -> Measured:
    """Run a command on a quarter of the images and on all of them. The difference is the cost of the rest without start-up."""
    usages = []
    for part in parts:
        for output in (*work.glob("labels-*"), work / "plain"):
            shutil.rmtree(output, ignore_errors=True)
        log = work / "logs" / f"{name}-{part.name}.log".replace(" ", "-")
        usage = timed(command(part), log)
        if usage.exit_code:
            raise UserError(f"{name} ended with exit code {usage.exit_code}: see {log}")
        usages.append(usage)
    small, whole = usages
    images = len(list(parts[1].iterdir())) - len(list(parts[0].iterdir()))
    return Measured(name, images, whole.wall - small.wall, whole.cpu - small.cpu, os.cpu_count() or 1)


def _parts(images: str, work: Path, limit: int | None) -> tuple[Path, Path]:
    """Make two folders of links: a quarter of the images, mixed like the whole set, and all of them."""
    found = sorted(path for path in Path(images).rglob("*") if path.is_file())[:limit]
    # Take runs of two, because a made set alternates between small and large images.
    quarter = [path for index, path in enumerate(found) if index // 2 % SMALL_SHARE == 0]
    folders = work / "small", work / "whole"
    for folder, paths in zip(folders, (quarter, found), strict=True):
        folder.mkdir(parents=True)
        for index, path in enumerate(paths):
            (folder / f"{index:06d}{path.suffix}").symlink_to(path.absolute())
    return folders


def _seeded_weights(config: BenchmarkConfig, work: Path) -> str:
    return str(write_seeded_weights(config.teacher, work / "weights"))


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def _print(console: Console, title: str, rows: Sequence[Measured], plains: Sequence[Measured]) -> None:
    table = Table(title=title, title_justify="left")
    against = [f"x {plain.name}" for plain in plains]
    for column in ("", "images", "images/s", "CPU ms/image", "wall x cores ms/image", *against):
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        ratios = [f"{row.per_second / plain.per_second:.1f}" if row.cores == plain.cores else "" for plain in plains]
        figures = (f"{row.per_second:.1f}", f"{row.cpu_ms:.1f}", f"{row.wall_ms:.1f}")
        table.add_row(row.name, str(row.images), *figures, *ratios)
    console.print(table)
