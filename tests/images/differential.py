"""Compare da2ray with Pillow and cv2 on mutants of small images: `python -m tests.images.differential --mutants 100000`.

`judge` puts each mutant into a class. `CLASSES` lists those that are right, with reasons; any other class is `unexplained`, and
the command prints its mutants and exits 1. A decoder may crash or hang, so worker processes decode, and a new one replaces a
worker that does either. The mutant is then of the class `crash`, which names the decoder.
"""

import argparse
import io
import multiprocessing
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps

from da2ray.errors import Reason, SampleError
from da2ray.images.decode import DecodeMode, Limits, decode
from da2ray.images.headers import png_chunks
from da2ray.teachers.depth_anything.size import OfficialSize
from tests.fuzz.formats import PNG_SIGNATURE
from tests.images.mutants import mutant

CLASSES = {
    "same": "all three decode, and da2ray's pixels equal cv2's.",
    "refused": "Pillow and cv2 refuse, and so does da2ray.",
    "limit": "the header declares more than the limit of pixels, so nothing is decoded.",
    "jpeg damaged pixels": "Pillow and cv2 ignore libjpeg's warnings and make pixels up for missing or wrong coded data. "
    "A label must not rest on such pixels: da2ray refuses the file as truncated or corrupt.",
    "cv2 alone, refused": "cv2 fills in missing pixels (BMP, TIFF), or reads a file of broken structure (WebP, JPEG, APNG), "
    "so that nobody knows whether its pixels are whole. Pillow notices.",
    "cv2 alone, decoded": "Pillow gives up on metadata (a checksum in a PNG, EXIF in a WebP), which cost no pixels.",
    "Pillow alone, decoded": "cv2 lacks a codec (zstd and LZMA in TIFF), or gives up on metadata or on what follows the image "
    "(GIF, PNG). Pillow has checked that the pixels are whole.",
    "Pillow alone, refused": "Pillow does not need the last chunk of a PNG or a header at its place, or it enlarges a GIF's "
    "screen. The file is cut off, or its size is not the declared one.",
    "animated PNG, decoded": "cv2 shows the first frame of the animation, or black if that frame is missing. Pillow and da2ray "
    "show the default image, as a viewer does that knows no animations.",
    "animated PNG, refused": "the first frame is smaller than the image should be: Pillow and cv2 fill the rest with black.",
    "neither, decoded": "a PNG whose ancillary chunks are damaged: Pillow and cv2 give up on metadata, and the pixels are whole.",
}
"""The classes of agreement and disagreement, with reasons."""

LIMIT = 2_000_000
SECONDS = 60.0


class Verdict(NamedTuple):
    label: str
    kind: str
    detail: str = ""


def judge(data: bytes) -> tuple[str, str]:  # noqa: PLR0911 - a return for each class
    """The class of a file, and a line of detail."""
    limits = Limits(min_side=1, max_aspect=1e9, max_tokens=10**9, max_pixels=LIMIT)
    ours, detail, reason = None, "", None
    try:
        image = decode(data, size_rule=OfficialSize(), limits=limits, mode=DecodeMode.EXACT)
        ours = image.pixels
        assert ours.shape == (image.height, image.width, 3)
    except SampleError as error:
        reason, detail = error.reason, f"{error.reason}: {error.message}"
        if reason is Reason.TOO_MANY_PIXELS:
            return "limit", detail
    pillow, official = by_pillow(data), by_cv2(data)
    if pillow is not None and official is not None:
        if ours is not None:
            if np.array_equal(ours, official):
                return "same", detail
            animated = is_animated_png(data) and np.array_equal(ours, pillow_default(data))
            return ("animated PNG, decoded" if animated else "unexplained: other pixels"), detail
        if is_animated_png(data) and reason in {Reason.TRUNCATED, Reason.CORRUPT}:
            return "animated PNG, refused", detail
        damaged = data[:2] == b"\xff\xd8" and reason in {Reason.TRUNCATED, Reason.CORRUPT}
        return ("jpeg damaged pixels" if damaged and "jpeg:" in detail else "unexplained: refused"), detail
    if official is not None:
        if ours is not None:
            return (
                "cv2 alone, decoded" if np.array_equal(ours, official) else "unexplained: other pixels than cv2"
            ), detail
        return "cv2 alone, refused", detail
    if pillow is not None:
        return ("Pillow alone, decoded" if ours is not None else "Pillow alone, refused"), detail
    if ours is None:
        return "refused", detail
    return ("neither, decoded" if data[:4] == b"\x89PNG" else "unexplained: neither decodes"), detail


def by_pillow(data: bytes) -> np.ndarray | None:
    try:
        image = Image.open(io.BytesIO(data), formats=["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
        image.load()
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception:  # noqa: BLE001 - Pillow raises nearly anything
        return None


def is_animated_png(data: bytes) -> bool:
    return data[:8] == PNG_SIGNATURE and any(name == b"acTL" for name, _, _ in png_chunks(data))


def pillow_default(data: bytes) -> np.ndarray:
    """The default image of an animated PNG as stored: cv2 does not turn one, so neither does da2ray."""
    return np.asarray(Image.open(io.BytesIO(data), formats=["PNG"]).convert("RGB"))


def by_cv2(data: bytes) -> np.ndarray | None:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return None
    return None if pixels is None else pixels[..., ::-1]


def _work(seed: int, pipe: Connection) -> None:
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the C libraries print a line for nearly every mutant
    Image.init()
    while (number := pipe.recv()) is not None:
        file = mutant(seed, number)
        pipe.send(Verdict(file.label, *judge(file.data)))


class _Worker:
    """A process that judges one mutant after the other, and is replaced if it crashes or hangs."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, far = context.Pipe()
        self.process = context.Process(target=_work, args=(self.seed, far), daemon=True)
        self.process.start()
        far.close()

    def judge(self, number: int) -> Verdict:
        self.pipe.send(number)
        try:
            if self.pipe.poll(SECONDS):
                return self.pipe.recv()
            end = "hang"
        except (EOFError, ConnectionError):
            end = "crash"
        self.process.kill()
        self.process.join()
        self.start()
        return Verdict(
            f"{number} {mutant(self.seed, number).label}", f"unexplained: {end}", f"exit {self.process.exitcode}"
        )

    def close(self) -> None:
        self.pipe.send(None)
        self.process.join()


def verdicts(seed: int, numbers: range) -> Iterator[Verdict]:
    """The verdicts of the mutants with these numbers, from one worker process."""
    worker = _Worker(seed)
    try:
        for number in numbers:
            yield worker.judge(number)
    finally:
        worker.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare da2ray with Pillow and cv2 on mutants of images.")
    parser.add_argument("--mutants", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="judge this mutant alone")
    parser.add_argument("--save", type=Path, help="write the file of --only")
    options = parser.parse_args()
    if options.only is not None and options.save:
        options.save.write_bytes(mutant(options.seed, options.only).data)
    numbers = range(options.mutants) if options.only is None else range(options.only, options.only + 1)
    counts: Counter[str] = Counter()
    for done, verdict in enumerate(verdicts(options.seed, numbers), 1):
        counts[verdict.kind] += 1
        if verdict.kind not in CLASSES or options.only is not None:
            print(*verdict, sep=" | ", flush=True)
        if done % 10_000 == 0:
            print(f"{done} of {len(numbers)}", flush=True)
    for kind, count in counts.most_common():
        print(f"{count:7} {kind}: {CLASSES.get(kind, 'no reason is known')}")
    return int(any(kind not in CLASSES for kind in counts))


if __name__ == "__main__":
    sys.exit(main())
