"""Choose rows of a dataset by their scores and store the choice as a named view: `--help` lists the options.

python jobs/curate.py --dataset s3://bucket/labels --view clean --where "flip_p90 < 0.08 AND blur > 20" --dedupe 4
"""

import sys

from da2ray.commands.curate import CurateConfig, curate
from da2ray.commands.options import load
from da2ray.console import run_command

if __name__ == "__main__":
    sys.exit(run_command(lambda console: curate(load(CurateConfig, sys.argv[1:], prog="curate.py"), console)))
