"""Write fuzz files into a folder."""

import argparse
from pathlib import Path

from tests.fuzz import write_fuzz


def main() -> None:
    parser = argparse.ArgumentParser(description="Write broken image files into a folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_fuzz(options.folder, options.files, options.seed)


if __name__ == "__main__":
    main()
