"""Decoded pixels equal the references: Pillow with exif_transpose, and cv2.imdecode, the official reader."""

import io
import struct
import threading
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image as Pillow
from PIL import ImageFile, ImageOps
from skimage import data

from da2ray.errors import Reason, SampleError
from da2ray.images.decode import DecodeMode, Format, Image, Limits, admit, decode, decode_pixels, read_header
from da2ray.teachers.depth_anything.size import OfficialSize
from tests.fuzz.formats import PNG_SIGNATURE, png_chunk, riff, rle_bmp, tiff, tiled_tiff
from tests.fuzz.special import BOMBS, HUGE, many_scans

SIZE = OfficialSize()
ANY = Limits(min_side=1, max_aspect=1000, max_tokens=10**6)
PHOTO = Pillow.fromarray(data.astronaut()).resize((120, 90))
SAVE: dict[str, dict] = {
    "JPEG": {"quality": 90},
    "PNG": {},
    "WEBP": {"quality": 90},
    "GIF": {},
    "BMP": {},
    "TIFF": {},
}


def save(image: Pillow.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **{**SAVE[kind], **options})
    return out.getvalue()


def read(file: bytes, mode: DecodeMode = DecodeMode.EXACT, limits: Limits = ANY) -> Image:
    return decode(file, size_rule=SIZE, limits=limits, mode=mode)


def reason(file: bytes, limits: Limits = ANY) -> Reason:
    with pytest.raises(SampleError) as caught:
        read(file, limits=limits)
    return caught.value.reason


def shown(file: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Pillow.open(io.BytesIO(file))).convert("RGB"))


def official(file: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


# ------------------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("kind", SAVE)
def test_every_format_equals_pillow(kind: str) -> None:
    file = save(PHOTO, kind)
    image = read(file)
    assert np.array_equal(image.pixels, shown(file))
    assert image.pixels.dtype == np.uint8
    assert image.pixels.flags.c_contiguous
    assert (image.width, image.height, image.orientation, image.size) == (120, 90, 1, (518, 686))
    assert read_header(file).format is Format(kind.lower())


@pytest.mark.parametrize("options", [{"subsampling": s} for s in (0, 1, 2)] + [{"progressive": True}])
def test_exact_jpeg_is_bit_identical_to_pillow_and_cv2(options: dict) -> None:
    # Fixed: libjpeg-turbo. Its three builds give the same bits, as its integer transform does with and without SIMD.
    file = save(Pillow.fromarray(data.astronaut()).resize((333, 251)), "JPEG", **options)
    pixels = read(file).pixels
    assert np.array_equal(pixels, shown(file))
    assert np.array_equal(pixels, official(file))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "BMP", "WEBP"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA"])
def test_every_pixel_type_equals_the_official_reader(kind: str, mode: str) -> None:
    if (kind, mode) in {("BMP", "LA"), ("BMP", "RGBA"), ("GIF", "LA"), ("GIF", "RGBA")}:
        pytest.skip("not a pixel type of the format")
    image = PHOTO.convert("RGBA")
    if "A" in mode:
        image.putalpha(PHOTO.convert("L"))
    file = save(image.convert(mode), kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    pixels = read(file).pixels
    assert pixels.shape == (90, 120, 3)
    assert np.array_equal(pixels, official(file))


def test_palette_transparency_is_dropped() -> None:
    image = PHOTO.convert("P")
    for transparency in (3, bytes(range(256))):
        file = save(image, "PNG", transparency=transparency)
        assert np.array_equal(read(file).pixels, np.asarray(image.convert("RGB")))


def test_sixteen_bits_are_cut_to_the_upper_eight() -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (40, 50, 3), dtype=np.uint16)
    for extension in (".png", ".tiff"):
        for stored in (deep, deep[..., 0].copy()):
            file = cv2.imencode(extension, stored)[1].tobytes()
            expected = (stored[..., ::-1] if stored.ndim == 3 else np.dstack([stored] * 3)) >> 8
            pixels = read(file).pixels
            assert np.array_equal(pixels, official(file))
            assert np.abs(pixels.astype(int) - expected).max() <= (1 if extension == ".tiff" else 0)


def test_cmyk_jpeg_equals_cv2_and_is_not_inverted() -> None:
    file = save(PHOTO.convert("CMYK"), "JPEG")
    pixels = read(file).pixels
    assert np.array_equal(pixels, official(file))
    assert np.abs(pixels.astype(int) - shown(file)).max() <= 2
    assert np.abs(pixels.astype(int) - np.asarray(PHOTO)).mean() < 8


def test_an_animation_gives_its_first_frame() -> None:
    frames = [PHOTO, ImageOps.invert(PHOTO)]
    for kind in ("GIF", "WEBP", "PNG"):
        file = save(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
        assert np.abs(read(file).pixels.astype(int) - np.asarray(PHOTO)).mean() < 12


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "jpeg", "packbits"])
def test_compressed_tiff_equals_pillow(compression: str) -> None:
    file = save(PHOTO, "TIFF", compression=compression)
    assert np.array_equal(read(file).pixels, shown(file))


