"""Train the embedded teacher, `depth-anything-v2-tiny`, on rendered worlds: `--help` lists the options.

python jobs/train_teacher.py
"""

import sys

from da2ray.commands.options import load
from da2ray.commands.train_teacher import TrainTeacherConfig
from da2ray.console import run_command
from da2ray.worlds.job import train_teacher

if __name__ == "__main__":
    sys.exit(
        run_command(
            lambda console: train_teacher(load(TrainTeacherConfig, sys.argv[1:], prog="train_teacher.py"), console)
        )
    )
