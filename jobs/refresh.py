"""Bring a dataset up to its source: new, changed, gone and moved images, and nothing else. `--help` lists the options.

ray job submit -- python jobs/refresh.py --output s3://bucket/labels
"""

from da2ray.commands.refresh import COMMAND
from da2ray.console import run_process

if __name__ == "__main__":
    run_process(COMMAND.main)
