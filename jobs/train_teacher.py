"""Train the embedded teacher, `depth-anything-v2-tiny`, on rendered worlds: `--help` lists the options.

python jobs/train_teacher.py
"""

import sys

from da2ray.commands.train_teacher import COMMAND

if __name__ == "__main__":
    sys.exit(COMMAND.main())
