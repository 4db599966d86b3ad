"""The options of `jobs/train_teacher.py`."""

from typing import Literal

from pydantic import Field

from da2ray.commands.options import JobConfig


class TrainTeacherConfig(JobConfig):
    """Train the embedded tiny teacher on rendered worlds; run the same command again to go on."""

    work: str = Field("scratch/train-teacher", description="folder for rendered worlds and the checkpoint")
    scenes: int = Field(10240, ge=1, description="worlds to train on")
    steps: int = Field(4000, ge=1, description="may be changed between runs")
    batch_size: int = Field(32, ge=2, description="pictures of 168 x 224 in a step; of smaller ones more")
    learning_rate: float = Field(1e-3, gt=0, description="at its peak")
    seed: int = Field(0, ge=0, description="of the first weights and of what each step sees")
    device: Literal["cpu", "cuda"] = Field("cpu", description="where it trains")
    held_out: int = Field(500, ge=1, description="worlds to judge the result on")
    initial_weights: str | None = Field(
        None,
        description="weights of the same network to begin with: a file that an earlier training wrote [random ones]",
    )
    weights: str = Field("scratch/train-teacher/tiny.safetensors", description="where the result is written, in fp16")