# --------------------------------------------------------------------------------------------------- orientation


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_does(kind: str, orientation: int) -> None:
    exif = Pillow.Exif()
    exif[0x112] = orientation
    file = save(PHOTO, kind, exif=exif)
    image = read(file)
    assert np.array_equal(image.pixels, shown(file))
    assert image.pixels.flags.c_contiguous
    assert (image.height, image.width) == image.pixels.shape[:2]
    assert (image.height, image.width) == ((90, 120) if orientation < 5 else (120, 90))
    assert image.orientation == orientation


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0junk",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(20),
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0",  # orientation 99
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x09\0\0\0\xff\0\0\0\0",  # a string
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_malformed_exif_counts_as_upright(kind: str, exif: bytes) -> None:
    image = read(save(PHOTO, kind, exif=exif))
    assert image.orientation == 1
    assert (image.width, image.height) == (120, 90)


# -------------------------------------------------------------------------------------------------------- scaled


def test_scaled_never_decodes_below_the_network_size() -> None:
    rng = np.random.default_rng(0)
    sides = [(518, 518), (1035, 1036), (1036, 1036), (1037, 1381), (1382, 1037), (2073, 2072), (4144, 700), (300, 200)]
    sides += rng.integers(200, 2600, (16, 2)).tolist()
    reduced = 0
    for number, (height, width) in enumerate(sides):
        exif = Pillow.Exif()
        orientation = exif[0x112] = number % 8 + 1
        file = save(Pillow.new("RGB", (width, height)), "JPEG", exif=exif)
        image = read(file, DecodeMode.SCALED)
        full = (height, width) if orientation < 5 else (width, height)
        assert (image.height, image.width) == full
        assert image.size == SIZE(*full)
        for decoded, network, original in zip(image.pixels.shape, image.size, full, strict=False):
            assert decoded >= min(network, original)
        reduced += image.pixels.shape[:2] != full
    assert reduced >= 6


