"""Label images with a depth teacher: `--help` lists the options, the README explains them.

ray job submit -- python jobs/pseudolabel.py --images s3://bucket/photos --output s3://bucket/labels
python jobs/pseudolabel.py --images photos/ --output labels/          # a laptop, with an embedded Ray
"""

from da2ray.commands.pseudolabel import COMMAND
from da2ray.console import run_process

if __name__ == "__main__":
    run_process(COMMAND.main)
