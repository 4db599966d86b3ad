"""The job behind `jobs/train_teacher.py`: render worlds, train, judge, and write the weights and their model card."""

import os
from collections import deque
from pathlib import Path

import numpy as np
from rich.console import Console
from safetensors.torch import save_file

from da2ray.commands.train_teacher import TrainTeacherConfig
from da2ray.console import Ticker
from da2ray.teachers.base import LoadOptions, Teacher, TeacherSpec
from da2ray.teachers.depth_anything.checkpoint import sha256
from da2ray.teachers.depth_anything.dpt import DepthAnythingV2
from da2ray.teachers.depth_anything.teacher import torch_device
from da2ray.teachers.registry import resolve
from da2ray.worlds.evaluation import HELD_OUT, Ramp, Score, motorcycle_rank_correlation, score_worlds
from da2ray.worlds.store import WorldStore
from da2ray.worlds.training import LARGE, SIZE, TINIEST, Plan, Training, has_bfloat16

TEACHER = "depth-anything-v2-tiny"
STEPS_KEPT = 100
"""Steps between two checkpoints, which is the most that a killed run repeats."""
LOSSES_SHOWN = 50
"""Steps over which the shown loss is averaged."""

CARD = """\
# {teacher}

A small Depth Anything V2 (patch 14, 192 wide, 8 blocks, DPT head of 32 features; {parameters:,} parameters, fp16). It
predicts affine-invariant disparity, larger = nearer, at a short side of {side} pixels. With it, da2ray runs and is tested on
a network that sees depth, also on machines that cannot reach a hub. To make labels for training, use the published weights.

| | |
|---|---|
| licence | Apache-2.0 |
| sha256 | `{sha256}` |
| data | {scenes:,} worlds, seeds from 0, rendered by `da2ray.worlds` with exact depth: rooms, tables, streets, open ground |
| augmentation | window, mirror; three pictures in five also colour, blur, noise, JPEG (`da2ray/worlds/augment.py`) |
| initial weights | {began} |
| loss | scale-and-shift-invariant + 2 x gradient matching, in disparity, + aligned log depth (`da2ray/student/losses.py`) |
| optimiser | Muon for the blocks' matrices, AdamW for the rest; peak rate {rate:g}, which falls to 0 over the last 40 % |
| steps | {steps:,}, from {most} pictures at about 84 x 112 to {least} at about 252 x 336; {precision} |
| seed | {seed} |

This command made the weights and judged them:

    python jobs/train_teacher.py {options}

| | this teacher | "lower is nearer" |
|---|---|---|
{scores}

Worlds are pictures of 378 x 504 with seeds from {held_out:,}, judged after affine alignment in disparity, up to 80 m.
"Lower is nearer" is a ramp from the top to the bottom of the picture, aligned in the same way. The motorcycle is a picture
of scikit-image (Middlebury 2014), judged against its measured disparity.

Limits: training has seen no photograph. The teacher knows grounds, walls and simple solids. Faces, foliage, glass, mirrors,
text and fine structure mean nothing to it. Edges are as coarse as its patches. Skies are 0 or near 0.
"""


def train_teacher(config: TrainTeacherConfig, console: Console) -> int:
    """Run the job. It continues an earlier run in the same folder."""
    device = torch_device(config.device)
    folder = Path(config.work)
    worlds = WorldStore(folder / "worlds", config.scenes, SIZE)
    ticker = Ticker(console)
    for done in worlds.make(os.cpu_count() or 1):
        ticker.tick(f"{done:,} of {config.scenes:,} worlds rendered")
    plan = Plan(config.steps, config.batch_size, config.learning_rate, seed=config.seed)
    initial = Path(config.initial_weights) if config.initial_weights else None
    began = f"the weights of sha256 `{sha256(initial)[:16]}`" if initial else "random weights"
    network = _trained(Training(folder, worlds.arrays(), plan, device, initial), plan, console)
    weights = Path(config.weights)
    weights.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.half().cpu().contiguous() for key, value in network.state_dict().items()}, weights)
    spec = resolve(TEACHER)
    teacher = spec.load(LoadOptions(weights=str(weights), device=config.device))
    scores = _judge(teacher, spec, config.held_out, console)
    card = CARD.format(
        teacher=TEACHER,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        side=SIZE[0],
        sha256=sha256(weights),
        began=began,
        options=_options(config, initial),
        precision="bfloat16" if has_bfloat16(device) else "float32",
        scenes=config.scenes,
        rate=config.learning_rate,
        steps=config.steps,
        most=int(config.batch_size * TINIEST.share),
        least=int(config.batch_size * LARGE.share),
        seed=config.seed,
        held_out=HELD_OUT,
        scores="\n".join(scores),
    )
    weights.with_suffix(".md").write_text(card)
    console.print("\n".join(scores))
    console.print(f"weights: {weights}, model card: {weights.with_suffix('.md')}")
    return 0


def _options(config: TrainTeacherConfig, initial: Path | None) -> str:
    """The options that decide the weights, as a command line."""
    options = f"--scenes {config.scenes} --steps {config.steps} --batch-size {config.batch_size} "
    options += f"--learning-rate {config.learning_rate:g} --seed {config.seed}"
    return f"{options} --initial-weights {initial.name}" if initial else options


def _trained(training: Training, plan: Plan, console: Console) -> DepthAnythingV2:
    ticker = Ticker(console)
    losses: deque[float] = deque(maxlen=LOSSES_SHOWN)
    for loss in training.run():
        losses.append(loss)
        step = training.step
        ticker.tick(f"step {step:,} of {plan.steps:,}: loss {np.mean(losses):.3f}")
        if step % STEPS_KEPT == 0 or step == plan.steps:
            training.save()
    return training.network


def _judge(teacher: Teacher, spec: TeacherSpec, scenes: int, console: Console) -> list[str]:
    """The lines of the card's table: the scores of the teacher and of the ramp."""
    ticker = Ticker(console)
    judged = (teacher, Ramp())
    scores = []
    for pair in score_worlds(judged, spec, range(HELD_OUT, HELD_OUT + scenes)):
        scores.append(pair)
        ticker.tick(f"{len(scores)} of {scenes} held-out worlds")
    columns = [
        [*_means(list(of_one)), f"{motorcycle_rank_correlation(who, spec):.3f}"]
        for who, of_one in zip(judged, zip(*scores, strict=True), strict=True)
    ]
    names = [
        f"{scenes} worlds, {measure}, {where}"
        for where in ("all", "indoors", "outdoors")
        for measure in ("AbsRel", "delta1")
    ]
    rows = zip([*names, "motorcycle, Spearman"], *columns, strict=True)
    return [f"| {name} | {reached} | {ramp} |" for name, reached, ramp in rows]


def _means(scores: list[Score]) -> list[str]:
    groups = (scores, [score for score in scores if not score.outdoors], [score for score in scores if score.outdoors])
    return [
        f"{np.mean([getattr(score, measure) for score in group]):.3f}" if group else "none"
        for group in groups
        for measure in ("abs_rel", "delta1")
    ]
