"""Choose rows of a dataset by their scores and store the choice as a named view: `--help` lists the options.

python jobs/curate.py --dataset s3://bucket/labels --view clean --where "flip_p90 < 0.08 AND blur > 20" --dedupe 4
"""

from da2ray.commands.curate import COMMAND
from da2ray.console import run_process

if __name__ == "__main__":
    run_process(COMMAND.main)
