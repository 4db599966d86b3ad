"""Measure da2ray on this machine beside the plain Ray Data way: `--help` lists the options, the README shows a table.

python jobs/benchmark.py --make-images 800
"""

import sys

from da2ray.benchmark.run import benchmark
from da2ray.commands.benchmark import BenchmarkConfig
from da2ray.commands.options import load
from da2ray.console import run_command

if __name__ == "__main__":
    sys.exit(run_command(lambda console: benchmark(load(BenchmarkConfig, sys.argv[1:], prog="benchmark.py"), console)))
