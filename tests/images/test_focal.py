"""Focal lengths from EXIF are right for known cameras in every format. Broken and absurd values are ignored."""

import io
import struct

import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from da2ray.images.headers import read_focal, read_header

WIDTH, HEIGHT = 400, 300
DIAGONAL = 500
FILM_DIAGONAL = 43.2666
FOCAL, PIXELS_ACROSS, RESOLUTION, UNIT, FILM = 0x920A, 0xA002, 0xA20E, 0xA210, 0xA405


def image(kind: str = "JPEG", size: tuple[int, int] = (WIDTH, HEIGHT), orientation: int = 1, **tags: object) -> bytes:
    """An image file with `tags` in its EXIF, given as `tag_<number>=value`."""
    exif = Image.Exif()
    exif[0x112] = orientation
    exif[0x8769] = {int(name.removeprefix("tag_")): value for name, value in tags.items()}
    options = {"tiffinfo": dict(exif)} if kind == "TIFF" else {"exif": exif}
    file = io.BytesIO()
    Image.new("RGB", size).save(file, kind, **options)
    return file.getvalue()


def focal(data: bytes) -> float | None:
    return read_focal(data, read_header(data))


def tags(**named: object) -> dict[str, object]:
    return {f"tag_{globals()[name.upper()]}": value for name, value in named.items()}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_film_equivalents_are_read_from_every_format_that_has_exif(kind: str) -> None:
    # A telephone's 26 mm. Its maker says 69 degrees of horizontal field of view, which fits.
    assert focal(image(kind, **tags(film=26))) == pytest.approx(26 * DIAGONAL / FILM_DIAGONAL, rel=1e-4)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_a_file_without_exif_has_no_focal_length(kind: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT)).save(file, kind)
    assert focal(file.getvalue()) is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_an_image_does_not_change_its_focal_length(orientation: int) -> None:
    expected = focal(image(**tags(film=35)))
    assert focal(image(orientation=orientation, **tags(film=35))) == expected
    sensor = tags(focal=IFDRational(50), resolution=IFDRational(WIDTH * 10, 36), unit=3, pixels_across=WIDTH)
    assert focal(image(orientation=orientation, **sensor)) == pytest.approx(50 / 36 * WIDTH)


@pytest.mark.parametrize(("unit", "mm"), [(2, 25.4), (3, 10)])
def test_a_sensor_of_36_mm_behind_50_mm(unit: int, mm: float) -> None:
    # The sensor has 6000 pixels across. The file is a smaller copy with unchanged EXIF.
    sensor = tags(focal=IFDRational(500, 10), resolution=IFDRational(round(6000 * mm * 1000), 36_000), unit=unit)
    assert focal(image(**sensor, **tags(pixels_across=6000))) == pytest.approx(50 / 36 * WIDTH, rel=1e-3)


def test_the_film_equivalent_comes_first() -> None:
    sensor = tags(focal=IFDRational(4), resolution=IFDRational(100), unit=3, pixels_across=WIDTH)
    assert focal(image(**sensor, **tags(film=26))) == focal(image(**tags(film=26)))


@pytest.mark.parametrize(
    "nonsense",
    [
        tags(film=0),
        tags(film=1),
        tags(film=65535),
        tags(focal=IFDRational(50)),
        tags(focal=IFDRational(50), resolution=IFDRational(100), unit=1),
        tags(focal=IFDRational(50), resolution=IFDRational(100, 0), unit=3),
        tags(focal=IFDRational(50, 0), resolution=IFDRational(100), unit=3),
        tags(focal=IFDRational(50), resolution=IFDRational(4_000_000_000), unit=3),
        tags(focal=IFDRational(50), resolution=IFDRational(100), unit=3, pixels_across=0),
    ],
)
def test_absurd_values_are_ignored(nonsense: dict[str, object]) -> None:
    assert focal(image(**nonsense)) is None


def test_broken_exif_never_fails_an_image() -> None:
    data = image(**tags(focal=IFDRational(50), resolution=IFDRational(1000), unit=3, film=26))
    exif = data.index(b"Exif\0\0")
    end = exif + struct.unpack_from(">H", data, exif - 2)[0] - 2
    assert focal(data)
    answers = set()
    for place in range(exif, end):
        for value in (0, 1, 0x7F, 0xFF):
            answers.add(focal(data[:place] + bytes([value]) + data[place + 1 :]) is None)
    assert answers == {True, False}
    header = read_header(data)
    for length in range(exif, end):
        read_focal(data[:length], header)


def test_a_directory_that_points_to_itself_ends() -> None:
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0x8769, 4, 1, 8) + bytes(4)
    file = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT)).save(file, "JPEG", exif=b"Exif\0\0" + tiff)
    assert focal(file.getvalue()) is None
