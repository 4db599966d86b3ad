"""Measure da2ray on this machine, beside the plain Ray Data way: `--help` lists the options.

python jobs/benchmark.py --make-images 800
"""

import sys

from da2ray.commands.benchmark import COMMAND

if __name__ == "__main__":
    sys.exit(COMMAND.main())
