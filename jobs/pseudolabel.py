"""Label images with a depth teacher: `--help` lists the options, the README explains them.

ray job submit -- python jobs/pseudolabel.py --images s3://bucket/photos --output s3://bucket/labels
python jobs/pseudolabel.py --images photos/ --output labels/          # a laptop, with an embedded Ray
"""

import sys

from da2ray.commands.options import load
from da2ray.commands.pseudolabel import PseudolabelConfig
from da2ray.console import run_command
from da2ray.pipeline.run import pseudolabel

if __name__ == "__main__":
    sys.exit(
        run_command(lambda console: pseudolabel(load(PseudolabelConfig, sys.argv[1:], prog="pseudolabel.py"), console))
    )
