"""Train the embedded teacher, `depth-anything-v2-tiny`, on rendered worlds: `--help` lists the options.

python jobs/train_teacher.py
"""

from da2ray.commands.train_teacher import COMMAND
from da2ray.console import run_process

if __name__ == "__main__":
    run_process(COMMAND.main)
