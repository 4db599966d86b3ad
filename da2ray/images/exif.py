"""EXIF in image files: the orientation that `cv2.imread` applies, and the focal length.

`cv2.imread` decides about the orientation, because images must equal it. Its reader differs from Pillow's `exif_transpose`, and
where they differ, cv2 wins:

- A tag counts even if the directory is cut off behind it, and whatever its type and count are: cv2 takes the first two bytes of
  the value. Pillow converts by type, and ignores a directory with an unknown type or a cut entry.
- The first value of a tag counts, also among several blocks of a JPEG. cv2 reads one block after the other; Pillow joins blocks.
- A known text or fraction that points behind its block ends the block, so that a later orientation is ignored. This includes an
  orientation that Pillow finds in an EXIF block split over several segments of a JPEG.
- The structure must begin with 42 in either byte order. In a PNG or WebP, it must not have the prefix `Exif` of a JPEG.
- Orientations in XMP, or in a PNG's text chunk "Raw profile type exif", are ignored.

In a TIFF, libtiff reads the tag for cv2: the first entry counts, if it is one whole number.
"""

import math
import struct
from collections.abc import Iterable, Mapping, Sequence

PREFIX = b"Exif\0\0"
"""The prefix of an EXIF block in a JPEG. Some writers of PNG and WebP keep it."""
ORIENTATION = 0x112


def read_orientation(blocks: Iterable[bytes]) -> int:
    """The orientation, 1 to 8, that cv2 finds in EXIF blocks without their prefix. It is 1 if there is none that makes sense."""
    for block in blocks:
        value = _orientation_of(block)
        if value is not None:
            return value if 1 <= value <= 8 else 1
    return 1


def _orientation_of(block: bytes) -> int | None:
    """The value of the first orientation tag of a block, or None if cv2 ends before one."""
    order = "<" if block[:2] == b"II" else ">"
    try:
        mark, start = struct.unpack_from(order + "HI", block, 2)
        if mark != 42:
            return None
        (count,) = struct.unpack_from(order + "H", block, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            (tag,) = struct.unpack_from(order + "H", block, at)
            if tag == ORIENTATION:
                (value,) = struct.unpack_from(order + "H", block, at + 8)
                return int(value)
            if tag in _TEXTS:
                (size,) = struct.unpack_from(order + "I", block, at + 4)
                where = struct.unpack_from(order + "I", block, at + 8)[0] if size > 4 else 8
                if where + size > len(block):
                    return None
            elif tag in _FRACTIONS:
                (where,) = struct.unpack_from(order + "I", block, at + 8)
                if where + 8 * _FRACTIONS[tag] > len(block):
                    return None
            elif tag in _NUMBERS:
                struct.unpack_from(order + "H", block, at + 8)
    except struct.error:
        pass
    return None


_TEXTS = frozenset({0x10E, 0x10F, 0x110, 0x131, 0x132, 0x8298})
# Description, make, model, software, date, copyright.
_FRACTIONS = {0x11A: 1, 0x11B: 1, 0x13E: 2, 0x13F: 6, 0x211: 3, 0x214: 6}
# Resolutions, white point, primaries, YCbCr coefficients, reference black and white, with their number of fractions.
_NUMBERS = frozenset({0x128, 0x213})


def read_tiff_orientation(tiff: bytes) -> int:
    """The orientation, 1 to 8, that libtiff finds in a TIFF's first directory. It is 1 if there is none that makes sense."""
    order = _byte_order(tiff)
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, number = struct.unpack_from(order + "HHI", tiff, at)
            if tag == ORIENTATION:
                whole = number == 1 and len(_TYPES.get(kind, "II")) == 1
                (value,) = struct.unpack_from(order + _TYPES[kind], tiff, at + 8) if whole else (1,)
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def read_focal_length(blocks: Sequence[bytes], width: int, height: int) -> float | None:
    """The focal length in pixels from the first of several EXIF blocks that has one.

    Args:
        blocks: EXIF blocks, with or without their prefix.
        width, height: of the image as stored, at full size.
    """
    for block in blocks:
        focal = _focal_in(_camera_tags(block.removeprefix(PREFIX)), width, height)
        if focal is not None:
            return focal
    return None


def _focal_in(tags: Mapping[int, float], width: int, height: int) -> float | None:
    diagonal = math.hypot(width, height)
    film = tags.get(_FOCAL_IN_FILM, 0)
    if film > 0:
        focal = film * diagonal / _FILM_DIAGONAL
    else:
        # Pixels in a millimetre of the sensor, which is `taken` pixels wide.
        density = tags.get(_PLANE_RESOLUTION, 0) / _UNIT_MM.get(int(tags.get(_PLANE_UNIT, 2)), math.inf)
        taken = tags.get(_PIXELS_ACROSS, width)
        focal = tags.get(_FOCAL, 0) * density * width / taken if taken > 0 else 0
    return focal if _SHORTEST_FOCAL * diagonal <= focal <= _LONGEST_FOCAL * diagonal else None


_FILM_DIAGONAL = math.hypot(36, 24)
# In mm: 43.27.
_SHORTEST_FOCAL, _LONGEST_FOCAL = 0.05, 50
# Shares of the diagonal: lenses of 2.2 mm to 2.2 m in front of film. Values beyond that are not measurements.
_EXIF_POINTER = 0x8769
_FOCAL, _PIXELS_ACROSS, _PLANE_RESOLUTION, _PLANE_UNIT, _FOCAL_IN_FILM = 0x920A, 0xA002, 0xA20E, 0xA210, 0xA405
_UNIT_MM = {2: 25.4, 3: 10.0}
# FocalPlaneResolutionUnit in mm: inch, which is the default, and centimetre.


def _camera_tags(tiff: bytes) -> dict[int, float]:
    """The numbers in EXIF's directory for the camera; empty if there is no such directory."""
    pointer = first_directory(tiff).get(_EXIF_POINTER)
    return {} if pointer is None else directory(tiff, int(pointer))


def first_directory(tiff: bytes) -> dict[int, float]:
    """The tags of a TIFF structure's first directory, as `directory`."""
    try:
        (at,) = struct.unpack_from(_byte_order(tiff) + "I", tiff, 4)
    except struct.error:
        return {}
    return directory(tiff, at)


def directory(tiff: bytes, at: int) -> dict[int, float]:
    """The tags of the directory at byte `at` of a TIFF structure that have numbers, each with its first number.

    The first entry of a tag counts. A directory that is cut off has the tags before the cut. Fractions with denominator 0 are
    left out.
    """
    order = _byte_order(tiff)
    tags: dict[int, float] = {}
    try:
        (count,) = struct.unpack_from(order + "H", tiff, at)
    except struct.error:
        return tags
    for entry in range(at + 2, min(at + 2 + 12 * count, len(tiff)), 12):
        try:
            tag, kind, number = struct.unpack_from(order + "HHI", tiff, entry)
            if kind not in _TYPES or not number or tag in tags:
                continue
            form = order + _TYPES[kind]
            where = entry + 8
            if number * struct.calcsize(form) > 4:
                (where,) = struct.unpack_from(order + "I", tiff, entry + 8)
            values = struct.unpack_from(form, tiff, where)
        except struct.error:
            continue  # the value is cut off
        if len(values) == 1:
            (tags[tag],) = values
        elif values[1]:
            tags[tag] = values[0] / values[1]
    return tags


def _byte_order(tiff: bytes) -> str:
    return ">" if tiff[:2] == b"MM" else "<"


_TYPES = {1: "B", 3: "H", 4: "I", 5: "II", 6: "b", 8: "h", 9: "i", 10: "ii"}
