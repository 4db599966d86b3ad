"""Bring a dataset up to its source: new, changed, gone and moved images, and nothing else. `--help` lists the options.

ray job submit -- python jobs/refresh.py --output s3://bucket/labels
"""

import sys

from da2ray.commands.refresh import COMMAND

if __name__ == "__main__":
    sys.exit(COMMAND.main())
