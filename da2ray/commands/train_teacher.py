"""`jobs/train_teacher.py`: train the embedded teacher, `depth-anything-v2-tiny`, on rendered worlds."""

from typing import Literal

from rich.console import Console

from da2ray.commands.options import Command, CommandConfig, option

TRAINING, FILES = "training", "files"


class TrainTeacherConfig(CommandConfig):
    """Train the embedded tiny teacher on rendered worlds. Run the same command again to go on."""

    scenes: int = option(10240, "worlds to train on", group=TRAINING, ge=1)
    steps: int = option(4000, "training steps; may change between runs", group=TRAINING, ge=1)
    batch_size: int = option(
        32, "pictures of 168 x 224 in a step; a step has more of smaller ones", group=TRAINING, ge=2
    )
    learning_rate: float = option(1e-3, "the peak learning rate", metavar="RATE", group=TRAINING, gt=0)
    seed: int = option(0, "decides the first weights and what each step sees", group=TRAINING, ge=0)
    device: Literal["cpu", "cuda"] = option("cpu", "where it trains", group=TRAINING)
    held_out: int = option(500, "worlds to judge the result on", group=TRAINING, ge=1)

    work: str = option(
        "scratch/train-teacher", "folder for the rendered worlds and the checkpoint", metavar="PATH", group=FILES
    )
    weights: str = option(
        "scratch/train-teacher/tiny.safetensors", "where to write the result, in fp16", metavar="PATH", group=FILES
    )
    initial_weights: str | None = option(
        None,
        "begin with the weights of the same network that an earlier training wrote [random ones]",
        metavar="PATH",
        group=FILES,
    )


def train_teacher(config: TrainTeacherConfig, console: Console) -> int:
    """Train, judge, and write the weights and their model card."""
    from da2ray.worlds import job  # noqa: PLC0415 - torch: `--help` does without it

    return job.train_teacher(config, console)


COMMAND = Command(TrainTeacherConfig, train_teacher)
