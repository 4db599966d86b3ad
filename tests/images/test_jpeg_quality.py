"""The quality of a JPEG is read from its tables, by any writer, and broken tables never stop the reading of a file."""

import io

import pytest
from PIL import Image

from da2ray.images.headers import read_header
from da2ray.images.jpeg_quality import read_jpeg_quality
from tests.photos import jpeg, png

PICTURE = Image.effect_noise((40, 30), 60).convert("RGB")


def quality_of(data: bytes) -> int | None:
    return read_jpeg_quality(data, read_header(data))


@pytest.mark.parametrize("quality", [1, *range(10, 96, 5), 100])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True, "subsampling": 0}])
def test_the_quality_is_the_one_that_the_file_was_saved_with(quality: int, options: dict[str, object]) -> None:
    assert quality_of(jpeg(PICTURE, quality=quality, **options)) == pytest.approx(quality, abs=1)
    assert quality_of(jpeg(PICTURE.convert("L"), quality=quality, **options)) == pytest.approx(quality, abs=1)
    assert quality_of(jpeg(PICTURE.convert("CMYK"), quality=quality, **options)) == pytest.approx(quality, abs=1)


def test_the_quality_is_that_of_the_last_encoding() -> None:
    once = Image.open(io.BytesIO(jpeg(PICTURE, quality=10)))
    assert quality_of(jpeg(once, quality=90)) == 90


def test_tables_of_another_encoder_give_the_nearest_quality() -> None:
    flat = [[20] * 64, [20] * 64]
    found = quality_of(jpeg(PICTURE, quality=50, qtables=flat))
    # The table's sum is 1280. libjpeg's table has 3685 at quality 50.
    assert 80 <= found <= 85


def test_wide_tables_are_read_too() -> None:
    data = jpeg(PICTURE, quality=40)
    at = data.index(b"\xff\xdb\x00\x43\x00")
    table = data[at + 5 : at + 5 + 64]
    wide = b"\xff\xdb\x00\x83\x10" + b"".join(b"\0" + table[i : i + 1] for i in range(64))
    assert quality_of(data[:at] + wide + data[at + 69 :]) == 40


def test_other_formats_have_no_quality() -> None:
    assert quality_of(png(PICTURE)) is None


def test_broken_tables_give_no_quality_and_no_error() -> None:
    data = jpeg(PICTURE, quality=40)
    header = read_header(data)
    for end in range(20, len(data)):
        assert read_jpeg_quality(data[:end], header) in (None, 40)
    at = data.index(b"\xff\xdb")
    assert read_jpeg_quality(data[:at] + data[at + 69 :], header) is None  # only the table of the colours remains
    assert read_jpeg_quality(data[:at] + b"\xff\xdb\x00\x05\x00\x01\x02" + data[at:], header) in (None, 40)
