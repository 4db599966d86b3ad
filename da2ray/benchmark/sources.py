"""The same pictures as other sources than loose files: in tars, and in Parquet."""

import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

TAR_BYTES: Final = 512 << 20
"""Pictures of a tar: eight shards, as in a tar of img2dataset with 10,000 pictures of 50 kB."""
ROW_GROUP: Final = 100
"""Rows of a row group, as Hugging Face datasets and img2dataset write them."""


def write_tars(pictures: Sequence[Path], folder: Path) -> None:
    """Write the pictures, in order, as WebDataset does: a file beside each, and none compressed."""
    folder.mkdir(parents=True)
    number, tar = 0, tarfile.open(folder / "000000.tar", "w")  # noqa: SIM115 - closed below
    for picture in pictures:
        if tar.offset > TAR_BYTES:
            tar.close()
            number += 1
            tar = tarfile.open(folder / f"{number:06d}.tar", "w")  # noqa: SIM115
        # Pictures may be links.
        tar.add(picture.resolve(), picture.name)
    tar.close()


def write_parquet(pictures: Sequence[Path], folder: Path) -> None:
    """Write the pictures, in order, as a column of bytes beside one of keys."""
    folder.mkdir(parents=True)
    schema = pa.schema({"key": pa.string(), "image": pa.binary()})
    with pq.ParquetWriter(folder / "000000.parquet", schema, compression="none", use_dictionary=False) as writer:
        for at in range(0, len(pictures), ROW_GROUP):
            here = pictures[at : at + ROW_GROUP]
            writer.write_table(
                pa.table([[each.name for each in here], [each.read_bytes() for each in here]], schema=schema)
            )


PACKERS: Final[dict[str, Callable[[Sequence[Path], Path], None]]] = {"tar": write_tars, "parquet": write_parquet}
"""Kind of source -> what writes pictures into a new folder."""
