"""Measure da2ray on this machine, beside the plain Ray Data way: `--help` lists the options.

python jobs/benchmark.py --make-images 800
"""

from da2ray.commands.benchmark import COMMAND
from da2ray.console import run_process

if __name__ == "__main__":
    run_process(COMMAND.main)
