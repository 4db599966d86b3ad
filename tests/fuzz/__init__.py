"""Thousands of small image files for fuzzing: whole files of every format, mutations of them, and bombs.

The same count and seed give the same files. A file's name describes it (`00042-png16-flip_body.png`), and the numbers list the
files in the order in which they were made. For a soak test: `python -m tests.fuzz OUT --files 20000 --seed 7`.
"""

import random
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.mutations import MUTATIONS
from tests.fuzz.special import special_files
from tests.fuzz.whole import whole_files


def write_fuzz(folder: Path, count: int, seed: int) -> list[str]:
    """Write `count` files into `folder`, and return their names in the order of a listing."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for name, data in fuzz_files(count, seed):
        (folder / name).write_bytes(data)
        names.append(name)
    return names


def fuzz_files(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """The (name, data) of `count` files: first all whole and special files, then mutations."""
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    whole, mutations = whole_files(), list(MUTATIONS.items())
    bases = list(whole.items())
    made = list((whole | special_files()).items())
    for number in range(count):
        if number < len(made):
            label, data = made[number]
            kind = label.partition(".")[2]
        else:
            base, before = bases[chance.randrange(len(bases))]
            mutation, mutate = mutations[chance.randrange(len(mutations))]
            stem, _, kind = base.partition(".")
            data, label = mutate(before, chance, [file for _, file in bases]), f"{stem}-{mutation}"
            if mutation == "wrong_suffix":
                kind = chance.choice([each for each in ("jpg", "png", "webp", "gif", "bmp", "tif") if each != kind])
        yield f"{number:05d}-{label.partition('.')[0]}.{kind}", data
