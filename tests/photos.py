"""Folders of small real photographs and broken image files."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from da2ray.benchmark.photos import packaged_photos
from da2ray.errors import Reason

REASONS: dict[str, Reason | None] = {
    "astronaut.jpg": None,
    "chelsea.jpg": None,
    "cmyk.jpg": None,
    "coffee.png": None,
    "corrupt.jpg": Reason.CORRUPT,
    "deep16.png": None,
    "empty.jpg": Reason.EMPTY,
    "rotated.jpg": None,
    "text.jpg": Reason.NOT_AN_IMAGE,
    "tiny.png": Reason.TOO_SMALL,
    "truncated.jpg": Reason.TRUNCATED,
}
"""Every file of `write_photos` in the order of a listing, with the reason why it has no label, or None if it has one."""

EXIF_ORIENTATION = 0x0112
QUARTER_CLOCKWISE = 6


def write_photos(folder: Path) -> Path:
    """Write the files of REASONS, a few kB each, and return `folder`."""
    packaged = packaged_photos()
    scene = {
        name: Image.open(io.BytesIO(packaged[f"{name}.png"])).convert("RGB")
        for name in ("astronaut", "chelsea", "coffee", "camera")
    }
    astronaut = jpeg(scene["astronaut"].resize((160, 160)))
    cut, huffman = (
        len(astronaut) * 3 // 5,
        astronaut.index(b"\xff\xc4"),
    )  # DHT: the number of codes of length 1 cannot be 255
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = QUARTER_CLOCKWISE
    deep = np.asarray(scene["camera"].convert("L").resize((120, 90))).astype(np.uint16) * 257
    files = {
        "astronaut.jpg": astronaut,
        "chelsea.jpg": jpeg(scene["chelsea"].resize((200, 133))),
        "cmyk.jpg": jpeg(scene["coffee"].resize((150, 100)).convert("CMYK")),
        "coffee.png": png(scene["coffee"].resize((180, 120))),
        "corrupt.jpg": astronaut[: huffman + 5] + b"\xff" + astronaut[huffman + 6 :],
        "deep16.png": png(Image.fromarray(deep)),
        "empty.jpg": b"",
        "rotated.jpg": jpeg(scene["chelsea"].resize((200, 133)), exif=exif),
        "text.jpg": b"not a photograph\n",
        "tiny.png": png(scene["astronaut"].resize((16, 16))),
        "truncated.jpg": astronaut[:cut],
    }
    assert list(files) == list(REASONS) == sorted(files)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def write_crops(folder: Path, count: int) -> Path:
    """Write `count` different JPEGs of 120 x 90 and 90 x 120 pixels, all of which can be labelled, and return `folder`."""
    scene = Image.open(io.BytesIO(packaged_photos()["coffee.png"])).convert("RGB")
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        width, height = (120, 90) if number % 3 else (90, 120)
        left, top = 7 * number % (scene.width - width), 5 * number % (scene.height - height)
        crop = scene.crop((left, top, left + width, top + height))
        (folder / f"{number:04d}.jpg").write_bytes(jpeg(crop))
    return folder


def jpeg(image: Image.Image, **options: object) -> bytes:
    return _saved(image, "JPEG", {"quality": 85} | options)


def png(image: Image.Image) -> bytes:
    return _saved(image, "PNG", {})


def _saved(image: Image.Image, kind: str, options: dict[str, object]) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