def test_scaled_shows_the_same_picture_as_exact() -> None:
    for mode in ("RGB", "CMYK"):
        exif = Pillow.Exif()
        exif[0x112] = 6
        photo = Pillow.fromarray(data.astronaut()).resize((2200, 1700), Pillow.Resampling.BICUBIC).convert(mode)
        file = save(photo, "JPEG", exif=exif)
        scaled, exact = read(file, DecodeMode.SCALED).pixels, read(file).pixels
        assert scaled.shape == (825, 638, 3)
        assert exact.shape == (2200, 1700, 3)
        small = cv2.resize(exact, scaled.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(small.astype(int) - scaled).mean() < 2


# -------------------------------------------------------------------------------------------------------- errors


def test_limits_reject_by_the_displayed_size_and_keep_it_for_the_index() -> None:
    exif = Pillow.Exif()
    exif[0x112] = 6
    for (width, height), expected in {
        (31, 100): Reason.TOO_SMALL,
        (900, 100): Reason.ASPECT,
        (700, 100): Reason.TOO_MANY_TOKENS,
    }.items():
        header = read_header(save(Pillow.new("RGB", (width, height)), "JPEG", exif=exif))
        assert (header.width, header.height) == (height, width)
        with pytest.raises(SampleError) as caught:
            admit(header, SIZE, Limits())
        assert caught.value.reason is expected


def test_sizes_exactly_at_the_limits_are_admitted() -> None:
    header = read_header(save(Pillow.new("RGB", (256, 32)), "PNG"))
    assert admit(header, SIZE, Limits(max_tokens=10**6)) == SIZE(32, 256)
    rows, columns = SIZE(300, 1990)
    wide = read_header(save(Pillow.new("L", (1990, 300)), "PNG"))
    assert admit(wide, SIZE, Limits(max_tokens=rows * columns // 196)) == (rows, columns)


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_before_its_pixels_are_allocated(kind: str) -> None:
    tracemalloc.start()
    try:
        assert reason(BOMBS[kind]) is Reason.TOO_MANY_PIXELS
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert read_header(BOMBS[kind]).width == HUGE


def test_a_gif_whose_frame_is_larger_than_its_screen_is_refused_before_decoding() -> None:
    file = bytearray(save(PHOTO.convert("P"), "GIF"))
    file[6:8] = struct.pack("<H", 20)
    assert reason(bytes(file)) is Reason.CORRUPT


def test_large_images_need_no_change_of_pillows_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in SAVE:
            if kind in {"WEBP", "TIFF"}:  # these plugins check by themselves
                assert reason(save(PHOTO, kind)) is Reason.TOO_MANY_PIXELS
            else:
                assert read(save(PHOTO, kind)).width == 120


def test_sides_that_the_index_cannot_hold_are_corrupt() -> None:
    for side in (0, 2**31, 2**32 - 1):
        assert (
            reason(PNG_SIGNATURE + png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, 60, 8, 2, 0, 0, 0)))
            is Reason.CORRUPT
        )
        assert reason(tiff({256: (60,), 257: (side,)})) is Reason.CORRUPT
    assert reason(BOMBS["bmp"][:18] + struct.pack("<ii", 60, -(2**31)) + bytes(40)) is Reason.CORRUPT


def test_a_jpeg_of_thousands_of_scans_is_refused_before_they_are_decoded() -> None:
    start = time.process_time()
    assert reason(many_scans(1500, 2000)) is Reason.CORRUPT
    assert time.process_time() - start < 1  # decoding takes 1.7 s for every 2,000 scans
    assert read(many_scans(64, 0)).width == 64


def test_damaged_or_huge_metadata_costs_no_pixels() -> None:
    file = save(PHOTO, "PNG")
    profile = png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(2_000_000)))
    text = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2_000_000)))
    damaged = profile[:-1] + bytes([profile[-1] ^ 1])
    for chunk in (profile, text, damaged):
        assert np.array_equal(read(file[:33] + chunk + file[33:]).pixels, shown(file))
    jpeg = save(PHOTO, "JPEG", icc_profile=bytes(500))
    at = jpeg.index(b"ICC_PROFILE\0") + 12
    wrong = jpeg[:at] + b"\x09" + jpeg[at + 1 :]  # part 9 of 1
    with pytest.raises(ValueError, match="bad ICC marker"):
        simplejpeg.decode_jpeg(wrong)
    assert np.array_equal(read(wrong).pixels, read(jpeg).pixels)
    assert reason(wrong[: len(wrong) // 2]) is Reason.TRUNCATED


def test_the_first_of_two_sizes_in_a_webp_counts() -> None:
    huge = b"VP8X\x0a\0\0\0" + bytes(4) + struct.pack("<I", HUGE)[:3] * 2
    chunk = save(PHOTO, "WEBP")[12:]
    assert reason(riff(huge + huge[:12] + bytes(6) + chunk)) is Reason.TOO_MANY_PIXELS
    assert read_header(riff(chunk + huge)).width == 120


def test_a_tiff_whose_tiles_are_far_larger_than_its_image_is_refused() -> None:
    tile = zlib.compress(bytes(3 * 2064 * 2064), 1)
    assert reason(tiled_tiff(64, 64, 2064, 2064, tile, compression=8)) is Reason.CORRUPT
    tile = zlib.compress(bytes(3 * 256 * 256), 1)
    assert read(tiled_tiff(64, 64, 256, 256, tile, compression=8)).pixels.shape == (64, 64, 3)


def test_each_kind_of_unreadable_file_has_its_error_class() -> None:
    jpeg, png = save(PHOTO, "JPEG"), save(PHOTO, "PNG")
    assert reason(b"") is Reason.EMPTY
    for text in (
        b"<html>404</html>",
        b"BM is a brand, not a bitmap, here",
        b"%!PS-Adobe-3.0",
        b"P6 1 1 255 abc",
        b"\0",
    ):
        assert reason(text) is Reason.NOT_AN_IMAGE
    for whole in (jpeg, png):
        assert reason(whole[: len(whole) // 2]) is Reason.TRUNCATED
        assert reason(whole[:18]) is Reason.TRUNCATED
    damaged = bytearray(png)
    damaged[damaged.index(b"IDAT") + 10] ^= 0xFF
    assert reason(bytes(damaged)) is Reason.CORRUPT
    assert reason(jpeg[: len(jpeg) // 2] + b"\xff\xd9") is Reason.TRUNCATED
    no_tables = jpeg.replace(b"\xff\xdb", b"\xff\xec")
    assert reason(no_tables) is Reason.CORRUPT
    assert reason(cv2.imencode(".tiff", np.zeros((40, 40), np.float32))[1].tobytes()) is Reason.CORRUPT


def test_a_jpeg_with_stray_bytes_before_its_end_is_whole() -> None:
    file = save(PHOTO, "JPEG")
    stray = file[:-2] + b"\x12" * 40 + file[-2:]
    with pytest.raises(ValueError, match="extraneous bytes before marker 0xd9"):
        simplejpeg.decode_jpeg(stray)
    assert np.array_equal(read(stray).pixels, read(file).pixels)
    assert np.array_equal(read(file + b"trailer").pixels, read(file).pixels)


TRUNCATABLE: dict[str, Callable[[], bytes]] = {
    **{kind.lower(): lambda kind=kind: save(PHOTO.resize((64, 48)), kind) for kind in SAVE},
    "progressive": lambda: save(PHOTO.resize((64, 48)), "JPEG", progressive=True),
    "cmyk": lambda: save(PHOTO.resize((64, 48)).convert("CMYK"), "JPEG"),
    "webp-lossless": lambda: save(PHOTO.resize((64, 48)), "WEBP", lossless=True),
    "tiff-lzw": lambda: save(PHOTO.resize((64, 48)), "TIFF", compression="tiff_lzw"),
    "tiff-jpeg": lambda: save(PHOTO.resize((64, 48)), "TIFF", compression="jpeg"),
    "bmp-rle": rle_bmp,
}


@pytest.mark.parametrize("name", TRUNCATABLE)
@pytest.mark.parametrize("strict_pillow", [True, False])
def test_a_file_cut_anywhere_never_gives_made_up_pixels(
    name: str, strict_pillow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not strict_pillow and name not in {"png", "webp", "webp-lossless", "jpeg"}:
        pytest.skip("only these formats show their end without Pillow's check")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", not strict_pillow)
    file = TRUNCATABLE[name]()
    whole = read(file).pixels
    step = max(1, len(file) // 150)
    cuts = {*range(0, len(file), step), *range(min(64, len(file))), *range(len(file) - 40, len(file))}
    classes = set()
    for cut in sorted(cuts):
        try:
            pixels = read(file[:cut]).pixels
        except SampleError as error:
            classes.add(error.reason)
        else:  # no pixel was in the missing bytes
            assert np.array_equal(pixels, whole), cut
            assert cut > len(file) // 2
    assert Reason.TRUNCATED in classes
    assert classes <= {Reason.EMPTY, Reason.NOT_AN_IMAGE, Reason.TRUNCATED, Reason.CORRUPT}


def test_any_bytes_give_pixels_or_a_sample_error(capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    limits = Limits(min_side=1, max_aspect=1000, max_tokens=10**6, max_pixels=1_000_000)
    files = [make() for make in TRUNCATABLE.values()]
    refused = 0
    for number in range(2400):
        file = bytearray(files[number % len(files)])
        if number % 5 == 0:
            file[12:] = rng.bytes(int(rng.integers(0, 300)))
        else:
            bound = len(file) if number % 2 else min(len(file), 200)
            for at in rng.integers(0, bound, int(rng.integers(1, 6))):
                file[at] = rng.integers(256)
        for mode in DecodeMode:
            try:
                image = read(bytes(file), mode, limits)
            except SampleError:
                refused += 1
            else:
                assert image.pixels.shape == (image.height, image.width, 3)
    assert 1000 < refused < 4700
    for length in range(200):
        with pytest.raises(SampleError):
            read(rng.bytes(length))
    # libtiff prints from C, with the file name that Pillow gives it.
    printed = [line for line in capfd.readouterr().err.splitlines() if not line.startswith(("tempfile.tif:", "JPEG"))]
    assert not [line for line in printed if "Warning" in line or "PIL" in line]


def test_threads_leave_the_warning_filters_as_they_were() -> None:
    filters = list(warnings.filters)
    file = save(PHOTO, "PNG")
    threads = [threading.Thread(target=lambda: [read(file) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == filters


def test_the_three_steps_together_equal_decode() -> None:
    file = save(PHOTO, "JPEG")
    header = read_header(file)
    size = admit(header, SIZE, ANY)
    assert np.array_equal(decode_pixels(file, header, size, DecodeMode.EXACT), read(file).pixels)
